"""Encoding and decoding of messages, for arbitrary names and bytes."""

import re
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bus.events import (
    MAX_EVENT_BYTES,
    ChangedObject,
    ConfirmedBy,
    Event,
    Failed,
    GuestAttached,
    MultusAttached,
    ObjectRef,
    PodAnnotated,
    Requested,
)
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.bus.envelope import (
    DEAD_DETAIL,
    DEAD_REASON,
    DEAD_SEQUENCE,
    DEAD_SUBJECT,
    MSG_ID,
    BusMessage,
    UnsendableEvent,
    UnusableMessage,
    build_dead_letter,
    decode_message,
    encode_message,
    message_id,
)
from services.common.bus.settings import BusSettings
from tests.support.bus.conformance import annotated

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
OPERATION = Operation("1", OperationKind.PLUG, "a")
NOW = datetime(2026, 11, 23, 10, 0, 0, 1234, tzinfo=UTC)


@given(NAMES, NAMES, NAMES, st.integers(1, 99))
def test_message_round_trip(node: str, namespace: str, vmi: str, attempt: int) -> None:
    event = PodAnnotated(
        operation=Operation("1", OperationKind.PLUG, "a"),
        vmi=ObjectRef(namespace, vmi, "u"),
        node=node,
        attempt=attempt,
    )
    message = encode_message(event, role="controller", node=node, start_id="s")
    assert decode_message(message.subject, message.headers, message.payload) == (event, event.subject)


@pytest.mark.parametrize(
    ("requested_at", "time"),
    [
        ("2026-11-23T09:59:58.7Z", "2026-11-23T09:59:58.700Z"),
        ("2026-11-23T11:59:58+02:00", "2026-11-23T09:59:58.000Z"),
        (None, "2026-11-23T10:00:00.001Z"),
        ("yesterday", "2026-11-23T10:00:00.001Z"),
    ],
)
def test_a_requested_event_has_the_time_of_the_request(requested_at: str | None, time: str) -> None:
    operation = Operation("1", OperationKind.PLUG, "a", requested_at=requested_at)
    event = Requested(operation=operation, vmi=ObjectRef("ns", "vm1", "u"), node="_")
    message = encode_message(event, role="api", node="_", start_id="s", now=NOW)
    assert message.headers["ce-time"] == time


def attached_on(node: str) -> Event:
    return MultusAttached(operation=Operation("1", OperationKind.PLUG, "a"), vmi=ObjectRef("ns", "v", "u"), node=node)


def failed_at(stage: Stage) -> Event:
    return Failed(Operation("1", OperationKind.PLUG, "a"), ObjectRef("ns", "v", "u"), node="n1", at=stage, reason="X")


@given(
    st.binary(max_size=200),
    st.dictionaries(st.text(max_size=10), st.text(max_size=10)) | st.none(),
    st.text(max_size=30),
)
def test_arbitrary_bytes_are_unusable(payload: bytes, headers: dict[str, str] | None, subject: str) -> None:
    with pytest.raises(UnusableMessage) as caught:
        decode_message(subject, headers, payload)
    assert caught.value.reason.isalpha()


def test_headers_of_a_message() -> None:
    message = encode_message(annotated(), role="controller", node="_", start_id="s", now=NOW)
    assert message.headers == {
        "ce-specversion": "1.0",
        "ce-id": message.id,
        "ce-type": "io.hotnic.hotplug.pod-annotated.v1",
        "ce-source": "/hotnic/controller/_",
        "ce-time": "2026-11-23T10:00:00.001Z",
        "content-type": "application/json",
        MSG_ID: message.id,
    }


