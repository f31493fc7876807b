"""What events add to the hot-plug status: stages come from objects, times and reasons from events in any order."""

import datetime
import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bus.events import Event, Failed, GuestAttached, MultusAttached, PodAnnotated, Requested
from schemas.bus.hotplug_status import (
    MAX_ENTRY_BYTES,
    MAX_WRITTEN_BYTES,
    InterfaceHotplugStatus,
    LastFailure,
    StageHistory,
    StageReached,
    StatusEntry,
    decode_entry,
    encode_entry,
)
from schemas.kubernetes.operations import Operation
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.status.stage_history import (
    MAX_MESSAGE,
    build_entry,
    history_of,
    merge,
    normalize_time,
    with_history,
)

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


def history_of_events(*events: tuple[Event, int]) -> StageHistory:
    history = StageHistory()
    for event, second in events:
        history = merge(history, history_of(event, at(second)))
    return history


PLUG_EVENTS: list[tuple[Event, int]] = [
    (Requested(OP), 0),
    (PodAnnotated(OP), 1),
    (MultusAttached(OP, attempt=3), 9),
    (GuestAttached(OP), 10),
]


@pytest.mark.parametrize("stage", stage_path(OperationKind.PLUG))
def test_every_stage_has_its_time_and_attempts(stage: Stage) -> None:
    found = with_history(nic_status(stage), history_of_events(*PLUG_EVENTS))
    assert found.since == at({str(event.stage): second for event, second in PLUG_EVENTS}[stage])
    assert found.stage is stage
    assert found.attempts == (3 if stage is Stage.MULTUS_ATTACHED else 1)


def test_without_events_only_the_time_of_the_request_is_known() -> None:
    assert with_history(nic_status(Stage.MULTUS_ATTACHED), StageHistory()) == nic_status(Stage.MULTUS_ATTACHED)
    assert with_history(nic_status(Stage.REQUESTED), StageHistory()).since == at(0)
    assert with_history(nic_status(Stage.REQUESTED, requested_at=None), StageHistory()).since is None


def test_last_failure_is_the_reason_that_the_next_stage_is_not_reached() -> None:
    history = history_of_events(
        *PLUG_EVENTS[:2], (failed(Stage.MULTUS_ATTACHED, 1, "RuntimeAway"), 2), (failed(Stage.MULTUS_ATTACHED, 2), 3)
    )
    found = with_history(nic_status(Stage.POD_ANNOTATED), history)
    assert (found.reason, found.message, found.attempts) == ("CniFailed", "no address left", 2)
    assert (found.since, found.last_attempt) == (at(1), at(3))


def test_failure_of_a_stage_that_is_reached_is_ignored() -> None:
    history = history_of_events(*PLUG_EVENTS, (failed(Stage.MULTUS_ATTACHED, 2), 3))
    for stage in (Stage.MULTUS_ATTACHED, Stage.GUEST_ATTACHED):
        found = with_history(nic_status(stage), history)
        assert found.reason == nic_status(stage).reason
        assert (found.message, found.last_attempt) == (None, None)


def test_specific_reason_from_objects_has_priority() -> None:
    found = with_history(
        nic_status(Stage.POD_ANNOTATED, reason="VmiDeleting"), history_of_events((failed(Stage.MULTUS_ATTACHED, 4), 3))
    )
    assert (found.reason, found.message, found.attempts) == ("VmiDeleting", None, 4)
    ended = nic_status(Stage.MULTUS_ATTACHED, reason="NoFreeSlot")
    found = with_history(ended, history_of_events((failed(Stage.GUEST_ATTACHED, 1, "NoFreeSlot", "8 of 8 in use"), 3)))
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
def test_order_and_repetition_of_events_do_not_matter(found: list[tuple[Event, int]], rng: random.Random) -> None:
    repeated = [*found, *rng.choices(found, k=len(found))] if found else []
    rng.shuffle(repeated)
    assert history_of_events(*repeated) == history_of_events(*found)


@given(st.lists(st.tuples(events, times), max_size=8), st.sampled_from(stage_path(OperationKind.PLUG)), st.data())
def test_lost_events_do_not_change_the_stage(found: list[tuple[Event, int]], stage: Stage, data: st.DataObject) -> None:
    left = [event for event in found if data.draw(st.booleans())]
    base = nic_status(stage)
    shown = with_history(base, history_of_events(*left))
    fields = ("interface", "network", "kind", "stage", "operation", "waiting_for", "requested_at", "failed")
    assert [getattr(shown, name) for name in fields] == [getattr(base, name) for name in fields]
    assert shown.reason == base.reason or (shown.reason in {"A", "B"} and not shown.complete)


