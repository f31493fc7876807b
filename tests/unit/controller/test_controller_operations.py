"""Which wishes the controller gets going, and which it complains of, as tables."""

from typing import Any

import msgspec
import pytest

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance, VmiSpec
from schemas.names import pod_interface
from schemas.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.operations import Operation, derived_id, encode, operation_key
from schemas.stages import OperationKind
from services.controller.plan import Complain, Observed, Patch, Start, Target, plan
from services.controller.plan.actions import requested
from tests.support import objects

IFACE, GONE = objects.nic("iface1"), objects.nic("iface1", state="absent")
PLUG, UNPLUG = Operation("plug", OperationKind.PLUG, "iface1"), Operation("unplug", OperationKind.UNPLUG, "iface1")
FILLED_IN = objects.nic("iface1", macAddress="02:00:00:00:00:07", model="virtio")
HERE = {"name": "iface1", "infoSource": "domain"}
NOW = "2026-01-01T00:00:00Z"
EDIT = f"{objects.VMI_UID}/{objects.VM_UID}"


def noted(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode(operation) for operation in operations}


def annotated(link: str = pod_interface("iface1")) -> Pod:
    return objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=link)])})


def looked(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: Pod | None = None, **fields: Any
) -> Observed:
    return Observed(vmi=vmi, pod=pod or (objects.pod() if vmi is not None else None), vm=vm, now=NOW, **fields)


def start_of(seen: Observed) -> Start:
    (start,) = [action for action in plan(seen) if isinstance(action, Start)]
    return start


def complaints_of(seen: Observed) -> list[Complain]:
    return [action for action in plan(seen) if isinstance(action, Complain)]


def test_a_nic_of_the_template_is_plugged_as_written_with_the_vms_operation() -> None:
    written = objects.nic("iface1", macAddress="02:00:00:00:00:07", model="virtio")
    vmi = objects.vmi(owned=True)
    seen = looked(objects.vm(written, annotations=noted(PLUG)), vmi)
    start = start_of(seen)
    (wish,) = start.wishes
    assert (wish.operation, wish.on_vm, wish.network) == (PLUG, False, "default/net1")
    assert seen.vm is not None
    assert start.vm_ops(seen.vm, [PLUG]) == []
    values = {op["path"]: op["value"] for op in start.vmi_ops(vmi, [PLUG]) if op["op"] == "add"}
    assert values["/spec/networks"] == [objects.PRIMARY_NETWORK, written[1]]
    assert values["/spec/domain/devices/interfaces"] == [objects.PRIMARY, written[0]]
    assert values["/metadata/annotations"] == noted(PLUG)
    assert str(requested(wish, PLUG, vmi).subject) == "hotplug.requested.node1.default.vm1"


@pytest.mark.parametrize("stale", [{}, noted(UNPLUG)], ids=["no operation", "that of an earlier unplug"])
def test_an_edit_of_the_template_gets_an_operation_that_is_written_on_the_vm_first(stale: dict[str, str]) -> None:
    vm = objects.vm(IFACE, annotations=stale, generation=7)
    start = start_of(looked(vm, objects.vmi(owned=True)))
    (wish,) = start.wishes
    assert wish.on_vm
    assert wish.operation == Operation(
        derived_id(EDIT, "iface1", OperationKind.PLUG, 7), OperationKind.PLUG, "iface1", requested_at=NOW
    )
    traced = Operation("x", OperationKind.PLUG, "iface1", traceparent="00-1-2-01")
    assert start.vm_ops(vm, [traced])[-1]["value"] in (encode(traced), noted(traced))


def test_absent_in_the_template_is_set_on_the_vmi() -> None:
    vmi = objects.vmi(IFACE, owned=True, annotations=noted(PLUG), status=[HERE])
    start = start_of(looked(objects.vm(GONE, annotations=noted(UNPLUG)), vmi, annotated()))
    assert [wish.operation for wish in start.wishes] == [UNPLUG]
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, GONE[0]]
    assert start.vmi.networks == vmi.spec.networks


