"""Today's roles read messages and bucket of an earlier version: the same stage, operation, failure and trace."""

import json
from collections import Counter

import pytest

from schemas.bus.encoding import parse_status_key, parse_subject
from schemas.bus.events import Event, Failed, GuestAttached, decode
from schemas.bus.hotplug_status import HotplugStatus, StatusEntry, decode_entry
from schemas.stages import OperationKind, Stage, stage_path
from services.cli.commands.timeline import entry_of_message
from services.common.bus.dead_letters import build_replay, parse_dead_letter
from services.common.bus.envelope import UnusableMessage, decode_message
from services.common.domain.status.stage_history import with_history
from services.common.telemetry.propagation import context_of, trace_id_of
from tests.support.skew.recording import Recording, round_trip


def decoded(recording: Recording) -> list[Event]:
    return [decode_message(message.subject, message.headers, message.payload)[0] for message in recording.events]


def test_a_recording_has_every_stage(recording: Recording) -> None:
    stages = Counter(event.stage for event in decoded(recording))
    assert set(stages) == set(Stage)
    confirmed = {event.confirmed_by for event in decoded(recording) if isinstance(event, GuestAttached)}
    assert len(confirmed) > 1


def test_every_event_keeps_each_of_its_fields(recording: Recording) -> None:
    for message in recording.events:
        assert round_trip(message.payload, Event) == json.loads(message.payload)


def test_every_event_is_decoded_to_its_stage_operation_and_key(recording: Recording) -> None:
    for message in recording.events:
        event, subject = decode_message(message.subject, message.headers, message.payload)
        payload = json.loads(message.payload)
        assert event.stage == payload["stage"] == message.subject.split(".")[1]
        operation = {name: getattr(event.operation, name) for name in ("id", "kind", "interface", "traceparent")}
        assert operation == {name: payload["operation"].get(name) for name in operation}
        assert subject == parse_subject(message.subject)
        assert (subject.namespace, subject.vmi) == ("default", payload["vmi"]["name"] if "vmi" in payload else "_")


def test_every_event_continues_the_trace_of_its_operation(recording: Recording) -> None:
    for message in recording.events:
        event, _ = decode_message(message.subject, message.headers, message.payload)
        trace_id = trace_id_of(context_of(message.headers["traceparent"]))
        assert trace_id is not None
        # An ordinary pod has no operation of its own, and so no trace before the event's.
        if event.operation.traceparent is not None:
            assert trace_id == trace_id_of(context_of(event.operation.traceparent))
        line = entry_of_message(message)
        assert line is not None
        assert (line.stage, line.trace_id, line.operation) == (event.stage, trace_id, event.operation.id)


@pytest.mark.parametrize(
    ("interface", "kind"), [("red", OperationKind.PLUG), ("blue", OperationKind.PLUG), ("red", OperationKind.UNPLUG)]
)
def test_the_events_of_an_operation_follow_the_stage_table(
    recording: Recording, interface: str, kind: OperationKind
) -> None:
    mine = [
        event.stage
        for event in decoded(recording)
        if (event.operation.interface, event.operation.kind) == (interface, kind)
        and event.vmi is not None
        and event.vmi.name != "other"
    ]
    assert tuple(dict.fromkeys(mine)) == stage_path(kind)


def test_a_failure_keeps_its_reason(recording: Recording) -> None:
    failures = [event for event in decoded(recording) if isinstance(event, Failed)]
    assert {(event.at, event.reason, event.operation.interface) for event in failures} == {
        (Stage.MULTUS_ATTACHED, "CniFailed", "green")
    }
    assert all("no-such-plugin" in event.message and event.retry_after for event in failures)


def test_a_dead_letter_is_listed_with_its_reason(recording: Recording) -> None:
    (message,) = recording.messages("HOTPLUG_DEAD")
    letter = parse_dead_letter(1, message)
    # The same message is dead-lettered with the same reason today.
    with pytest.raises(UnusableMessage) as refused:
        decode_message(letter.subject, letter.headers, letter.payload)
    assert refused.value.reason == letter.reason == "Undecodable"
    assert letter.subject == "hotplug.requested.lab.default.vm1"
    assert all((letter.at, letter.consumer, letter.original_sequence))
    with pytest.raises(UnusableMessage):
        build_replay(letter, "new")


def test_every_value_of_the_bucket_is_decoded(recording: Recording) -> None:
    count = 0
    for snapshot in recording.snapshots.values():
        for key, text in snapshot.bucket.items():
            namespace, _, _ = parse_status_key(key)
            assert namespace == "default"
            assert decode_entry(text.encode()) is not None
            assert round_trip(text, StatusEntry) == json.loads(text)
            count += 1
    assert count > len(recording.snapshots)


def test_the_history_in_the_bucket_gives_the_times_of_the_hotplug_status(recording: Recording) -> None:
    compared = 0
    for snapshot in recording.snapshots.values():
        assert round_trip(json.dumps(snapshot.document["interfaces"]), HotplugStatus) == snapshot.document["interfaces"]
        entries = [entry for text in snapshot.bucket.values() if (entry := decode_entry(text.encode())) is not None]
        for item in snapshot.hotplug_status.items:
            for entry in entries:
                same = entry.vmi_uid == snapshot.machine()[1].metadata.uid and entry.status.interface == item.interface
                if same and entry.status.operation == item.operation and entry.status.stage == item.stage:
                    assert with_history(entry.status, entry.history).since == item.since
                    compared += 1
    assert compared > 5


def test_an_event_with_a_renamed_field_is_noticed(recording: Recording) -> None:
    payload = json.loads(recording.events[0].payload)
    payload["op"] = payload.pop("operation")
    with pytest.raises(ValueError, match="operation"):
        decode(json.dumps(payload).encode())
    optional = json.loads(recording.events[0].payload)
    optional["netname"] = optional.pop("network")
    assert round_trip(json.dumps(optional), Event) != optional
