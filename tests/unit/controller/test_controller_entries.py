"""The plan of a controller beside KubeVirt: which entries of operations a VMI gets and loses."""

from collections.abc import Iterable
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.domain.kubevirt.capabilities import HOTPLUG_GATE, Capabilities
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.controller.observe import parse_objects
from services.controller.plan.actions import Observed, PatchTarget
from services.controller.plan.observing import EntryChanges, NewEntry, plan_entries
from services.controller.plan.warnings import plan_warnings
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.recorded_kubevirt import recorded_pods, recorded_vm, recorded_vmi

PLUG, UNPLUG = OperationKind.PLUG, OperationKind.UNPLUG
NOW = "2026-11-28T12:00:00.000Z"
RECENT, OLD = "2026-11-28T11:59:40.000Z", "2026-11-28T11:58:00.000Z"
DEFAULT = {"name": "default", "infoSource": "domain", "mac": "02:00:00:00:00:01"}
IN_GUEST = {"name": "blue", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}
BLUE, ABSENT = objects.nic("blue"), objects.nic("blue", state="absent")
NET1, NET2, NET3 = "default/net1", "default/net2", "default/net3"


def entry(
    kind: OperationKind, *, vm: str | None = objects.VM_UID, at: str = OLD, nad: str | None = None
) -> dict[str, str]:
    """Return the annotation with an entry of the interface ``blue``."""
    key = unplug_key("blue") if kind is UNPLUG else operation_key("blue")
    return {key: encode_annotation(Operation(f"id-{kind}", kind, "blue", requested_at=at, vm=vm, network=nad))}