def test_plug_and_unplug_in_one_edit_are_one_patch() -> None:
    vm = objects.vm(GONE, objects.nic("iface2"), objects.nic("iface3"))
    vmi = objects.vmi(IFACE, owned=True, annotations=noted(PLUG), status=[HERE])
    start = start_of(looked(vm, vmi, annotated()))
    assert [(wish.operation.interface, wish.operation.kind) for wish in start.wishes] == [
        ("iface1", OperationKind.UNPLUG),
        ("iface2", OperationKind.PLUG),
        ("iface3", OperationKind.PLUG),
    ]
    assert len(start_of(looked(vm, vmi, annotated(), singly=True)).wishes) == 1
    later = start_of(looked(vm, vmi, annotated(), refused=frozenset({"iface1"})))
    assert [wish.operation.interface for wish in later.wishes] == ["iface2", "iface3"]


FIRST, SECOND = objects.COLLIDING
IMPOSSIBLE = [
    ("two alike", objects.vm(objects.nic(FIRST), objects.nic(SECOND)), objects.vmi(owned=True), "same link names", 1),
    ("alike in the VMI", objects.vm(objects.nic(FIRST)), objects.vmi(objects.nic(SECOND), owned=True), "same link", 1),
    (
        "masquerade",
        objects.vm(({"name": "iface1", "masquerade": {}}, IFACE[1])),
        objects.vmi(owned=True),
        "not bound by bridge",
        0,
    ),
    ("sriov", objects.vm(({"name": "iface1", "sriov": {}}, IFACE[1])), objects.vmi(owned=True), "not bound by b", 0),
    ("model", objects.vm(objects.nic("iface1", model="e1000")), objects.vmi(owned=True), "only virtio", 0),
    ("name", objects.vm(objects.nic("a.b")), objects.vmi(owned=True), "is malformed", 0),
    ("no network", objects.vm((IFACE[0], {"name": "other"})), objects.vmi(owned=True), "no network of its name", 0),
    (
        "another network by that name",
        objects.vm(IFACE),
        objects.vmi(({"name": "x", "bridge": {}}, {"name": "iface1", "multus": {"networkName": "n2"}}), owned=True),
        "another network by the name",
        0,
    ),
    (
        "unplugging the primary",
        objects.vm(({"name": "lan", "bridge": {}, "state": "absent"}, {"name": "lan", "pod": {}})),
        objects.vmi(({"name": "lan", "bridge": {}}, {"name": "lan", "pod": {}}), owned=True),
        "primary network",
        0,
    ),
    (
        "reviving",
        objects.vm(IFACE, annotations=noted(UNPLUG)),
        objects.vmi(GONE, owned=True, annotations=noted(UNPLUG), status=[HERE]),
        "which is final",
        0,
    ),
]


@pytest.mark.parametrize(
    ("vm", "vmi", "text", "wishes"), [row[1:] for row in IMPOSSIBLE], ids=[row[0] for row in IMPOSSIBLE]
)
def test_an_edit_that_cannot_be_done_changes_nothing_and_is_complained_of(
    vm: VirtualMachine, vmi: VirtualMachineInstance, text: str, wishes: int
) -> None:
    seen = looked(vm, vmi)
    (complaint,) = complaints_of(seen)
    assert (complaint.about, complaint.reason) == (Target.VM, "InterfaceChangeRejected")
    assert text in complaint.message
    started = [wish for action in plan(seen) if isinstance(action, Start) for wish in action.wishes]
    assert len(started) == wishes
    assert complaints_of(seen) == [complaint]


def test_ordinal_names_refuse_an_unplug_and_unknown_ones_wait() -> None:
    vm = objects.vm(GONE)
    vmi = objects.vmi(IFACE, owned=True, annotations=noted(PLUG), status=[HERE])
    (complaint,) = complaints_of(looked(vm, vmi, annotated("net1")))
    assert "ordinal interface names" in complaint.message
    assert plan(Observed(vmi=vmi, pod=None, vm=vm, now=NOW)) == []
    edited = objects.vmi(GONE, annotations=noted(PLUG))
    (about_vmi,) = complaints_of(looked(None, edited, annotated("net1")))
    assert about_vmi.about is Target.VMI


def test_with_the_gate_off_a_change_waits_for_the_restart_and_says_so() -> None:
    seen = looked(objects.vm(IFACE), objects.vmi(owned=True), enabled=False)
    (complaint,) = plan(seen)
    assert isinstance(complaint, Complain)
    assert "HotplugNICs is off" in complaint.message


