"""Three nodes: each role works for its own node alone, VMs of two nodes share a network, and the leader may change.

Two guests are real, on two nodes; the third one's is a double.
"""

import asyncio
import functools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from lab.cli import commands
from lab.guest.console import AddressEvent, GuestEvent
from lab.layout import GuestKind
from lab.namespaces import control
from lab.node.launcher import GUEST_ANNOTATION
from lab.node.uplinks import uplink
from lab.supervisor.bootstrap import load_samples
from schemas.bus.encoding import node_consumer, node_filter
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.operations import PodNic, pod_nic_key, read_operation, read_pod_nic
from schemas.names import pod_interface
from tests.support.bus.client import nats_client
from tests.support.guest import shell as guest_shell
from tests.support.lab.doctor import run_doctor
from tests.support.lab.node_state import node_state
from tests.support.lab.process import DEADLINE
from tests.support.lab.rights import assert_rights_suffice
from tests.support.lab.running import Lab, on_kubernetes, running_lab, wait_until
from tests.support.leftovers import nothing_left_behind

NODES = ("lab", "lab-2", "lab-3")
VMS: dict[str, tuple[str, GuestKind]] = {
    "left": ("lab", "qemu"),
    "right": ("lab-2", "qemu"),
    "third": ("lab-3", "double"),
}
"""Node and guest of each VM."""

BRIDGE = "blue0"
# Of the same bridge; host-local knows the leases of its node alone.
NADS = {"blue-1": "10.79.0.10", "blue-2": "10.79.0.20"}
PLUGGED = {"left": "blue-1", "right": "blue-2", "third": "blue-1"}
CONTROLLERS = {"controller", "controller-2"}
NIC, LATER = "nic", "later"
SPAN_FILE = re.compile(r"(networks|multus|handler)-(lab(?:-[23])?)-\d+(?:\.\d+)?\.jsonl")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of three nodes with a VM and its network on each."""
    with (
        nothing_left_behind(),
        running_lab(tmp_path_factory.mktemp("lab"), bare=True, guests="double", nodes=len(NODES)) as running,
    ):
        objects = [vm(name, *VMS[name]) for name in VMS] + [nad(name, first) for name, first in NADS.items()]
        running.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        waiting = ("wait", "vm", *VMS, "--for=condition=Ready", f"--timeout={DEADLINE:g}s")
        running.kubectl(*waiting, timeout=DEADLINE + 30)
        yield running
        if on_kubernetes():
            assert_rights_suffice(running)


def vm(name: str, node: str, guest: GuestKind) -> dict[str, Any]:
    """Return the sample VM with another name, on a node."""
    (sample,) = [one for one in load_samples() if one["kind"] == "VirtualMachine"]
    template = sample["spec"]["template"]
    template["metadata"] = {"annotations": {GUEST_ANNOTATION: guest}}
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {**sample, "metadata": {"name": name, "namespace": "default"}}


def nad(name: str, first: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.79.0.0/24", "rangeStart": first}]]}
    config = {"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": BRIDGE, "ipam": ipam}
    kind = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition"}
    return {**kind, "metadata": {"name": name, "namespace": "default"}, "spec": {"config": json.dumps(config)}}


def plug(lab: Lab, name: str, interface: str = NIC) -> None:
    network = ("--network-attachment-definition-name", PLUGGED[name])
    done = lab.hotnic("addinterface", name, "--name", interface, *network, "--wait")
    assert done.returncode == 0, done.stderr


def start_plug(lab: Lab, name: str, interface: str) -> subprocess.Popen[str]:
    """Request a plug and do not wait for it."""
    network = ("--network-attachment-definition-name", PLUGGED[name])
    command = [sys.executable, "-m", "services.cli", "addinterface", name, "--name", interface, *network, "--wait"]
    return subprocess.Popen(command, env=lab.environment, stderr=subprocess.PIPE, text=True)


def assert_plugged(plug: subprocess.Popen[str]) -> None:
    _, errors = plug.communicate(timeout=DEADLINE)
    assert plug.returncode == 0, errors


def annotation(lab: Lab, name: str, key: str) -> str:
    return lab.pod(lab.vmi(name)).metadata.annotations.get(key, "")


def pod_nic(lab: Lab, name: str) -> PodNic:
    record = read_pod_nic(lab.pod(lab.vmi(name)).metadata.annotations, pod_nic_key(NIC))
    assert record is not None
    return record


def status(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return the state of each process."""
    (answer,) = control.request(lab.layout.control_socket, {"verb": "status"}, timeout=DEADLINE)
    return {one["name"]: one for one in answer["components"]}


