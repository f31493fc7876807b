"""Template edits that cannot be applied, and KubeVirt's feature gate, as the user of a cluster sees them."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from schemas.kubernetes.networks import NETWORKS
from services.common.domain.status_interfaces import DOMAIN
from tests.support.lab.running import SAMPLE_NAD, Lab, wait_until
from tests.support.observed.objects import COLLIDING

NAD = ("--network-attachment-definition-name", SAMPLE_NAD)


def events(lab: Lab, vm: str, kind: str = "VirtualMachine") -> list[tuple[str, str]]:
    """Return reason and message of the events about a VM."""
    selector = f"involvedObject.name={vm},involvedObject.kind={kind}"
    found = json.loads(lab.kubectl("get", "events", "--field-selector", selector, "-o", "json"))
    return [(item["reason"], item["message"]) for item in found["items"]]


def plugs(*interfaces: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the patch operations that append interfaces on the sample network to a template."""
    ops = []
    for item in interfaces:
        network = {"name": item["name"], "multus": {"networkName": SAMPLE_NAD}}
        ops += [("add", "/domain/devices/interfaces/-", item), ("add", "/networks/-", network)]
    return ops


def running(lab: Lab, vm: str) -> list[str]:
    return [item.name for item in lab.vmi(vm).spec.interface_items()]


def test_edit_that_cannot_be_applied_changes_nothing_and_is_reported_once(lab: Lab, own: str) -> None:
    first, second = COLLIDING
    lab.edit_template(own, *plugs({"name": "vf", "sriov": {}}, {"name": first, "bridge": {}}))
    wait_until(lambda: first in running(lab, own))
    lab.edit_template(own, *plugs({"name": second, "bridge": {}}))
    wait_until(lambda: len(events(lab, own)) == 2)
    output = dict.fromkeys(reason for reason, _ in events(lab, own))
    assert list(output) == ["InterfaceChangeRejected"]
    messages = " / ".join(message for _, message in events(lab, own))
    assert "'vf' does not use the bridge binding" in messages
    assert f"{second!r} would have the same link names as {first!r}" in messages
    # A valid edit is applied in addition, and the invalid one is not reported again.
    lab.edit_template(own, *plugs({"name": "fine", "bridge": {}}))
    wait_until(lambda: "fine" in running(lab, own))
    assert running(lab, own) == ["default", first, "fine"]
    assert len(events(lab, own)) == 2


HOME: Final = "kubevirt"
"""A namespace in which KubeVirt's objects count."""
ACCOUNT: Final[dict[str, Any]] = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "virt"}}


@pytest.fixture
def kubevirt(lab: Lab) -> Iterator[None]:
    """The KubeVirt object with the feature gate disabled, as virt-operator has seen it, and an account of its pods."""
    document = {"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"}}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}}
    lab.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
    for one in (document | {"spec": {"configuration": {}}}, ACCOUNT):
        lab.kubectl("apply", "-n", HOME, "-f", "-", stdin=json.dumps(one))
    seen = json.dumps({"status": {"phase": "Deployed"}})
    lab.kubectl("patch", "-n", HOME, "kubevirt", "kubevirt", "--subresource=status", "--type=merge", "-p", seen)
    yield
    lab.kubectl("delete", "-n", HOME, "kubevirt", "kubevirt")


def open_gate(lab: Lab) -> None:
    gate = {"spec": {"configuration": {"developerConfiguration": {"featureGates": ["HotplugNICs"]}}}}
    lab.kubectl("patch", "-n", HOME, "kubevirt", "kubevirt", "--type=merge", "-p", json.dumps(gate))


def test_change_of_the_feature_gate_takes_effect_without_a_restart(
    lab: Lab, own: str, interface: str, kubevirt: None
) -> None:
    for verb, more in (("addinterface", NAD), ("removeinterface", ())):
        done = lab.hotnic(verb, own, "--name", interface, *more)
        assert done.returncode == 3
        assert 'Unable to Add Interface because the "HotplugNICs" feature gate is not enabled.' in done.stderr
    lab.edit_template(own, *plugs({"name": interface, "bridge": {}}))
    wait_until(lambda: any("HotplugNICs is off" in message for _, message in events(lab, own)))
    assert running(lab, own) == ["default"]
    open_gate(lab)
    # The pending edit is applied at once, and requests are accepted.
    wait_until(lambda: running(lab, own) == ["default", interface])
    done = lab.hotnic("addinterface", own, "--name", f"{interface}-b", *NAD, "--wait")
    assert done.returncode == 0, done.stderr


def test_hotnic_changes_nothing_while_kubevirts_controller_runs(
    lab: Lab, own: str, interface: str, kubevirt: None
) -> None:
    open_gate(lab)
    container = {"name": "virt-controller", "image": "registry.k8s.io/pause:3.9"}
    account = {"serviceAccountName": ACCOUNT["metadata"]["name"], "automountServiceAccountToken": False}
    spec = {"containers": [container], **account}
    meta = {"name": "virt-controller", "labels": {"kubevirt.io": "virt-controller"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    lab.kubectl("apply", "-n", HOME, "-f", "-", stdin=json.dumps(pod))
    try:
        conflict = f"controllers run (pod {HOME}/virt-controller"
        wait_until(lambda: lab.hotnic("lab", "status").stdout.count(conflict) == 2)
        # The api sees the pod by a watch of its own. This request is refused for one reason or another.
        wait_until(lambda: "KubeVirt's controllers run" in lab.hotnic("removeinterface", own, "--name", "other").stderr)
        lab.edit_template(own, *plugs({"name": interface, "bridge": {}}))
        done = lab.hotnic("addinterface", own, "--name", f"{interface}-b", *NAD, "--wait", "--timeout", "1s")
        assert done.returncode == 3, done.stderr
        assert "KubeVirt's controllers run" in done.stderr
        assert running(lab, own) == ["default"]
        assert lab.pod(lab.vmi(own)).metadata.annotations.get(NETWORKS, "[]") == "[]"
    finally:
        lab.kubectl("delete", "-n", HOME, "pod", "virt-controller")
    wait_until(lambda: set(running(lab, own)) == {"default", interface})
    wait_until(lambda: all(DOMAIN in str(item.get("infoSource")) for item in lab.vmi(own).status.interfaces or ()))