def attached() -> Pod:
    """Return the launcher pod with ``blue`` in its network-status."""
    return objects.pod({NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", pod_interface("blue"))])})


def planned(
    vm: VirtualMachine | None, vmi: VirtualMachineInstance, pods: Iterable[Pod] = (), beside: Capabilities | None = None
) -> EntryChanges:
    """Return the plan for these objects."""
    return plan_entries(observation(vm, vmi, next(iter(pods), None)), beside or capabilities("1.9.0"))


def observation(vm: VirtualMachine | None, vmi: VirtualMachineInstance, pod: Pod | None) -> Observed:
    return parse_objects(vm, vmi, pod, enabled=True, now=NOW, refused_interfaces=frozenset(), one_at_a_time=False)


def vmi(*nics: Any, annotations: dict[str, str] | None = None, **fields: Any) -> VirtualMachineInstance:
    """Return a running VMI of the VM, with its primary interface in the guest."""
    return objects.vmi(*nics, owned=True, annotations=annotations, **{"status": [DEFAULT], **fields})


@pytest.mark.parametrize(
    ("vm", "found", "pod", "added"),
    [
        pytest.param(objects.vm(BLUE), vmi(), objects.pod(), [NewEntry(PLUG, "blue", "default/net1")], id="template"),
        pytest.param(objects.vm(BLUE), vmi(BLUE), objects.pod(), [NewEntry(PLUG, "blue", "default/net1")], id="vmi"),
        pytest.param(objects.vm(BLUE), vmi(BLUE), attached(), [NewEntry(PLUG, "blue", "default/net1")], id="attached"),
        pytest.param(objects.vm(BLUE), vmi(BLUE, status=[DEFAULT, IN_GUEST]), attached(), [], id="from-the-start"),
        pytest.param(
            objects.vm(BLUE),
            vmi(BLUE, status=[DEFAULT, {"name": "blue", "mac": "02:00:00:00:00:02"}]),
            attached(),
            [],
            id="finished-without-info-source",
        ),
        pytest.param(objects.vm(BLUE), vmi(BLUE, status=[]), attached(), [], id="starting"),
        pytest.param(objects.vm(BLUE), vmi(BLUE, phase="Scheduled"), objects.pod(), [], id="not-running"),
        pytest.param(objects.vm(BLUE), vmi(BLUE, migrationState={"completed": False}), attached(), [], id="hand-over"),
        pytest.param(objects.vm(BLUE), vmi(annotations=entry(PLUG, at=RECENT)), objects.pod(), [], id="of-the-api"),
        pytest.param(
            objects.vm(BLUE),
            vmi(annotations=entry(PLUG, vm="another")),
            objects.pod(),
            [NewEntry(PLUG, "blue", "default/net1")],
            id="of-a-clone",
        ),
        pytest.param(
            objects.vm(ABSENT),
            vmi(BLUE, status=[DEFAULT, IN_GUEST], annotations=entry(PLUG)),
            attached(),
            [NewEntry(UNPLUG, "blue")],
            id="template-unplugs",
        ),
        pytest.param(
            objects.vm(ABSENT),
            vmi(ABSENT, annotations=entry(PLUG)),
            attached(),
            [NewEntry(UNPLUG, "blue")],
            id="absent",
        ),
        pytest.param(
            objects.vm(ABSENT), vmi(ABSENT, annotations=entry(UNPLUG)), attached(), [], id="absent-with-entry"
        ),
    ],
)
def test_a_change_in_progress_gets_an_entry(
    vm: VirtualMachine, found: VirtualMachineInstance, pod: Pod, added: list[NewEntry]
) -> None:
    changes = planned(vm, found, [pod])
    assert (list(changes.added), changes.removed) == (added, ())


@pytest.mark.parametrize(
    ("vm", "found", "removed", "due"),
    [
        pytest.param(
            objects.vm(),
            vmi(annotations=entry(PLUG) | entry(UNPLUG, at=RECENT)),
            {operation_key("blue"), unplug_key("blue")},
            None,
            id="unplugged",
        ),
        pytest.param(objects.vm(), vmi(annotations=entry(PLUG, at=RECENT)), set(), 40.0, id="edit-may-come"),
        pytest.param(objects.vm(), vmi(annotations=entry(PLUG)), {operation_key("blue")}, None, id="edit-never-came"),
        pytest.param(
            objects.vm(BLUE),
            vmi(BLUE, status=[DEFAULT, IN_GUEST], annotations=entry(PLUG) | entry(UNPLUG)),
            {unplug_key("blue")},
            None,
            id="unplug-never-came",
        ),
        pytest.param(
            objects.vm(BLUE),
            vmi(BLUE, status=[DEFAULT, IN_GUEST], annotations=entry(PLUG) | entry(UNPLUG, at=RECENT)),
            set(),
            40.0,
            id="unplug-may-come",
        ),
        pytest.param(
            objects.vm(ABSENT), vmi(ABSENT, annotations=entry(PLUG) | entry(UNPLUG)), set(), None, id="being-unplugged"
        ),
        pytest.param(
            objects.vm(ABSENT), vmi(annotations=entry(PLUG) | entry(UNPLUG)), set(), None, id="left-in-the-template"
        ),
        pytest.param(
            objects.vm(),
            vmi(BLUE, status=[DEFAULT, IN_GUEST], annotations=entry(PLUG)),
            set(),
            None,
            id="dropped-without-absent",
        ),
        pytest.param(objects.vm(), vmi(annotations=entry(PLUG, vm="another")), set(), None, id="of-a-clone"),
        pytest.param(objects.vm(), vmi(annotations=entry(PLUG, vm=None)), set(), None, id="hotnic-owned-the-vms"),
    ],
)
def test_an_entry_is_removed_when_its_change_has_ended_or_never_came(
    vm: VirtualMachine, found: VirtualMachineInstance, removed: set[str], due: float | None
) -> None:
    changes = planned(vm, found, [attached()])
    assert (changes.added, set(changes.removed), changes.next_orphan) == ((), removed, due)


@pytest.mark.parametrize(
    ("template", "spec", "written", "added", "removed"),
    [
        pytest.param("net2", "net1", NET1, NET2, False, id="changed"),
        pytest.param("net2", "net1", None, NET2, False, id="changed-without-an-entry"),
        pytest.param("net2", "net2", NET1, NET2, False, id="copied-to-the-vmi-before-it-was-seen"),
        pytest.param("net2", "net2", "unknown", NET2, False, id="entry-of-an-earlier-version"),
        pytest.param("net2", "net1", NET2, None, False, id="has-its-entry"),
        pytest.param("net2", "net2", NET2, None, False, id="migration-is-due"),
        pytest.param("net3", "net2", NET2, NET3, False, id="changed-again"),
        pytest.param("net1", "net2", NET2, None, True, id="taken-back"),
        pytest.param("net1", "net1", NET2, None, True, id="taken-back-on-the-vmi-too"),
        pytest.param("net1", "net1", NET1, None, False, id="plugged"),
    ],
)
def test_a_change_of_the_nad_is_an_operation_of_its_own(
    template: str, spec: str, written: str | None, added: str | None, removed: bool
) -> None:
    annotations = entry(PLUG, nad=None if written == "unknown" else written) if written is not None else {}
    found = vmi(objects.nic("blue", spec), status=[DEFAULT, IN_GUEST], annotations=annotations)
    changes = planned(objects.vm(objects.nic("blue", template)), found, [attached()])
    assert [(new.kind, new.network) for new in changes.added] == ([(PLUG, added)] if added is not None else [])
    assert changes.removed == ((operation_key("blue"),) if removed else ())


@pytest.mark.parametrize(
    "beside", [capabilities("1.0.1"), capabilities("1.3.0", gate=HOTPLUG_GATE)], ids=["1.0", "gate"]
)
def test_an_edit_that_this_kubevirt_does_not_follow_gets_no_entry(beside: Capabilities) -> None:
    assert planned(objects.vm(BLUE), vmi(), [objects.pod()], beside) == EntryChanges()


def test_a_change_of_the_nad_that_kubevirt_does_not_follow_leaves_the_entry_of_the_plug() -> None:
    plugged = vmi(BLUE, status=[DEFAULT, IN_GUEST], annotations=entry(PLUG, nad=NET1))
    changed = objects.vm(objects.nic("blue", "net2"))
    assert planned(changed, plugged, [attached()], capabilities("1.7.0")) == EntryChanges()


def test_a_vmi_without_a_vm_gets_no_entry() -> None:
    assert planned(None, objects.vmi(BLUE), [objects.pod()]) == EntryChanges()
    # A VM of the same name that did not create the VMI.
    assert planned(objects.vm(BLUE), objects.vmi(BLUE), [objects.pod()]) == EntryChanges()


def test_of_two_interfaces_with_one_key_the_first_gets_the_entry() -> None:
    first, second = objects.COLLIDING
    vm = objects.vm(objects.nic(first), objects.nic(second))
    changes = planned(vm, vmi(), [objects.pod()])
    assert [new.interface for new in changes.added] == [first]
    (operation,) = (Operation("1", PLUG, first, requested_at=NOW, vm=objects.VM_UID),)
    patched = vmi(annotations={operation_key(first): encode_annotation(operation)})
    assert planned(vm, patched, [objects.pod()]) == EntryChanges()


def test_the_patch_applies_only_while_nobody_else_wrote_the_entry() -> None:
    found = vmi(annotations={"some": "thing"})
    changes = EntryChanges(added=(NewEntry(PLUG, "blue", "default/net1"),))
    ops = changes.ops(found, [Operation("1", PLUG, "blue", vm=objects.VM_UID)])
    path = f"/metadata/annotations/hotnic.io~1{operation_key('blue').removeprefix('hotnic.io/')}"
    assert ops[:2] == [
        {"op": "test", "path": "/metadata/uid", "value": objects.VMI_UID},
        {"op": "test", "path": path, "value": None},
    ]
    assert [(op["op"], op["path"]) for op in ops[2:]] == [("add", path)]


@pytest.mark.parametrize(
    ("moment", "added"),
    [
        ("v1.9.0-a-plugged", []),
        ("v1.9.0-b-migrated", []),
        ("v1.9.0-b-pending", [(PLUG, "blue")]),
        ("v1.9.0-b-required", [(PLUG, "blue")]),
        ("v1.9.0-c-unplug-guest-holds", [(UNPLUG, "blue")]),
        ("v1.9.0-d-last-gone", []),
        ("v1.9.0-g-nad-changed", [(PLUG, "sec1")]),
        ("v1.9.0-s-sriov-pending", [(PLUG, "sr1")]),
        ("v1.0.1-plugged", []),
        ("v1.0.1-unplugging", [(UNPLUG, "sec1"), (UNPLUG, "hot1")]),
    ],
)
def test_objects_that_kubevirt_wrote(moment: str, added: list[tuple[OperationKind, str]]) -> None:
    pods = recorded_pods(moment)
    newest = sorted(pods, key=lambda pod: pod.metadata.creation_timestamp or "")[-1:]
    beside = capabilities("1.0.1" if moment.startswith("v1.0.1") else "1.9.0")
    changes = planned(recorded_vm(moment), recorded_vmi(moment), newest, beside)
    assert ([(new.kind, new.interface) for new in changes.added], changes.removed) == (added, ())


@pytest.mark.parametrize(
    ("moment", "methods", "warned"),
    [
        ("v1.0.1-unplugging", (), [("hot1", "LastInterfaceStays")]),
        ("v1.9.0-a-plugged", (), []),
        ("v1.9.0-b-pending", (), []),
        ("v1.9.0-b-required", ("LiveMigrate",), []),
        ("v1.9.0-b-required", (), [("blue", "MigrationNotConfigured")]),
        ("v1.9.0-b-required", ("Evict",), [("blue", "WillBeShutDown")]),
        ("v1.9.0-f-model-changed", (), [("sec1", "RestartRequired")]),
        ("v1.9.0-n-vmi-patch-refused", (), [("denyvmi", "HotPlugNetworkInterfaceError")]),
    ],
)
def test_users_are_warned_of_what_ends_badly_or_never(
    moment: str, methods: tuple[str, ...], warned: list[tuple[str, str]]
) -> None:
    nics = parse_nics(recorded_vmi(moment), next(reversed(recorded_pods(moment)), None))
    beside = capabilities(moment.partition("-")[0], *methods)
    found = list(plan_warnings(derive_statuses(nics, recorded_vm(moment), beside)))
    assert {warning.target for warning in found} <= {PatchTarget.VM}
    assert [(warning.message.split()[1].rstrip(":"), warning.reason) for warning in found] == warned
    assert all("docs/beside-kubevirt.md#" in warning.message for warning in found)