def unready(lab: Lab) -> set[str]:
    """Return the processes that are not ready."""
    return {name for name, one in status(lab).items() if not one.get("ready", one["state"] == "running")}


def change(lab: Lab, verb: str, component: str) -> None:
    output: list[str] = []
    assert commands.change(lab.layout.dir, verb, component, output.append) == 0, output


def joined(lab: Lab, node: str) -> bool:
    """Return whether the bridge of a node has its uplink."""
    return uplink(BRIDGE) in lab.run_inside("ip", "link", "show", "master", BRIDGE, node=node)


def leader(lab: Lab) -> str:
    return lab.kubectl("get", "lease", "-n", "hotnic", "hotnic-controller", "-o", "jsonpath={.spec.holderIdentity}")


async def bound(lab: Lab, name: str, ip: str) -> None:
    """Wait until a guest has an address."""

    def wanted(event: GuestEvent) -> bool:
        return isinstance(event, AddressEvent) and event.action == "bound" and event.address == ip

    async with lab.console(lab.vmi(name)) as console:
        await console.wait_for(wanted, timeout=45)


@pytest.fixture(scope="module")
def plugged(lab: Lab) -> Lab:
    """The lab after a plug on every node, all at once."""
    for node in NODES[1:]:
        wait_until(functools.partial(joined, lab, node))
    with ThreadPoolExecutor(len(VMS)) as threads:
        list(threads.map(functools.partial(plug, lab), VMS))
    return lab


async def test_guests_of_two_nodes_reach_each_other_after_plugs_on_all_nodes_at_once(plugged: Lab) -> None:
    lab = plugged
    ips = {name: pod_nic(lab, name).ips[0] for name in VMS}
    assert ips == {"left": "10.79.0.10/24", "right": "10.79.0.20/24", "third": "10.79.0.10/24"}
    await asyncio.gather(*(bound(lab, name, ips[name]) for name in ("left", "right")))
    for here, there in (("left", "right"), ("right", "left")):
        ip = ip_interface(ips[there]).ip
        # The first packet may be lost while the neighbour's MAC is resolved.
        ping = f"ping -c 1 -W 3 {ip} || ping -c 3 -W 5 {ip}"
        code, output = guest_shell.run(lab.guest_folder(lab.vmi(here)), ping)
        assert code == 0, output


@pytest.mark.parametrize("name", VMS)
def test_links_and_leases_are_those_of_the_node(plugged: Lab, name: str) -> None:
    lab, (node, _) = plugged, VMS[name]
    assert lab.vmi(name).status.node_name == node
    state = node_state(lab, node)
    own = {str(ip_interface(pod_nic(lab, name).ips[0]).ip), lab.pod(lab.vmi(name)).status.pod_ips[0]["ip"]}
    assert state.leases == own
    assert len([links for links in state.links.values() if pod_interface(NIC) in links]) == 1
    assert len(state.links) == 1, "the node has the network namespaces of its own pods"


async def test_every_node_role_consumes_and_handles_the_events_of_its_node_alone(plugged: Lab) -> None:
    lab = plugged
    async with nats_client(lab.unrestricted_nats) as client:
        found = {one.name: one.config.filter_subject for one in await client.jetstream().consumers_info("HOTPLUG")}
    own = {node_consumer(role, node): node_filter(node) for role in ("networks", "handler") for node in NODES}
    assert {name: subject for name, subject in found.items() if name.startswith(("networks_", "handler_"))} == own
    worked: dict[str, set[str]] = {node: set() for node in NODES}
    operations = {}
    for name in VMS:
        operation = read_operation(lab.vmi(name).metadata.annotations, NIC)
        assert operation is not None
        assert operation.traceparent is not None
        operations[operation.traceparent.split("-")[1]] = VMS[name][0]
    for file in lab.layout.traces.iterdir():
        if matched := SPAN_FILE.fullmatch(file.name):
            text = file.read_text().lower()
            worked[matched[2]] |= {trace for trace in operations if trace in text}
    assert worked == {node: {trace for trace, place in operations.items() if place == node} for node in NODES}


