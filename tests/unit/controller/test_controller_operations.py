"""Tables of the operations that the controller starts, and of the changes that it rejects with a warning."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import NETWORKS, NetworkSelectionElement, encode_networks
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance, VmiSpec
from schemas.kubernetes.operations import Operation, derive_operation_id, encode_annotation, held_by, operation_key
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.controller.plan import Observed, PatchObject, PatchTarget, StartOperations, WarnUser, plan
from services.controller.plan.actions import requested_event
from tests.support.observed import objects
from tests.support.observed.observations import NOW, controller_observed

IFACE, ABSENT_IFACE = objects.nic("iface1"), objects.nic("iface1", state="absent")
PLUG, UNPLUG = Operation("plug", OperationKind.PLUG, "iface1"), Operation("unplug", OperationKind.UNPLUG, "iface1")
FILLED_IN = objects.nic("iface1", macAddress="02:00:00:00:00:07", model="virtio")
IN_DOMAIN = {"name": "iface1", "infoSource": "domain"}
EDIT = f"{objects.VMI_UID}/{objects.VM_UID}"


def annotations_of(*operations: Operation) -> dict[str, str]:
    return {operation_key(operation.interface): encode_annotation(operation) for operation in operations}


def annotated(link: str = pod_interface("iface1")) -> Pod:
    return objects.pod({NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=link)])})


def observation(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: Pod | None = None, **fields: Any
) -> Observed:
    return controller_observed(vm, vmi, pod or (objects.pod() if vmi is not None else None), **fields)


def start_of(observed: Observed) -> StartOperations:
    (start,) = [action for action in plan(observed) if isinstance(action, StartOperations)]
    return start


def warnings_of(observed: Observed) -> list[WarnUser]:
    return [action for action in plan(observed) if isinstance(action, WarnUser)]


def test_template_interface_is_copied_as_written_with_the_vms_operation() -> None:
    written = objects.nic("iface1", macAddress="02:00:00:00:00:07", model="virtio")
    vmi = objects.vmi(owned=True)
    observed = observation(objects.vm(written, annotations=annotations_of(PLUG)), vmi)
    start = start_of(observed)
    (started,) = start.started
    assert (started.operation, started.on_vm, started.network) == (PLUG, False, "default/net1")
    assert observed.vm is not None
    assert start.vm_ops(observed.vm, [PLUG]) == []
    values = {op["path"]: op["value"] for op in start.vmi_ops(vmi, [PLUG]) if op["op"] == "add"}
    assert values["/spec/networks"] == [objects.PRIMARY_NETWORK, written[1]]
    assert values["/spec/domain/devices/interfaces"] == [objects.PRIMARY, written[0]]
    assert values["/metadata/annotations"] == annotations_of(held_by(PLUG, objects.VMI_UID))
    assert str(requested_event(started, PLUG, vmi).subject) == "hotplug.requested.node1.default.vm1"


@pytest.mark.parametrize("stale", [{}, annotations_of(UNPLUG)], ids=["no operation", "operation of an earlier unplug"])
def test_edit_of_the_template_gets_an_operation_on_the_vm(stale: dict[str, str]) -> None:
    vm = objects.vm(IFACE, annotations=stale, generation=7)
    start = start_of(observation(vm, objects.vmi(owned=True)))
    (started,) = start.started
    assert started.on_vm
    assert started.operation == Operation(
        derive_operation_id(EDIT, "iface1", OperationKind.PLUG, 7), OperationKind.PLUG, "iface1", requested_at=NOW
    )
    traced = Operation("x", OperationKind.PLUG, "iface1", traceparent="00-1-2-01")
    held = held_by(traced, objects.VM_UID)
    assert start.vm_ops(vm, [traced])[-1]["value"] in (encode_annotation(held), annotations_of(held))


def test_absent_state_of_the_template_is_copied_to_the_vmi() -> None:
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])
    start = start_of(observation(objects.vm(ABSENT_IFACE, annotations=annotations_of(UNPLUG)), vmi, annotated()))
    assert [started.operation for started in start.started] == [UNPLUG]
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, ABSENT_IFACE[0]]
    assert start.vmi.networks == vmi.spec.networks


def test_plug_and_unplug_of_one_edit_start_together() -> None:
    vm = objects.vm(ABSENT_IFACE, objects.nic("iface2"), objects.nic("iface3"))
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])
    start = start_of(observation(vm, vmi, annotated()))
    assert [(started.operation.interface, started.operation.kind) for started in start.started] == [
        ("iface1", OperationKind.UNPLUG),
        ("iface2", OperationKind.PLUG),
        ("iface3", OperationKind.PLUG),
    ]
    assert len(start_of(observation(vm, vmi, annotated(), one_at_a_time=True)).started) == 1
    later = start_of(observation(vm, vmi, annotated(), refused_interfaces=frozenset({"iface1"})))
    assert [started.operation.interface for started in later.started] == ["iface2", "iface3"]


FIRST, SECOND = objects.COLLIDING
IMPOSSIBLE = [
    (
        "two names collide",
        objects.vm(objects.nic(FIRST), objects.nic(SECOND)),
        objects.vmi(owned=True),
        "same link names",
        1,
    ),
    (
        "collision with the VMI",
        objects.vm(objects.nic(FIRST)),
        objects.vmi(objects.nic(SECOND), owned=True),
        "same link",
        1,
    ),
    (
        "masquerade",
        objects.vm(({"name": "iface1", "masquerade": {}}, IFACE[1])),
        objects.vmi(owned=True),
        "does not use the bridge binding",
        0,
    ),
    (
        "sriov",
        objects.vm(({"name": "iface1", "sriov": {}}, IFACE[1])),
        objects.vmi(owned=True),
        "does not use the b",
        0,
    ),
    ("model", objects.vm(objects.nic("iface1", model="e1000")), objects.vmi(owned=True), "only virtio", 0),
    (
        "impossible MAC beside another plug",
        objects.vm(objects.nic("iface1", macAddress="67:4f:16:00:00:01"), objects.nic("iface2")),
        objects.vmi(owned=True),
        "multicast",
        1,
    ),
    (
        "two plugs with one MAC",
        objects.vm(FILLED_IN, objects.nic("iface2", macAddress="0200.0000.0007")),
        objects.vmi(owned=True),
        "MAC address 02:00:00:00:00:07 of interface 'iface1'",
        1,
    ),
    (
        "unknown link state",
        objects.vm(objects.nic("iface1", state="paused")),
        objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN]),
        "unknown state 'paused'",
        0,
    ),
    ("name", objects.vm(objects.nic("a.b")), objects.vmi(owned=True), "is malformed", 0),
    (
        "no network",
        objects.vm((IFACE[0], {"name": "other"})),
        objects.vmi(owned=True),
        "no network of the same name",
        0,
    ),
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
        "reverted unplug",
        objects.vm(IFACE, annotations=annotations_of(UNPLUG)),
        objects.vmi(ABSENT_IFACE, owned=True, annotations=annotations_of(UNPLUG), status=[IN_DOMAIN]),
        "which is final",
        0,
    ),
]


@pytest.mark.parametrize(
    ("vm", "vmi", "text", "count"), [row[1:] for row in IMPOSSIBLE], ids=[row[0] for row in IMPOSSIBLE]
)
def test_impossible_edit_changes_nothing_and_is_reported(
    vm: VirtualMachine, vmi: VirtualMachineInstance, text: str, count: int
) -> None:
    observed = observation(vm, vmi)
    (warning,) = warnings_of(observed)
    assert (warning.target, warning.reason) == (PatchTarget.VM, "InterfaceChangeRejected")
    assert text in warning.message
    started = [one for action in plan(observed) if isinstance(action, StartOperations) for one in action.started]
    assert len(started) == count
    assert warnings_of(observed) == [warning]


def test_unplug_is_rejected_for_ordinal_names_and_waits_for_unknown_ones() -> None:
    vm = objects.vm(ABSENT_IFACE)
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])
    (warning,) = warnings_of(observation(vm, vmi, annotated("net1")))
    assert "ordinal interface names" in warning.message
    assert plan(controller_observed(vm, vmi, None)) == []
    edited = objects.vmi(ABSENT_IFACE, annotations=annotations_of(PLUG), status=[IN_DOMAIN])
    (on_vmi,) = warnings_of(observation(None, edited, annotated("net1")))
    assert on_vmi.target is PatchTarget.VMI


def test_disabled_feature_gate_rejects_template_changes() -> None:
    observed = observation(objects.vm(IFACE), objects.vmi(owned=True), enabled=False)
    (warning,) = plan(observed)
    assert isinstance(warning, WarnUser)
    assert "HotplugNICs is off" in warning.message


@pytest.mark.parametrize(
    ("vm", "vmi"),
    [
        (objects.vm(), objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])),
        (
            objects.vm(IFACE),
            objects.vmi(ABSENT_IFACE, owned=True, annotations=annotations_of(UNPLUG), status=[IN_DOMAIN]),
        ),
        (objects.vm(IFACE), objects.vmi(owned=True, annotations=annotations_of(UNPLUG))),
        (objects.vm(IFACE), objects.vmi(owned=False)),
        (objects.vm(IFACE, deletionTimestamp=NOW), objects.vmi(owned=True)),
        (objects.vm(IFACE), objects.vmi(owned=True, phase="Succeeded")),
        (objects.vm(), objects.vmi(({"name": "x", "masquerade": {}}, {"name": "x"}), owned=True)),
        (objects.vm(IFACE), objects.vmi(FILLED_IN, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])),
        (objects.vm(objects.nic("iface1", "net2")), objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG))),
    ],
    ids=[
        "missing from the template",
        "being unplugged from the VMI only",
        "unplugged from the VMI only",
        "VMI of another VM",
        "VM being deleted",
        "VMI ended",
        "nothing to do",
        "a webhook's MAC and a preference's model on the VMI (kubevirt#15881, #18955)",
        "another network, which needs a restart",
    ],
)
def test_no_action_is_planned_without_a_requested_change(vm: VirtualMachine, vmi: VirtualMachineInstance) -> None:
    pod = annotated() if vmi.spec.interface_items()[-1].name == "iface1" else objects.pod()
    assert plan(observation(vm, vmi, pod)) == []


def test_explicit_pod_network_equals_an_implicit_one() -> None:
    bare = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG), status=[IN_DOMAIN])
    lists = {"networks": [IFACE[1]], "domain": {"devices": {"interfaces": [IFACE[0]]}}}
    vmi = msgspec.structs.replace(bare, spec=msgspec.convert(lists, VmiSpec))
    assert warnings_of(observation(objects.vm(IFACE), vmi, annotated())) == []


def test_vmi_interface_without_an_operation_is_adopted() -> None:
    for nic, kind in ((IFACE, OperationKind.PLUG), (ABSENT_IFACE, OperationKind.UNPLUG)):
        vmi = objects.vmi(nic)
        start = start_of(observation(None, vmi, annotated()))
        (started,) = start.started
        assert started.operation.id == derive_operation_id(objects.VMI_UID, "iface1", kind, 1)
        assert (start.vm, start.vmi, started.on_vm) == (None, None, False)
        changed = {op["path"] for op in start.vmi_ops(vmi, [started.operation]) if op["op"] == "add"}
        assert changed == {"/metadata/annotations"}


def test_interface_in_the_guest_is_not_adopted() -> None:
    assert not [
        a
        for a in plan(observation(None, objects.vmi(IFACE, status=[IN_DOMAIN]), annotated()))
        if isinstance(a, StartOperations)
    ]


def test_reverted_unplug_of_the_vmi_is_restored() -> None:
    vmi = objects.vmi(IFACE, annotations=annotations_of(UNPLUG), status=[IN_DOMAIN])
    start = start_of(observation(None, vmi, annotated()))
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, ABSENT_IFACE[0]]
    assert [started.operation for started in start.started] == [UNPLUG]


def test_interface_added_after_its_unplug_is_a_new_plug() -> None:
    restarted = start_of(observation(None, objects.vmi(IFACE, annotations=annotations_of(UNPLUG)), objects.pod()))
    assert restarted.started[0].operation.kind is OperationKind.PLUG


FAILED = Operation("plug", OperationKind.PLUG, "iface1", traceparent="00-1-2-01", failed="NoFreeSlot")


@pytest.mark.parametrize(
    ("vm", "on_vm"),
    [
        (None, False),
        (objects.vm(), False),
        (objects.vm(IFACE), False),
        (objects.vm(IFACE, annotations=annotations_of(PLUG)), True),
    ],
    ids=["no VM", "plugged on the VMI only", "in the template since the start", "plugged through the template"],
)
def test_failed_plug_is_undone(vm: VirtualMachine | None, on_vm: bool) -> None:
    vmi = objects.vmi(IFACE, owned=vm is not None, annotations=annotations_of(FAILED))
    observed = observation(vm, vmi, annotated(), enabled=False)
    (warning, start) = plan(observed)
    assert isinstance(warning, WarnUser)
    assert isinstance(start, StartOperations)
    assert (warning.reason, warning.target) == ("NoFreeSlot", PatchTarget.VM if on_vm else PatchTarget.VMI)
    (started,) = start.started
    assert started.on_vm == on_vm
    assert (started.operation.kind, started.operation.failed, started.operation.traceparent) == (
        OperationKind.UNPLUG,
        "NoFreeSlot",
        "00-1-2-01",
    )
    assert start.vmi is not None
    assert start.vmi.interfaces == [objects.PRIMARY, ABSENT_IFACE[0]]
    assert (start.vm is not None) == on_vm


def test_a_failure_that_nobody_knows_is_no_reason_of_an_event() -> None:
    """Who creates a VMI can write an operation with it; each reason of an object has an Event."""
    plugs = annotations_of(msgspec.structs.replace(FAILED, failed="SaidTheTenant"))
    warning, start = plan(observation(None, objects.vmi(IFACE, annotations=plugs), annotated(), enabled=False))
    assert isinstance(warning, WarnUser)
    assert (warning.reason, "SaidTheTenant" in warning.message) == ("PlugFailed", True)
    assert isinstance(start, StartOperations)


def test_no_plug_has_failed_whose_device_is_in_the_domain() -> None:
    """A node that says so later would take an interface out of the VM's template."""
    status = [{"name": "iface1", "infoSource": "domain, multus-status"}]
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(FAILED), status=status)
    observed = observation(objects.vm(IFACE, annotations=annotations_of(PLUG)), vmi, annotated(), enabled=False)
    assert not [action for action in plan(observed) if isinstance(action, WarnUser | StartOperations)]