@pytest.mark.parametrize(
    ("vm", "vmi"),
    [
        (objects.vm(), objects.vmi(IFACE, owned=True, annotations=noted(PLUG), status=[HERE])),
        (objects.vm(IFACE), objects.vmi(GONE, owned=True, annotations=noted(UNPLUG), status=[HERE])),
        (objects.vm(IFACE), objects.vmi(owned=True, annotations=noted(UNPLUG))),
        (objects.vm(IFACE), objects.vmi(owned=False)),
        (objects.vm(IFACE, deletionTimestamp=NOW), objects.vmi(owned=True)),
        (objects.vm(IFACE), objects.vmi(owned=True, phase="Succeeded")),
        (objects.vm(), objects.vmi(({"name": "x", "masquerade": {}}, {"name": "x"}), owned=True)),
        (objects.vm(IFACE), objects.vmi(FILLED_IN, owned=True, annotations=noted(PLUG), status=[HERE])),
        (objects.vm(objects.nic("iface1", "net2")), objects.vmi(IFACE, owned=True, annotations=noted(PLUG))),
    ],
    ids=[
        "merely missing from the template",
        "unplugged from the VMI alone",
        "unplugged from the VMI alone, and gone",
        "another's VMI",
        "VM going",
        "VMI ended",
        "nothing to do",
        "a webhook's MAC and a preference's model on the VMI (kubevirt#15881, #18955)",
        "another network, which only a restart can bring",
    ],
)
def test_what_is_no_wish_is_left_alone(vm: VirtualMachine, vmi: VirtualMachineInstance) -> None:
    pod = annotated() if vmi.spec.interface_items()[-1].name == "iface1" else objects.pod()
    assert plan(looked(vm, vmi, pod)) == []


def test_a_pod_network_written_out_later_is_no_difference_to_a_vmi_that_left_it_unsaid() -> None:
    bare = objects.vmi(IFACE, owned=True, annotations=noted(PLUG), status=[HERE])
    lists = {"networks": [IFACE[1]], "domain": {"devices": {"interfaces": [IFACE[0]]}}}
    vmi = msgspec.structs.replace(bare, spec=msgspec.convert(lists, VmiSpec))
    assert complaints_of(looked(objects.vm(IFACE), vmi, annotated())) == []


def test_a_wish_that_nobody_wrote_an_operation_for_gets_one() -> None:
    for nic, kind in ((IFACE, OperationKind.PLUG), (GONE, OperationKind.UNPLUG)):
        vmi = objects.vmi(nic)
        start = start_of(looked(None, vmi, annotated()))
        (wish,) = start.wishes
        assert wish.operation.id == derived_id(objects.VMI_UID, "iface1", kind, 1)
        assert (start.vm, start.vmi, wish.on_vm) == (None, None, False)
        changed = {op["path"] for op in start.vmi_ops(vmi, [wish.operation]) if op["op"] == "add"}
        assert changed == {"/metadata/annotations"}


def test_a_nic_in_the_guest_needs_no_operation() -> None:
    assert not [a for a in plan(looked(None, objects.vmi(IFACE, status=[HERE]), annotated())) if isinstance(a, Start)]


def test_an_unplug_taken_back_half_way_on_the_vmi_is_put_in_force_again() -> None:
    vmi = objects.vmi(IFACE, annotations=noted(UNPLUG), status=[HERE])
    start = start_of(looked(None, vmi, annotated()))
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, GONE[0]]
    assert [wish.operation for wish in start.wishes] == [UNPLUG]


def test_a_nic_asked_for_anew_after_its_unplug_left_nothing_is_a_fresh_plug() -> None:
    again = start_of(looked(None, objects.vmi(IFACE, annotations=noted(UNPLUG)), objects.pod()))
    assert again.wishes[0].operation.kind is OperationKind.PLUG


FAILED = Operation("plug", OperationKind.PLUG, "iface1", traceparent="00-1-2-01", failed="NoFreeSlot")


