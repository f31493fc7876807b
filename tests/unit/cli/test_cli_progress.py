"""The progress of a plug operation as ``--wait`` shows it, and the warning events of an interface."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, derive_operation_id, encode_annotation, held_by, operation_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.commands.status import COLUMNS, WIDE_COLUMNS, cells, document
from services.cli.operations.hotplug_status import MAX_MESSAGES, StatusView, messages_about, status_of_objects
from services.cli.operations.progress import OperationProgress, OperationResult, progress_message
from tests.support.observed import objects

LINK = pod_interface("iface1")
ANNOTATED = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
ATTACHED = ANNOTATED | {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}
OPERATION = {operation_key("iface1"): encode_annotation(Operation("op", OperationKind.PLUG, "iface1"))}
STATES: list[tuple[dict[str, str], str | None]] = [
    ({}, None),
    (ANNOTATED, None),
    (ATTACHED, "multus-status"),
    (ATTACHED, "domain, multus-status"),
]


def state(step: int, **fields: Any) -> tuple[VirtualMachineInstance, list[Pod]]:
    annotations, source = STATES[step]
    status = [{"name": "iface1", "infoSource": source, "mac": "02:01"}] if source else None
    vmi = objects.vmi(objects.nic("iface1"), status=status, annotations=OPERATION, **fields)
    return vmi, [objects.pod(annotations)]


@given(st.lists(st.integers(0, 3), min_size=1))
def test_every_stage_is_reported_once_and_in_order(steps: list[int]) -> None:
    progress = OperationProgress("iface1", "op")
    reported = [stage for step in steps for stage in progress.observe(*state(step))]
    assert reported == list(stage_path(OperationKind.PLUG))[: max(steps) + 1]
    assert (progress.outcome is not None) == (3 in steps)


def test_plug_completes_when_both_writers_of_the_status_are_done() -> None:
    progress = OperationProgress("iface1", "op")
    vmi = objects.vmi(objects.nic("iface1"), status=[{"name": "iface1", "infoSource": "domain"}], annotations=OPERATION)
    assert progress.observe(vmi, [objects.pod(ATTACHED)])[-1] is Stage.GUEST_ATTACHED
    assert progress.outcome is None
    assert progress.nic_status is not None
    assert "status" in progress_message(progress.nic_status)
    progress.observe(*state(3))
    assert progress.outcome is not None
    assert progress.outcome.result is OperationResult.ATTACHED


@pytest.mark.parametrize(
    ("vmi", "text"),
    [
        (None, "deleted"),
        (objects.vmi(objects.nic("iface1"), phase="Succeeded", annotations=OPERATION), "Succeeded"),
        (objects.vmi(annotations=OPERATION), "removed from the VM's spec"),
        (objects.vmi(objects.nic("iface1")), "replaced it"),
    ],
    ids=["deleted", "stopped", "removed from the spec", "another operation"],
)
def test_operation_that_cannot_complete_fails(vmi: VirtualMachineInstance | None, text: str) -> None:
    progress = OperationProgress("iface1", "op")
    assert progress.observe(vmi, [objects.pod(ATTACHED)]) == []
    assert progress.outcome is not None
    assert progress.outcome.result is OperationResult.FAILED
    assert text in progress.outcome.message


def test_progress_message_names_the_role_that_is_waited_for() -> None:
    progress = OperationProgress("iface1", "op")
    progress.observe(*state(2))
    assert progress.nic_status is not None
    message = "reached stage multus-attached, waiting for handler (WaitingForGuestAttached)"
    assert progress_message(progress.nic_status) == message


FAILED = {
    operation_key("iface1"): encode_annotation(Operation("op", OperationKind.PLUG, "iface1", failed="NoFreeSlot"))
}
UNDONE = {
    operation_key("iface1"): encode_annotation(Operation("undo", OperationKind.UNPLUG, "iface1", failed="NoFreeSlot"))
}


@pytest.mark.parametrize(
    "vmi",
    [
        objects.vmi(objects.nic("iface1"), annotations=FAILED),
        objects.vmi(objects.nic("iface1", state="absent"), annotations=UNDONE),
    ],
    ids=["failed", "being undone"],
)
def test_failed_plug_has_its_reason(vmi: VirtualMachineInstance) -> None:
    progress = OperationProgress("iface1", "op")
    progress.observe(vmi, [objects.pod(ANNOTATED)])
    assert progress.outcome is not None
    assert progress.outcome.result is OperationResult.FAILED
    assert progress.outcome.message.startswith("NoFreeSlot")


def test_plug_that_failed_on_the_vmi_of_a_backup_is_none_of_this_one() -> None:
    failed = held_by(Operation("op", OperationKind.PLUG, "iface1", failed="NoFreeSlot"), "uid of the VMI of the backup")
    vmi = objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode_annotation(failed)})
    progress = OperationProgress("iface1", derive_operation_id(objects.VMI_UID, "iface1", OperationKind.PLUG, 1))
    progress.observe(vmi, [objects.pod(ANNOTATED)])
    assert progress.outcome is None


@pytest.mark.parametrize("step", range(4))
def test_status_has_a_cell_for_every_column(step: int) -> None:
    vmi, (pod,) = state(step)
    (nic_status,) = status_of_objects(vmi, pod)
    assert len(cells(nic_status, wide=False)) == len(COLUMNS)
    assert len(cells(nic_status, wide=True)) == len(WIDE_COLUMNS)
    assert all(cells(nic_status, wide=True))
    assert document(vmi, StatusView((nic_status,)), {})["interfaces"] == (nic_status,)


def test_only_messages_about_the_interface_are_returned_oldest_first() -> None:
    def event(message: str, at: int) -> dict[str, Any]:
        return {"reason": "Failed", "message": message, "lastTimestamp": f"2026-01-01T00:00:0{at}Z"}

    events = [
        event(f"failed adding interface {LINK}: why", 3),
        event("interface iface1: no slot", 1),
        event("interface iface12: no slot", 2),
        event("unhealthy", 4),
        {"reason": "Odd"},
        event("interface 'iface1' cannot be unplugged", 5),
    ]
    assert messages_about(events, "iface1") == [
        "Failed: interface iface1: no slot",
        f"Failed: failed adding interface {LINK}: why",
        "Failed: interface 'iface1' cannot be unplugged",
    ]
    assert len(messages_about([event(LINK, at) for at in range(9)], "iface1")) == MAX_MESSAGES