@given(st.lists(st.tuples(events, times), max_size=6), st.sampled_from(stage_path(OperationKind.PLUG)))
def test_lost_or_outdated_entry_is_restored_from_the_events(found: list[tuple[Event, int]], stage: Stage) -> None:
    base = nic_status(stage)
    whole = build_entry(base, "vmi", "pod", None, history_of_events(*found))
    for some in range(len(found) + 1):
        older = build_entry(base, "vmi", "pod", None, history_of_events(*found[:some]))
        assert build_entry(base, "vmi", "pod", older, history_of_events(*found)) == whole
    assert build_entry(base, "vmi", "pod", whole, StageHistory()) == whole
    assert decode_entry(encode_entry(whole)) == whole


def test_history_of_another_pod_operation_or_vmi_is_ignored() -> None:
    before = build_entry(nic_status(Stage.MULTUS_ATTACHED), "vmi", "pod", None, history_of_events(*PLUG_EVENTS[:3]))
    assert build_entry(nic_status(Stage.MULTUS_ATTACHED), "vmi", "other", before, StageHistory()).status.since is None
    assert (
        Stage.REQUESTED
        in build_entry(nic_status(Stage.REQUESTED), "vmi", "other", before, StageHistory()).history.reached
    )
    later = nic_status(Stage.MULTUS_ATTACHED, operation="op2")
    assert build_entry(later, "vmi", "pod", before, StageHistory()).history == StageHistory()
    assert build_entry(nic_status(Stage.MULTUS_ATTACHED), "vmi2", "pod", before, StageHistory()).status.since is None


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
def test_times_are_normalized(text: str, wanted: str) -> None:
    assert normalize_time(text) == wanted
    assert bool(history_of(Requested(OP), text).reached) == bool(wanted)


@pytest.mark.parametrize("attempt", [2**40, 10**4000, -(10**4000)])
def test_size_of_an_entry_is_bounded_for_oversized_events(attempt: int) -> None:
    oversized = Failed(OP, at=Stage.GUEST_ATTACHED, reason="R" * 9000, message="m" * 60000, attempt=attempt)
    whole: list[Event] = [Requested(OP), PodAnnotated(OP), MultusAttached(OP), GuestAttached(OP), oversized]
    stored = build_entry(
        nic_status(Stage.POD_ANNOTATED), "v" * 36, "p" * 36, None, history_of_events(*((one, 1) for one in whole))
    )
    assert stored.status.message is not None
    assert len(stored.status.message) == MAX_MESSAGE
    assert len(encode_entry(stored)) < MAX_ENTRY_BYTES / 4


@pytest.mark.parametrize("char", ["x", "\x01", "😀"])
def test_no_entry_is_over_its_limit_whatever_objects_say(char: str) -> None:
    long = char * 100_000
    hostile = msgspec.structs.replace(
        nic_status(Stage.POD_ANNOTATED),
        **dict.fromkeys(("interface", "network", "operation", "reason", "message", "requested_at", "mac"), long),
        **dict.fromkeys(("trace_id", "pod_interface", "guest_interface", "info_source", "link_state"), long),
        **dict.fromkeys(("failed", "remedy", "docs"), long),
        ips=(long,) * 1000,
    )
    reached = {stage: StageReached("2026-01-01T00:00:01.000Z", 2**40) for stage in Stage}
    failure = LastFailure("2026-01-01T00:00:01.000Z", 2**40, Stage.GUEST_ATTACHED, long, long)
    value = encode_entry(StatusEntry("v" * 36, "p" * 36, hostile, StageHistory(reached, failure)))
    assert len(value) <= MAX_WRITTEN_BYTES
    found = decode_entry(value)
    assert found is not None
    assert (found.status.stage, found.history.reached) == (Stage.POD_ANNOTATED, reached)


def test_an_entry_within_its_limit_is_whole() -> None:
    ips = tuple(f"2001:db8:1111:2222:3333:4444:5555:{n:04x}" for n in range(32))
    whole = msgspec.structs.replace(nic_status(Stage.POD_ANNOTATED), ips=ips, message="m" * 1024, network="n" * 507)
    stored = StatusEntry("v" * 36, "p" * 36, whole)
    assert decode_entry(encode_entry(stored)) == stored


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b"x" * (MAX_ENTRY_BYTES + 1)])
def test_foreign_value_is_no_entry(value: bytes | None) -> None:
    assert decode_entry(value) is None


def test_entries_of_all_kinds_and_stages_round_trip() -> None:
    for kind, stage in itertools.product(OperationKind, Stage):
        stored = StatusEntry(
            "v",
            "p",
            InterfaceHotplugStatus("i", "n", kind, stage, "o"),
            StageHistory({stage: StageReached(at(1))}, LastFailure("", 1, stage, "R")),
        )
        assert decode_entry(encode_entry(stored)) == stored