@pytest.mark.parametrize(
    ("vm", "on_vm"),
    [
        (None, False),
        (objects.vm(), False),
        (objects.vm(IFACE), False),
        (objects.vm(IFACE, annotations=noted(PLUG)), True),
    ],
    ids=["no VM", "of the VMI alone", "in the template since the start", "asked of the template"],
)
def test_a_plug_that_failed_for_good_is_taken_out_again(vm: VirtualMachine | None, on_vm: bool) -> None:
    vmi = objects.vmi(IFACE, owned=vm is not None, annotations=noted(FAILED))
    seen = looked(vm, vmi, annotated(), enabled=False)
    (complaint, start) = plan(seen)
    assert isinstance(complaint, Complain)
    assert isinstance(start, Start)
    assert (complaint.reason, complaint.about) == ("NoFreeSlot", Target.VM if on_vm else Target.VMI)
    (wish,) = start.wishes
    assert wish.on_vm == on_vm
    assert (wish.operation.kind, wish.operation.failed, wish.operation.traceparent) == (
        OperationKind.UNPLUG,
        "NoFreeSlot",
        "00-1-2-01",
    )
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, GONE[0]]
    assert (start.vm is not None) == on_vm


def test_a_template_that_cannot_be_read_is_said_so_and_leaves_the_running_vm_alone() -> None:
    broken = objects.vm(({"bridge": {}}, {"name": "x"}))
    vmi = objects.vmi(IFACE, owned=True, annotations=noted(PLUG))
    complaint, patch = plan(looked(broken, vmi))
    assert isinstance(complaint, Complain)
    assert complaint.reason == "MalformedTemplate"
    assert isinstance(patch, Patch)
    assert patch.target is Target.POD


@pytest.mark.parametrize(
    ("template", "running", "expected"),
    [
        ("down", None, "down"),
        ("down", "up", "down"),
        ("up", "down", "up"),
        (None, "down", None),
        ("down", "down", "same"),
        ("up", "absent", "same"),
    ],
)
def test_a_link_state_of_the_template_is_taken_over_but_for_what_is_absent(
    template: str | None, running: str | None, expected: str | None
) -> None:
    def stated(state: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        return objects.nic("iface1", **({"state": state} if state else {}))

    operation = UNPLUG if running == "absent" else PLUG
    vmi = objects.vmi(stated(running), status=[HERE], owned=True, annotations=noted(operation))
    seen = looked(objects.vm(stated(template)), vmi, annotated())
    patches = [action for action in plan(seen) if isinstance(action, Patch) and action.verb == "link"]
    if expected == "same":
        assert patches == []
        return
    (patch,) = patches
    assert patch.target is Target.VMI
    changed = {op["path"]: op["value"] for op in patch.ops if op["op"] == "add"}
    assert changed == {"/spec/domain/devices/interfaces": [objects.PRIMARY, stated(expected)[0]]}
    assert {
        "op": "test",
        "path": "/spec/domain/devices/interfaces",
        "value": [objects.PRIMARY, stated(running)[0]],
    } in (patch.ops)


def test_the_primary_cards_link_follows_the_template_with_hotplug_off_too() -> None:
    vm = objects.vm()
    vm.spec.template.spec.domain.devices.interfaces[0] = {**objects.PRIMARY, "state": "down"}  # type: ignore[index]
    (patch,) = plan(looked(vm, objects.vmi(owned=True), enabled=False))
    assert isinstance(patch, Patch)
    assert patch.ops[-1]["value"] == [{**objects.PRIMARY, "state": "down"}]


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduled"])
def test_a_nic_of_the_start_has_its_operation_before_the_vm_runs(phase: str) -> None:
    other, gone = objects.nic("other", "net2"), objects.nic("gone", state="absent")
    vmi = objects.vmi(IFACE, other, gone, phase=phase, owned=True, annotations=noted(PLUG))
    start = start_of(looked(objects.vm(IFACE, other), vmi))
    (wish,) = start.wishes
    assert (wish.operation.interface, wish.network, wish.on_vm, wish.on_vmi) == ("other", "default/net2", False, True)
    assert wish.operation.id == derived_id(objects.VMI_UID, "other", OperationKind.PLUG, 1)
    assert {op["path"] for op in start.vmi_ops(vmi, [wish.operation]) if op["op"] == "add"} == {
        f"/metadata/annotations/{operation_key('other').replace('/', '~1')}"
    }