def test_a_node_role_that_dies_is_noticed_on_its_node_alone(lab: Lab) -> None:
    before = status(lab)
    lab.run_inside("kill", f"-{signal.SIGKILL:d}", str(before["handler-2"]["pid"]))
    wait_until(lambda: status(lab)["handler-2"]["state"] == "exited")
    with start_plug(lab, "right", LATER) as waiting:
        # It is attached to the pod, and nobody plugs it into the guest.
        wait_until(lambda: annotation(lab, "right", pod_nic_key(LATER)) != "")
        for name in ("left", "third"):
            plug(lab, name, LATER)
        assert waiting.poll() is None
        # The probes of other roles may have been slow for a moment.
        wait_until(lambda: unready(lab) == {"handler-2"})
        after = status(lab)
        others = set(after) - {"handler-2"}
        assert {name: after[name]["pid"] for name in others} == {name: before[name]["pid"] for name in others}
        change(lab, "start", "handler-2")
        assert_plugged(waiting)


def test_a_plug_completes_when_the_leader_changes_in_the_middle(lab: Lab) -> None:
    first = leader(lab)
    assert first in CONTROLLERS
    with lab.stopped("networks-3"):
        waiting = start_plug(lab, "third", "during")
        wait_until(lambda: pod_interface("during") in annotation(lab, "third", NETWORKS))
        change(lab, "stop", first)
    with waiting:
        assert_plugged(waiting)
    assert leader(lab) in CONTROLLERS - {first}
    # The other leader takes the element out, too.
    done = lab.hotnic("removeinterface", "third", "--name", "during", "--wait")
    assert done.returncode == 0, done.stderr
    change(lab, "start", first)


def test_plugs_complete_when_the_leader_is_killed_in_the_middle(lab: Lab) -> None:
    first = leader(lab)
    assert first in CONTROLLERS
    with lab.stopped("networks-3"):
        waiting = start_plug(lab, "third", "killed")
        wait_until(lambda: pod_interface("killed") in annotation(lab, "third", NETWORKS))
        lab.run_inside("kill", f"-{signal.SIGKILL:d}", str(status(lab)[first]["pid"]))
        wait_until(lambda: status(lab)[first]["state"] == "exited")
        # It has not released its Lease: until that ends, nobody annotates the pod of this plug.
        next_one = start_plug(lab, "left", "killed")
    for plug_process in (waiting, next_one):
        with plug_process:
            assert_plugged(plug_process)
    assert leader(lab) in CONTROLLERS - {first}
    change(lab, "start", first)
    wait_until(lambda: unready(lab) == set())
    # The one that comes back does not lead, and the other one takes both elements out.
    assert leader(lab) in CONTROLLERS - {first}
    for name in ("third", "left"):
        done = lab.hotnic("removeinterface", name, "--name", "killed", "--wait")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("node", NODES[1:])
def test_doctor_of_a_further_node_has_no_findings(lab: Lab, node: str) -> None:
    assert run_doctor(lab, "-A", node=node)["findings"] == []


def test_commands_know_the_nodes(lab: Lab) -> None:
    shown = lab.hotnic("lab", "status").stdout
    assert "nodes: lab, lab-2, lab-3" in shown
    assert re.search(r"guest default/right  node lab-2  ", shown)
    assert lab.run_inside("ls", "/run/hotnic/guests", node="lab-2").split() == [lab.vmi("right").metadata.uid]
    unknown = lab.hotnic("lab", "exec", "--node", "lab-4", "--", "true")
    assert unknown.returncode == 1
    assert "no node lab-4" in unknown.stderr
    assert "(there are lab, lab-2, lab-3)" in unknown.stderr
    assert Path(lab.layout.log("handler-3")).exists()
