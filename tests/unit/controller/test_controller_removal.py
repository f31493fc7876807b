"""Tables of the controller's plans that remove unplugged interfaces from the VMI's spec and the VM's template."""

from typing import Any

import pytest

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind
from services.controller.plan import PatchObject, PatchTarget, plan
from tests.support.observed import objects
from tests.support.observed.observations import controller_observed

LINK = pod_interface("iface1")
KEY = f"/metadata/annotations/hotnic.io~1operation.{interface_hash('iface1')}"
IFACE, ABSENT_IFACE = objects.nic("iface1"), objects.nic("iface1", state="absent")
RELEASED = Operation("unplug", OperationKind.UNPLUG, "iface1", released=objects.POD_UID)
LISTED = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
ATTACHED = {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK)])}
ENTRY = {"name": "iface1", "infoSource": "domain"}


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


def unplugged(**fields: Any) -> VirtualMachineInstance:
    return objects.vmi(ABSENT_IFACE, **{"owned": True, "annotations": annotations_of(RELEASED), **fields})


def changes(vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: dict[str, str] | None = None) -> Any:
    """Return the changes of a plan: the written value of each path, for each object."""
    observed = controller_observed(vm, vmi, objects.pod(pod) if vmi is not None else None)
    patches = [action for action in plan(observed) if isinstance(action, PatchObject)]
    return {
        patch.target: {op["path"]: op.get("value") for op in patch.ops if op["op"] in ("add", "remove")}
        for patch in patches
    }


def test_detached_interface_is_removed_with_its_network_and_operation() -> None:
    assert changes(objects.vm(), unplugged()) == {
        PatchTarget.VMI: {
            "/spec/networks": [objects.PRIMARY_NETWORK],
            "/spec/domain/devices/interfaces": [objects.PRIMARY],
            KEY: None,
        }
    }


@pytest.mark.parametrize(
    ("vmi", "pod", "patched"),
    [
        (unplugged(annotations=annotations_of(Operation("u", OperationKind.UNPLUG, "iface1"))), {}, set()),
        (
            unplugged(annotations=annotations_of(Operation("u", OperationKind.UNPLUG, "iface1", released="earlier"))),
            {},
            set(),
        ),
        (unplugged(), LISTED, {PatchTarget.POD}),
        (unplugged(), ATTACHED, {PatchTarget.VMI}),
        (unplugged(status=[ENTRY]), {}, set()),
        (unplugged(migrationState={}), {}, set()),
        (unplugged(phase="Scheduled"), {}, set()),
    ],
    ids=["not released", "released by another pod", "listed", "attached", "in the guest", "migrating", "not running"],
)
def test_interface_stays_until_it_is_detached(
    vmi: VirtualMachineInstance, pod: dict[str, str], patched: set[PatchTarget]
) -> None:
    changed = changes(objects.vm(ABSENT_IFACE), vmi, pod)
    assert set(changed) == patched
    assert "/spec/networks" not in changed.get(PatchTarget.VMI, {})


def test_annotation_without_elements_is_empty() -> None:
    changed = changes(None, unplugged(owned=False), LISTED)
    assert changed[PatchTarget.POD]["/metadata/annotations/k8s.v1.cni.cncf.io~1networks"] == ""


def test_template_is_cleared_after_the_vmi() -> None:
    vm = objects.vm(ABSENT_IFACE, annotations=annotations_of(RELEASED))
    assert PatchTarget.VM not in changes(vm, unplugged())
    assert PatchTarget.VM not in changes(vm, objects.vmi(owned=True, status=[ENTRY]))
    assert PatchTarget.VM not in changes(vm, objects.vmi(owned=True, annotations=annotations_of(RELEASED)))
    expected = {
        "/spec/template/spec/networks": [objects.PRIMARY_NETWORK],
        "/spec/template/spec/domain/devices/interfaces": [objects.PRIMARY],
        KEY: None,
    }
    assert changes(vm, objects.vmi(owned=True)) == {PatchTarget.VM: expected}
    assert changes(vm, None) == {PatchTarget.VM: expected}
    assert changes(vm, objects.vmi(ABSENT_IFACE, owned=True, phase="Succeeded")) == {PatchTarget.VM: expected}
    assert changes(vm, objects.vmi(ABSENT_IFACE, owned=False, phase="Pending")) == {PatchTarget.VM: expected}


def test_stopped_vm_keeps_interfaces_that_are_not_absent() -> None:
    assert (
        changes(objects.vm(IFACE, annotations=annotations_of(Operation("p", OperationKind.PLUG, "iface1"))), None) == {}
    )
    assert changes(None, None) == {}


def test_operations_without_an_interface_are_removed() -> None:
    stale = annotations_of(Operation("p", OperationKind.PLUG, "iface1"))
    assert changes(objects.vm(annotations=stale), None) == {PatchTarget.VM: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True, annotations=stale)) == {PatchTarget.VMI: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True), stale) == {PatchTarget.POD: {KEY: None}}
    assert changes(objects.vm(), objects.vmi(owned=True), stale | ATTACHED) == {}


def test_unplug_of_the_vmi_only_stays_recorded_while_the_template_has_the_interface() -> None:
    vm = objects.vm(IFACE)
    cleared = changes(vm, unplugged())[PatchTarget.VMI]
    assert cleared["/spec/domain/devices/interfaces"] == [objects.PRIMARY]
    assert KEY not in cleared
    recorded = objects.vmi(owned=True, annotations=annotations_of(RELEASED))
    assert changes(vm, recorded) == {}
    assert changes(None, recorded) == {}, "the VM may only be missing from the cache"
    assert changes(objects.vm(), recorded) == {PatchTarget.VMI: {KEY: None}}
    assert changes(objects.vm(ABSENT_IFACE), recorded) == {PatchTarget.VMI: {KEY: None}}


def test_unplug_of_the_template_does_not_stay_recorded() -> None:
    cleared = changes(objects.vm(IFACE, annotations=annotations_of(RELEASED)), unplugged())[PatchTarget.VMI]
    assert KEY in cleared
