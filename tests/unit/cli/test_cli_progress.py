"""The way of a plug or an unplug as the one who waits for it sees it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.hotplug_status import Shown, folded
from services.cli.progress import Progress, Result, standing
from services.cli.reports import SHOWN, told
from services.cli.status import COLUMNS, WIDE_COLUMNS, cells, document
from tests.support import objects

LINK = pod_interface("iface1")
ANNOTATED = {NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=LINK)])}
ATTACHED = ANNOTATED | {NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", LINK, mac="02:01")])}
OPERATION = {operation_key("iface1"): encode(Operation("op", OperationKind.PLUG, "iface1"))}
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
def test_every_stage_is_told_once_and_in_order(steps: list[int]) -> None:
    progress = Progress("iface1", "op")
    told = [stage for step in steps for stage in progress.see(*state(step))]
    assert told == list(stage_path(OperationKind.PLUG))[: max(steps) + 1]
    assert (progress.outcome is not None) == (3 in steps)


def test_the_end_waits_for_both_writers_of_the_status() -> None:
    progress = Progress("iface1", "op")
    vmi = objects.vmi(objects.nic("iface1"), status=[{"name": "iface1", "infoSource": "domain"}], annotations=OPERATION)
    assert progress.see(vmi, [objects.pod(ATTACHED)])[-1] is Stage.GUEST_ATTACHED
    assert progress.outcome is None
    assert progress.nic_status is not None
    assert "status" in standing(progress.nic_status)
    progress.see(*state(3))
    assert progress.outcome is not None
    assert progress.outcome.result is Result.ATTACHED


@pytest.mark.parametrize(
    ("vmi", "said"),
    [
        (None, "deleted"),
        (objects.vmi(objects.nic("iface1"), phase="Succeeded", annotations=OPERATION), "Succeeded"),
        (objects.vmi(annotations=OPERATION), "taken out"),
        (objects.vmi(objects.nic("iface1")), "took its place"),
    ],
    ids=["deleted", "stopped", "taken out of the spec", "another operation"],
)
def test_what_cannot_come_any_more_is_a_failure(vmi: VirtualMachineInstance | None, said: str) -> None:
    progress = Progress("iface1", "op")
    assert progress.see(vmi, [objects.pod(ATTACHED)]) == []
    assert progress.outcome is not None
    assert progress.outcome.result is Result.FAILED
    assert said in progress.outcome.message


def test_who_is_waited_for_is_named() -> None:
    progress = Progress("iface1", "op")
    progress.see(*state(2))
    assert progress.nic_status is not None
    assert (
        standing(progress.nic_status) == "reached multus-attached, WaitingForGuestAttached: it is the turn of handler"
    )


FAILED = {operation_key("iface1"): encode(Operation("op", OperationKind.PLUG, "iface1", failed="NoFreeSlot"))}
UNDONE = {operation_key("iface1"): encode(Operation("undo", OperationKind.UNPLUG, "iface1", failed="NoFreeSlot"))}


@pytest.mark.parametrize(
    "vmi",
    [
        objects.vmi(objects.nic("iface1"), annotations=FAILED),
        objects.vmi(objects.nic("iface1", state="absent"), annotations=UNDONE),
    ],
    ids=["given up", "being undone"],
)
def test_a_plug_that_ended_for_good_says_why(vmi: VirtualMachineInstance) -> None:
    progress = Progress("iface1", "op")
    progress.see(vmi, [objects.pod(ANNOTATED)])
    assert progress.outcome is not None
    assert progress.outcome.result is Result.FAILED
    assert progress.outcome.message.startswith("NoFreeSlot")


@pytest.mark.parametrize("step", range(4))
def test_status_has_a_cell_for_every_column(step: int) -> None:
    vmi, (pod,) = state(step)
    (nic_status,) = folded(vmi, pod)
    assert len(cells(nic_status, wide=False)) == len(COLUMNS)
    assert len(cells(nic_status, wide=True)) == len(WIDE_COLUMNS)
    assert all(cells(nic_status, wide=True))
    assert document(vmi, Shown((nic_status,)), {})["interfaces"] == (nic_status,)


def test_only_what_was_reported_about_the_interface_is_told_latest_last() -> None:
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
    assert told(events, "iface1") == [
        "Failed: interface iface1: no slot",
        f"Failed: failed adding interface {LINK}: why",
        "Failed: interface 'iface1' cannot be unplugged",
    ]
    assert len(told([event(LINK, at) for at in range(9)], "iface1")) == SHOWN
