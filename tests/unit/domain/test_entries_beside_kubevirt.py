"""Operations beside KubeVirt: the annotations of the VMI that name them, and which one an interface belongs to."""

import msgspec
import pytest

from schemas.bus.events import GuestAttached
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.operations import (
    Operation,
    encode_annotation,
    operation_key,
    read_unplug_at,
    stale_operation_keys,
    unplug_key,
)
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.stages import observe_stage
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.template import (
    find_pending_changes,
    find_reverted_unplugs,
    is_template_unplug,
    is_unplugged_until_restart,
    must_keep_operation,
    parse_template,
)
from services.controller.plan.observed_stages import observed_stages
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities

PLUG = Operation("plug", OperationKind.PLUG, "iface1", vm=objects.VM_UID)
UNPLUG = Operation("unplug", OperationKind.UNPLUG, "iface1", vm=objects.VM_UID)
OF_ANOTHER_VM = Operation("copy", OperationKind.PLUG, "iface1", vm="the VM that was cloned")
PRESENT, ABSENT = objects.nic("iface1"), objects.nic("iface1", state="absent")


def entries(*operations: Operation) -> dict[str, str]:
    return {
        (unplug_key if operation.kind is OperationKind.UNPLUG else operation_key)(operation.interface): (
            encode_annotation(operation)
        )
        for operation in operations
    }


@pytest.mark.parametrize(
    ("nics", "written", "expected"),
    [
        ((PRESENT,), (PLUG,), "plug"),
        ((PRESENT,), (PLUG, UNPLUG), "plug"),
        ((ABSENT,), (PLUG, UNPLUG), "unplug"),
        ((ABSENT,), (UNPLUG,), "unplug"),
        ((), (PLUG,), "plug"),
        ((), (PLUG, UNPLUG), "unplug"),
        ((PRESENT,), (OF_ANOTHER_VM,), None),
        ((), (), None),
    ],
    ids=[
        "plugged",
        "unplug before KubeVirt follows it",
        "unplug",
        "unplug of an interface from before hotnic",
        "plug before KubeVirt follows it",
        "after the unplug",
        "copy of another VM",
        "none",
    ],
)
def test_interface_belongs_to_the_entry_of_its_state(
    nics: tuple[tuple[dict[str, object], dict[str, object]], ...], written: tuple[Operation, ...], expected: str | None
) -> None:
    parsed = parse_nics(objects.vmi(*nics, owned=True, annotations=entries(*written)), None)
    operation = parsed.operations.get("iface1")
    assert (operation.id if operation is not None else None) == expected
    for nic in parsed:
        assert nic.has_operation is (expected is not None)
        assert not nic.has_operation or nic.operation.id == expected


def test_both_entries_of_an_interface_can_be_read_by_kind() -> None:
    nics = parse_nics(objects.vmi(PRESENT, owned=True, annotations=entries(PLUG, UNPLUG)), None)
    assert nics.written("iface1", OperationKind.PLUG) == PLUG
    assert nics.written("iface1", OperationKind.UNPLUG) == UNPLUG
    assert nics.written("iface2", OperationKind.PLUG) is None


def test_entries_of_a_vmi_without_a_vm_are_ignored() -> None:
    assert parse_nics(objects.vmi(PRESENT, annotations=entries(PLUG, UNPLUG)), None).operations == {}


def test_entry_under_the_other_key_is_ignored() -> None:
    annotations = {unplug_key("iface1"): encode_annotation(PLUG), unplug_key("b"): encode_annotation(UNPLUG)}
    assert parse_nics(objects.vmi(PRESENT, owned=True, annotations=annotations), None).operations == {}
    assert read_unplug_at(annotations, unplug_key("iface1")) is read_unplug_at(annotations, unplug_key("b")) is None
    assert read_unplug_at(entries(UNPLUG), unplug_key("iface1")) == UNPLUG


@pytest.mark.parametrize(
    ("spec", "in_pod", "written", "found"),
    [
        ("net1", "net1", "net1", (Stage.REQUESTED, "")),
        ("net1", "net1", "net2", (Stage.REQUESTED, "plug")),
        ("net2", "net1", "net1", (Stage.REQUESTED, "")),
        ("net2", "net1", "net2", (Stage.REQUESTED, "plug")),
        ("net2", "net2", "net2", (Stage.GUEST_ATTACHED, "plug")),
    ],
    ids=["edited", "KubeVirt has still to copy it", "copied first", "migration is due", "migrated"],
)
def test_a_change_of_the_nad_is_complete_when_the_pod_has_the_new_network(
    spec: str, in_pod: str, written: str, found: tuple[Stage, str]
) -> None:
    operation = msgspec.structs.replace(PLUG, network=f"default/{written}")
    statuses = encode_network_status([NetworkStatus(f"default/{in_pod}", pod_interface("iface1"))])
    in_guest = {"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}
    vmi = objects.vmi(objects.nic("iface1", spec), owned=True, status=[in_guest], annotations=entries(operation))
    nics = parse_nics(vmi, objects.pod({NETWORK_STATUS: statuses}))
    (status,) = derive_statuses(nics, objects.vm(objects.nic("iface1", "net2")), capabilities("1.9.0"))
    assert (status.stage, status.operation) == found
    # The earlier plug is complete as long as the VMI has its network.
    complete = [
        one.event.operation.network
        for one in observed_stages(nics)
        if one.reached and isinstance(one.event, GuestAttached)
    ]
    assert complete == ([f"default/{spec}"] if spec == in_pod == written else [])


def test_without_the_pod_a_network_that_requires_a_migration_is_not_taken_for_attached() -> None:
    finished = {"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}
    for required, stage in (("False", Stage.GUEST_ATTACHED), ("True", Stage.REQUESTED)):
        conditions = [{"type": "MigrationRequired", "status": required}]
        nics = parse_nics(objects.vmi(PRESENT, owned=True, status=[finished], conditions=conditions), None)
        assert observe_stage(nics, nics.nics["iface1"]) is stage


def test_entry_on_a_vm_is_a_copy() -> None:
    assert parse_template(objects.vm(PRESENT, annotations=entries(PLUG))).operations == {}


def test_unplug_beside_kubevirt_comes_from_the_template() -> None:
    present, absent = parse_template(objects.vm(PRESENT)), parse_template(objects.vm(ABSENT))
    leaving = parse_nics(objects.vmi(ABSENT, owned=True, annotations=entries(PLUG, UNPLUG)), None)
    assert is_template_unplug(absent, leaving, "iface1")
    assert [desired.name for desired in find_reverted_unplugs(present, leaving)] == ["iface1"]
    assert not must_keep_operation(present, leaving, "iface1")
    gone = parse_nics(objects.vmi(owned=True, annotations=entries(PLUG, UNPLUG)), None)
    assert not is_unplugged_until_restart(gone, "iface1"), "KubeVirt plugs it again at once"
    assert [desired.name for desired in find_pending_changes(present, gone)] == ["iface1"]
    before = parse_nics(objects.vmi(PRESENT, owned=True, annotations=entries(PLUG, UNPLUG)), None)
    assert [desired.kind for desired in find_pending_changes(absent, before)] == [OperationKind.UNPLUG]


def test_entries_of_both_kinds_become_stale() -> None:
    annotations = entries(PLUG, UNPLUG)
    assert stale_operation_keys(annotations, {interface_hash("iface1")}) == []
    assert sorted(stale_operation_keys(annotations, set())) == sorted(annotations)