def test_message_id_is_equal_for_retries_only() -> None:
    base = MultusAttached(
        operation=Operation("1", OperationKind.PLUG, "a"), pod=ObjectRef("n", "p", "u"), node="x", sandbox_id="s"
    )
    replace = msgspec.structs.replace
    others: list[Event] = [
        replace(base, operation=Operation("2", OperationKind.PLUG, "a")),
        replace(base, node="y"),
        replace(base, pod=ObjectRef("n", "p", "u2")),
        replace(base, sandbox_id="s2"),
        replace(base, attempt=2),
        Failed(operation=base.operation, node="x", at=Stage.MULTUS_ATTACHED, reason="A"),
        Failed(operation=base.operation, node="x", at=Stage.MULTUS_ATTACHED, reason="B"),
        Failed(operation=base.operation, node="x", at=Stage.GUEST_ATTACHED, reason="B"),
        GuestAttached(operation=base.operation, node="x"),
        GuestAttached(operation=base.operation, node="x", confirmed_by=ConfirmedBy.GUEST_AGENT),
    ]
    ids = [message_id(event, "start") for event in (base, *others)]
    ids.append(message_id(base, "another start"))
    assert len(set(ids)) == len(ids)
    # Details of the attachment do not distinguish events.
    assert message_id(replace(base, mac="02:00:00:00:00:01", ips=("10.0.0.1",)), "start") == ids[0]


def test_long_failure_message_is_truncated() -> None:
    operation = Operation("1", OperationKind.PLUG, "a")
    failed = Failed(operation=operation, node="n", at=Stage.GUEST_ATTACHED, reason="X", message="é" * 100_000)
    message = encode_message(failed, role="handler", node="n", start_id="s")
    event, _ = decode_message(message.subject, message.headers, message.payload)
    assert isinstance(event, Failed)
    assert event.message.endswith("é…")
    assert len(message.payload) < MAX_EVENT_BYTES


@pytest.mark.parametrize(
    ("event", "ce_source", "problem"),
    [
        (attached_on("n1"), "/hotnic/networks/n2", "may not publish events of node n1"),
        (attached_on("n1"), "/hotnic/handler/n1", "may not publish multus-attached"),
        (attached_on("n1"), "/hotnic/networks", "is no publisher of hotnic"),
        (attached_on("n1"), "/other/networks/n1", "is no publisher of hotnic"),
        (failed_at(Stage.GUEST_ATTACHED), "/hotnic/networks/n1", "may not fail at guest-attached"),
        (failed_at(Stage.REQUESTED), "/hotnic/handler/n1", "may not fail at requested"),
    ],
)
def test_a_publisher_that_the_subject_contradicts_is_forbidden(event: Event, ce_source: str, problem: str) -> None:
    message = encode_message(event, role="networks", node="n1", start_id="s")
    with pytest.raises(UnusableMessage, match=problem) as caught:
        decode_message(message.subject, message.headers | {"ce-source": ce_source}, message.payload)
    assert caught.value.reason == "ForbiddenPublisher"


def test_oversized_event_is_not_encoded() -> None:
    with pytest.raises(UnsendableEvent, match="the limit is 65536"):
        encode_message(
            MultusAttached(operation=Operation("1", OperationKind.PLUG, "a"), ips=("x" * 70_000,)),
            role="networks",
            node="n",
            start_id="s",
        )


def test_event_with_a_subject_that_ends_the_connection_is_not_encoded() -> None:
    operation = Operation("1", OperationKind.PLUG, "a")
    event = MultusAttached(operation=operation, vmi=ObjectRef("default", "a" * 5000, "uid"))
    with pytest.raises(UnsendableEvent, match="the limit is 2048"):
        encode_message(event, role="networks", node="n", start_id="s")


def test_dead_letter_contains_the_message_and_the_reason() -> None:
    message = BusMessage("hotplug.a.b.c.d", b"\xff", {"ce-id": "1", MSG_ID: "x", "Nats-Expected-Stream": "HOTPLUG"})
    letter = build_dead_letter(
        message,
        UnusableMessage("Undecodable", "line\r\nNats-Evil: 1 ü"),
        consumer="c",
        sequence=7,
        start_id="s",
        now=NOW,
    )
    assert letter.subject == "hotplug-dead.a.b.c.d"
    assert letter.payload == b"\xff"
    assert letter.headers["ce-id"] == "1"
    assert letter.headers[DEAD_REASON] == "Undecodable"
    assert letter.headers[DEAD_DETAIL] == "line??Nats-Evil: 1 ?"
    assert letter.headers[DEAD_SUBJECT] == message.subject
    assert letter.headers[DEAD_SEQUENCE] == "7"
    assert "Nats-Expected-Stream" not in letter.headers