@pytest.mark.parametrize("nics", [[({"bridge": {}}, {"name": "x"})], [objects.nic(f"n{n}") for n in range(200)]])
def test_malformed_template_is_reported_and_the_vmi_is_still_reconciled(nics: list[Any]) -> None:
    broken = objects.vm(*nics)
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations_of(PLUG))
    warning, patch = plan(observation(broken, vmi))
    assert isinstance(warning, WarnUser)
    assert warning.reason == "MalformedTemplate"
    assert isinstance(patch, PatchObject)
    assert patch.target is PatchTarget.POD


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
def test_link_state_is_copied_unless_an_interface_is_absent(
    template: str | None, running: str | None, expected: str | None
) -> None:
    def nic_with_state(state: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        return objects.nic("iface1", **({"state": state} if state else {}))

    operation = UNPLUG if running == "absent" else PLUG
    vmi = objects.vmi(nic_with_state(running), status=[IN_DOMAIN], owned=True, annotations=annotations_of(operation))
    observed = observation(objects.vm(nic_with_state(template)), vmi, annotated())
    patches = [action for action in plan(observed) if isinstance(action, PatchObject) and action.verb == "link"]
    if expected == "same":
        assert patches == []
        return
    (patch,) = patches
    assert patch.target is PatchTarget.VMI
    changed = {op["path"]: op["value"] for op in patch.ops if op["op"] == "add"}
    assert changed == {"/spec/domain/devices/interfaces": [objects.PRIMARY, nic_with_state(expected)[0]]}
    assert {
        "op": "test",
        "path": "/spec/domain/devices/interfaces",
        "value": [objects.PRIMARY, nic_with_state(running)[0]],
    } in (patch.ops)


def test_link_state_of_the_primary_interface_is_copied_with_the_gate_disabled() -> None:
    vm = objects.vm()
    vm.spec.template.spec.domain.devices.interfaces[0] = {**objects.PRIMARY, "state": "down"}  # type: ignore[index]
    (patch,) = plan(observation(vm, objects.vmi(owned=True), enabled=False))
    assert isinstance(patch, PatchObject)
    assert patch.ops[-1]["value"] == [{**objects.PRIMARY, "state": "down"}]


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduled"])
def test_interface_present_at_start_is_adopted_before_the_vmi_runs(phase: str) -> None:
    other, absent = objects.nic("other", "net2"), objects.nic("gone", state="absent")
    vmi = objects.vmi(IFACE, other, absent, phase=phase, owned=True, annotations=annotations_of(PLUG))
    start = start_of(observation(objects.vm(IFACE, other), vmi))
    (started,) = start.started
    assert (started.operation.interface, started.network, started.on_vm, started.on_vmi) == (
        "other",
        "default/net2",
        False,
        True,
    )
    assert started.operation.id == derive_operation_id(objects.VMI_UID, "other", OperationKind.PLUG, 1)
    assert {op["path"] for op in start.vmi_ops(vmi, [started.operation]) if op["op"] == "add"} == {
        f"/metadata/annotations/{operation_key('other').replace('/', '~1')}"
    }


@pytest.mark.parametrize(
    "copied",
    [
        Operation("x", OperationKind.PLUG, "iface1", failed="NoFreeSlot"),
        Operation("x", OperationKind.UNPLUG, "iface1", released="another pod"),
    ],
    ids=["failed plug", "unplug"],
)
def test_a_created_vmi_with_operations_of_another_one_keeps_its_interfaces(copied: Operation) -> None:
    """A restored VMI must not lose an interface to an operation that ended on the VMI of the backup."""
    annotations = annotations_of(held_by(copied, "uid of the VMI of the backup"))
    vmi = objects.vmi(IFACE, owned=True, annotations=annotations)
    (started,) = start_of(observation(objects.vm(IFACE), vmi, annotated())).started
    assert (started.operation.kind, started.operation.id == "x") == (OperationKind.PLUG, False)
    own = objects.vmi(IFACE, owned=True, annotations=annotations_of(held_by(copied, objects.VMI_UID)))
    (started,) = start_of(observation(objects.vm(IFACE), own, annotated())).started
    assert started.operation.kind is OperationKind.UNPLUG
