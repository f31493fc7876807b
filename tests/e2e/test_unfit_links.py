"""A pod interface that cannot be bridged is refused before the pod network is set up, and its attachment is undone."""

import json
from collections.abc import Iterator

import pytest

from tests.support.lab.node_state import node_state
from tests.support.lab.running import Lab, wait_until

NAD = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {{name: {name}, namespace: default}}
spec: {{config: '{config}'}}
"""


@pytest.fixture
def network(lab: Lab, interface: str) -> Iterator[str]:
    """A macvlan network on a link of the node."""
    master = f"m-{interface}"
    config = {
        "cniVersion": "1.0.0",
        "type": "macvlan",
        "mode": "bridge",
        "master": master,
        "ipam": {"type": "host-local", "subnet": "10.91.0.0/24"},
    }
    for command in (f"ip link add {master} type bridge", f"ip link set {master} up"):
        assert lab.hotnic("lab", "exec", "--", *command.split()).returncode == 0
    lab.kubectl("apply", "-f", "-", stdin=NAD.format(name=f"macvlan-{interface}", config=json.dumps(config)))
    yield f"macvlan-{interface}"
    lab.kubectl("delete", "net-attach-def", f"macvlan-{interface}")
    assert lab.hotnic("lab", "exec", "--", "ip", "link", "delete", master).returncode == 0


def test_macvlan_interface_is_refused_and_its_attachment_undone(
    lab: Lab, vm: str, interface: str, network: str
) -> None:
    before = node_state(lab)
    # By the template, because addinterface refuses a NAD that is known to be macvlan.
    nic = {"name": interface, "bridge": {}}
    lab.edit_template(
        vm,
        ("add", "/domain/devices/interfaces/-", nic),
        ("add", "/networks/-", {"name": interface, "multus": {"networkName": network}}),
    )

    def gone() -> bool:
        items = json.loads(lab.kubectl("get", "vm,vmi", vm, "-o", "json"))["items"]
        events = json.loads(lab.kubectl("get", "events", "-o", "json"))["items"]
        refused = [e for e in events if e["reason"] == "UnsupportedPodLink" and interface in e["message"]]
        return bool(refused) and not any(f'"{interface}"' in json.dumps(item["spec"]) for item in items)

    wait_until(gone)
    now = node_state(lab)
    assert (now.state_of(interface), now.links, now.leases) == ([], before.links, before.leases)
    spans = [span for span in lab.all_spans() if span["service"] == "hotnic-handler" and interface in span["name"]]
    assert not [span for span in spans if span["name"].startswith("handler plug")]
    lab.release_slot(vm)