@pytest.mark.parametrize(
    ("subject", "wanted"),
    [
        ("hotplug.failed.node1.ns.vm", r"hotplug-dead\.failed\.node1\.ns\.vm"),
        ("hotplug.failed.node1." + "a" * 4000, r"hotplug-dead\.failed\.node1\.[0-9a-f]{32}"),
        ("hotplug.failed.node1.\ufffd\x0b.vm", r"hotplug-dead\.failed\.node1\.[0-9a-f]{32}"),
        ("hotplug.\x0b.node1.ns.vm", r"hotplug-dead\._\.node1\.[0-9a-f]{32}"),
        ("hotplug", r"hotplug-dead\.[0-9a-f]{32}"),
    ],
)
def test_dead_letter_of_any_message_can_be_published(subject: str, wanted: str) -> None:
    """NATS ends the connection at a long subject and a large message, and nats-py refuses some headers."""
    headers = {"ce-id": "1\u00e9\r\n", "a/b": "x", "Status": "100", "traceparent": "t" * 100_000}
    headers |= {f"hotnic-{letter * length}": "x" * 1000 for letter in "abcdefghij" for length in range(1, 41)}
    message = BusMessage(subject, b"x" * 1_000_000, headers)
    letter = build_dead_letter(
        message, UnusableMessage("Oversized", ""), consumer="c", sequence=7, start_id="s", now=NOW
    )
    assert re.fullmatch(wanted, letter.subject)
    assert len(letter.payload) == MAX_EVENT_BYTES + 1
    assert not {"a/b", "Status"} & letter.headers.keys()
    size = len(letter.payload) + sum(len(f"{name}: {value}\r\n") for name, value in letter.headers.items())
    assert size < BusSettings().dead_max_message_bytes
    assert all(value.isascii() and value.isprintable() and len(value) <= 2048 for value in letter.headers.values())


@pytest.mark.parametrize(
    "event",
    [
        MultusAttached(operation=Operation("1" * 254, OperationKind.PLUG, "a")),
        MultusAttached(operation=OPERATION, pod=ObjectRef("ns", "p", "u" * 60_000), node="n"),
        MultusAttached(operation=OPERATION, vmi=ObjectRef("ns", "v" * 300, "u"), node="n"),
        MultusAttached(operation=OPERATION, sandbox_id="s" * 300, node="n"),
    ],
)
def test_names_that_nobody_makes_are_not_kept(event: MultusAttached) -> None:
    message = encode_message(event, role="networks", node=event.node, start_id="s")
    with pytest.raises(UnusableMessage, match="is longer than any") as caught:
        decode_message(message.subject, message.headers, message.payload)
    assert caught.value.reason == "Oversized"


def test_a_process_stores_one_dead_letter_of_a_message_and_nobody_else_can_compute_its_id() -> None:
    """The server drops a message whose id it has seen in the last two minutes, whoever has used it and where."""
    message = BusMessage("hotplug.a.b.c.d", b"x", {})
    error = UnusableMessage("Undecodable", "")
    one = build_dead_letter(message, error, consumer="a", sequence=7, start_id="s", now=NOW)
    assert one.id == build_dead_letter(message, error, consumer="b", sequence=7, start_id="s").id
    assert one.id != build_dead_letter(message, error, consumer="a", sequence=8, start_id="s").id
    assert one.id != build_dead_letter(message, error, consumer="a", sequence=7, start_id="other", now=NOW).id


def test_nobody_else_can_compute_the_id_of_an_observed_event() -> None:
    observed = PodAnnotated(operation=Operation("1", OperationKind.PLUG, "a", vm="vm"), node="n", attempt=1)
    again = msgspec.structs.replace(observed, attempt=2, changed=ChangedObject("Pod", "u", "2"))
    ids = [message_id(event, start, "controller") for start in ("s", "other") for event in (observed, again)]
    assert ids[0] == ids[1] != ids[2] == ids[3]
