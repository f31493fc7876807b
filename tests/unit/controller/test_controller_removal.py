"""How what is unplugged leaves the VMI's spec and the VM's template, as tables."""

from typing import Any

import pytest

from schemas.kube import VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash, pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind
from services.controller.plan import Observed, Patch, Target, plan
from tests.support import objects

LINK = pod_interface("iface1")
KEY = f"/metadata/annotations/hotnic.io~1operation.{interface_hash('iface1')}"
IFACE, GONE = objects.nic("iface1"), objects.nic("iface1", state="absent")
RELEASED = Operation("unplug", OperationKind.UNPLUG, "iface1", released=objects.POD_UID)
LISTED = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
ATTACHED = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK)])}
ENTRY = {"name": "iface1", "infoSource": "domain"}


def noted(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode(operation) for operation in operations}


def unplugged(**fields: Any) -> VirtualMachineInstance:
    return objects.vmi(GONE, **{"owned": True, "annotations": noted(RELEASED), **fields})


def changes(vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: dict[str, str] | None = None) -> Any:
    """What is written where, by object."""
    seen = Observed(vmi=vmi, pod=objects.pod(pod) if vmi is not None else None, vm=vm)
    patches = [action for action in plan(seen) if isinstance(action, Patch)]
    return {
        patch.target: {op["path"]: op.get("value") for op in patch.ops if op["op"] in ("add", "remove")}
        for patch in patches
    }


def test_an_interface_of_which_nothing_is_left_goes_with_its_network_and_operation() -> None:
    assert changes(objects.vm(), unplugged()) == {
        Target.VMI: {
            "/spec/networks": [objects.PRIMARY_NETWORK],
            "/spec/domain/devices/interfaces": [objects.PRIMARY],
            KEY: None,
        }
    }


@pytest.mark.parametrize(
    ("vmi", "pod", "left"),
    [
        (unplugged(annotations=noted(Operation("u", OperationKind.UNPLUG, "iface1"))), {}, set()),
        (unplugged(annotations=noted(Operation("u", OperationKind.UNPLUG, "iface1", released="earlier"))), {}, set()),
        (unplugged(), LISTED, {Target.POD}),
        (unplugged(), ATTACHED, {Target.VMI}),
        (unplugged(status=[ENTRY]), {}, set()),
        (unplugged(migrationState={}), {}, set()),
        (unplugged(phase="Scheduled"), {}, set()),
    ],
    ids=["not released", "released by another pod", "listed", "attached", "in the guest", "migrating", "not running"],
)
def test_until_then_it_stays(vmi: VirtualMachineInstance, pod: dict[str, str], left: set[Target]) -> None:
    done = changes(objects.vm(GONE), vmi, pod)
    assert set(done) == left
    assert "/spec/networks" not in done.get(Target.VMI, {})


def test_the_last_element_leaves_an_empty_annotation() -> None:
    done = changes(None, unplugged(owned=False), LISTED)
    assert done[Target.POD]["/metadata/annotations/k8s.v1.cni.cncf.io~1networks"] == ""


def test_the_template_is_cleared_once_the_vmi_knows_the_interface_no_more() -> None:
    vm = objects.vm(GONE, annotations=noted(RELEASED))
    assert Target.VM not in changes(vm, unplugged())
    assert Target.VM not in changes(vm, objects.vmi(owned=True, status=[ENTRY]))
    assert Target.VM not in changes(vm, objects.vmi(owned=True, annotations=noted(RELEASED)))
    expected = {
        "/spec/template/spec/networks": [objects.PRIMARY_NETWORK],
        "/spec/template/spec/domain/devices/interfaces": [objects.PRIMARY],
        KEY: None,
    }
    assert changes(vm, objects.vmi(owned=True)) == {Target.VM: expected}
    assert changes(vm, None) == {Target.VM: expected}
    assert changes(vm, objects.vmi(GONE, owned=True, phase="Succeeded")) == {Target.VM: expected}
    assert changes(vm, objects.vmi(GONE, owned=False, phase="Pending")) == {Target.VM: expected}


def test_a_stopped_vm_keeps_what_is_not_absent() -> None:
    assert changes(objects.vm(IFACE, annotations=noted(Operation("p", OperationKind.PLUG, "iface1"))), None) == {}
    assert changes(None, None) == {}


def test_operations_without_an_interface_go() -> None:
    stale = noted(Operation("p", OperationKind.PLUG, "iface1"))
    assert changes(objects.vm(annotations=stale), None) == {Target.VM: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True, annotations=stale)) == {Target.VMI: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True), stale) == {Target.POD: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True), stale | ATTACHED) == {}


def test_what_was_unplugged_from_the_vmi_alone_is_remembered_while_the_template_has_it() -> None:
    vm = objects.vm(IFACE)
    cleared = changes(vm, unplugged())[Target.VMI]
    assert cleared["/spec/domain/devices/interfaces"] == [objects.PRIMARY]
    assert KEY not in cleared
    remembering = objects.vmi(owned=True, annotations=noted(RELEASED))
    assert changes(vm, remembering) == {}
    assert changes(None, remembering) == {}, "the VM may only be out of sight"
    assert changes(objects.vm(), remembering) == {Target.VMI: {KEY: None}}
    assert changes(objects.vm(GONE), remembering) == {Target.VMI: {KEY: None}}


def test_what_the_template_asked_to_unplug_is_not_remembered_even_if_it_wants_it_back() -> None:
    cleared = changes(objects.vm(IFACE, annotations=noted(RELEASED)), unplugged())[Target.VMI]
    assert KEY in cleared
