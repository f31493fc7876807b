"""What events add to the ladder: the stage is the objects', times and reasons are the events', in whatever order."""

import datetime
import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Event, Failed, GuestAttached, MultusAttached, PodAnnotated, Requested
from schemas.hotplug_status import (
    MAX_ENTRY_BYTES,
    InterfaceHotplugStatus,
    LastFailure,
    StageHistory,
    StageReached,
    StatusEntry,
    encode,
    entry_of,
)
from schemas.operations import Operation
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.stage_history import MAX_MESSAGE, entry, history_of, merge, normal, with_history

OP = Operation("op", OperationKind.PLUG, "iface1", requested_at="2026-01-01T00:00:00.000Z")


def at(second: int) -> str:
    return (
        datetime.datetime.fromtimestamp(1767225600 + second, datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def nic_status(stage: Stage, kind: OperationKind = OperationKind.PLUG, **fields: object) -> InterfaceHotplugStatus:
    waiting_for = ROWS[stage].next.get(kind)
    reason = f"WaitingFor{waiting_for.title().replace('-', '')}" if waiting_for else None
    return msgspec.structs.replace(
        InterfaceHotplugStatus("iface1", "net1", kind, stage, "op", waiting_for, reason=reason, requested_at=at(0)),
        **fields,
    )


def failed(at_: Stage, attempt: int, reason: str = "CniFailed", message: str = "no address left") -> Failed:
    return Failed(OP, attempt=attempt, at=at_, reason=reason, message=message, retry_after=1.0)


def folded(*events: tuple[Event, int]) -> StageHistory:
    history = StageHistory()
    for event, second in events:
        history = merge(history, history_of(event, at(second)))
    return history


WAY: list[tuple[Event, int]] = [
    (Requested(OP), 0),
    (PodAnnotated(OP), 1),
    (MultusAttached(OP, attempt=3), 9),
    (GuestAttached(OP), 10),
]


@pytest.mark.parametrize("stage", stage_path(OperationKind.PLUG))
def test_every_stage_gets_its_time(stage: Stage) -> None:
    found = with_history(nic_status(stage), folded(*WAY))
    assert found.since == at({str(event.stage): second for event, second in WAY}[stage])
    assert found.stage is stage
    assert found.attempts == (3 if stage is Stage.MULTUS_ATTACHED else 1)


def test_from_objects_alone_the_stage_is_exact_and_the_time_unknown_but_for_the_request() -> None:
    assert with_history(nic_status(Stage.MULTUS_ATTACHED), StageHistory()) == nic_status(Stage.MULTUS_ATTACHED)
    assert with_history(nic_status(Stage.REQUESTED), StageHistory()).since == at(0)
    assert with_history(nic_status(Stage.REQUESTED, requested_at=None), StageHistory()).since is None


def test_the_last_failure_says_why_the_next_stage_is_not_reached() -> None:
    history = folded(
        *WAY[:2], (failed(Stage.MULTUS_ATTACHED, 1, "RuntimeAway"), 2), (failed(Stage.MULTUS_ATTACHED, 2), 3)
    )
    found = with_history(nic_status(Stage.POD_ANNOTATED), history)
    assert (found.reason, found.message, found.attempts) == ("CniFailed", "no address left", 2)
    assert (found.since, found.last_attempt) == (at(1), at(3))


def test_a_failure_on_the_way_to_a_stage_that_is_reached_is_past() -> None:
    history = folded(*WAY, (failed(Stage.MULTUS_ATTACHED, 2), 3))
    for stage in (Stage.MULTUS_ATTACHED, Stage.GUEST_ATTACHED):
        found = with_history(nic_status(stage), history)
        assert found.reason == nic_status(stage).reason
        assert (found.message, found.last_attempt) == (None, None)


def test_what_objects_know_for_certain_is_the_reason() -> None:
    found = with_history(
        nic_status(Stage.POD_ANNOTATED, reason="VmiDeleting"), folded((failed(Stage.MULTUS_ATTACHED, 4), 3))
    )
    assert (found.reason, found.message, found.attempts) == ("VmiDeleting", None, 4)
    ended = nic_status(Stage.MULTUS_ATTACHED, reason="NoFreeSlot")
    found = with_history(ended, folded((failed(Stage.GUEST_ATTACHED, 1, "NoFreeSlot", "8 of 8 in use"), 3)))
    assert (found.reason, found.message) == ("NoFreeSlot", "8 of 8 in use")


times = st.integers(min_value=0, max_value=9)
events = st.one_of(
    st.builds(lambda n: Requested(OP, attempt=n), st.integers(1, 3)),
    st.builds(lambda n: PodAnnotated(OP, attempt=n), st.integers(1, 3)),
    st.builds(lambda n: MultusAttached(OP, attempt=n), st.integers(1, 3)),
    st.builds(lambda n: GuestAttached(OP, attempt=n), st.integers(1, 3)),
    st.builds(failed, st.sampled_from(stage_path(OperationKind.PLUG)), st.integers(1, 3), st.sampled_from(["A", "B"])),
)


@given(st.lists(st.tuples(events, times), max_size=8), st.randoms(use_true_random=False))
def test_order_and_repetition_of_events_change_nothing(found: list[tuple[Event, int]], rng: random.Random) -> None:
    mixed = [*found, *rng.choices(found, k=len(found))] if found else []
    rng.shuffle(mixed)
    assert folded(*mixed) == folded(*found)


@given(st.lists(st.tuples(events, times), max_size=8), st.sampled_from(stage_path(OperationKind.PLUG)), st.data())
def test_whatever_events_are_lost_the_stage_is_that_of_the_objects(
    found: list[tuple[Event, int]], stage: Stage, data: st.DataObject
) -> None:
    left = [event for event in found if data.draw(st.booleans())]
    base = nic_status(stage)
    shown = with_history(base, folded(*left))
    kept = ("interface", "network", "kind", "stage", "operation", "waiting_for", "requested_at", "failed")
    assert [getattr(shown, name) for name in kept] == [getattr(base, name) for name in kept]
    assert shown.reason == base.reason or (shown.reason in {"A", "B"} and not shown.complete)


@given(st.lists(st.tuples(events, times), max_size=6), st.sampled_from(stage_path(OperationKind.PLUG)))
def test_an_entry_kept_or_lost_or_of_an_earlier_time_is_mended_by_what_was_heard(
    found: list[tuple[Event, int]], stage: Stage
) -> None:
    base = nic_status(stage)
    whole = entry(base, "vmi", "pod", None, folded(*found))
    for some in range(len(found) + 1):
        older = entry(base, "vmi", "pod", None, folded(*found[:some]))
        assert entry(base, "vmi", "pod", older, folded(*found)) == whole
    assert entry(base, "vmi", "pod", whole, StageHistory()) == whole
    assert entry_of(encode(whole)) == whole


def test_another_pod_or_operation_or_vmi_by_the_same_name_starts_anew() -> None:
    before = entry(nic_status(Stage.MULTUS_ATTACHED), "vmi", "pod", None, folded(*WAY[:3]))
    assert entry(nic_status(Stage.MULTUS_ATTACHED), "vmi", "other", before, StageHistory()).status.since is None
    assert Stage.REQUESTED in entry(nic_status(Stage.REQUESTED), "vmi", "other", before, StageHistory()).history.reached
    later = nic_status(Stage.MULTUS_ATTACHED, operation="op2")
    assert entry(later, "vmi", "pod", before, StageHistory()).history == StageHistory()
    assert entry(nic_status(Stage.MULTUS_ATTACHED), "vmi2", "pod", before, StageHistory()).status.since is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00.000Z"),
        ("2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00.123Z"),
        ("2026-01-01T00:00:00", ""),
        ("0001-01-01T00:00:00+23:00", ""),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_times_are_brought_to_one_form(text: str, wanted: str) -> None:
    assert normal(text) == wanted
    assert bool(history_of(Requested(OP), text).reached) == bool(wanted)


def test_an_entry_is_bounded_whatever_events_say() -> None:
    loud = Failed(OP, at=Stage.GUEST_ATTACHED, reason="R" * 9000, message="m" * 60000, attempt=2**40)
    whole: list[Event] = [Requested(OP), PodAnnotated(OP), MultusAttached(OP), GuestAttached(OP), loud]
    made = entry(nic_status(Stage.POD_ANNOTATED), "v" * 36, "p" * 36, None, folded(*((one, 1) for one in whole)))
    assert made.status.message is not None
    assert len(made.status.message) == MAX_MESSAGE
    assert len(encode(made)) < MAX_ENTRY_BYTES / 4


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b"x" * (MAX_ENTRY_BYTES + 1)])
def test_a_value_of_somebody_else_is_no_entry(value: bytes | None) -> None:
    assert entry_of(value) is None


def test_both_kinds_and_all_stages_survive_the_bucket() -> None:
    for kind, stage in itertools.product(OperationKind, Stage):
        made = StatusEntry(
            "v",
            "p",
            InterfaceHotplugStatus("i", "n", kind, stage, "o"),
            StageHistory({stage: StageReached(at(1))}, LastFailure("", 1, stage, "R")),
        )
        assert entry_of(encode(made)) == made
