"""Dead letters: their fields and payload for users, and which of them can be replayed."""

import msgspec
import pytest

from schemas.bus.events import Requested
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.dead_letters import build_replay, parse_dead_letter
from services.common.bus.envelope import (
    DEAD_SUBJECT,
    MSG_ID,
    BusMessage,
    UnusableMessage,
    build_dead_letter,
    decode_message,
    encode_message,
)

EVENT = Requested(Operation("op", OperationKind.PLUG, "iface1"))
SENT = encode_message(EVENT, role="api", node="_", start_id="start")
TRACED = BusMessage(
    SENT.subject, SENT.payload, SENT.headers | {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
)


def dead_lettered(message: BusMessage, reason: str = "HandlerFailed") -> BusMessage:
    return build_dead_letter(
        message, UnusableMessage(reason, "a detail"), consumer="controller", sequence=41, start_id="s"
    )


def test_dead_letter_has_reason_origin_and_content() -> None:
    dead_letter = parse_dead_letter(7, dead_lettered(TRACED))
    document = dead_letter.document()
    assert (dead_letter.sequence, dead_letter.reason, dead_letter.detail, dead_letter.consumer) == (
        7,
        "HandlerFailed",
        "a detail",
        "controller",
    )
    assert (dead_letter.subject, dead_letter.original_sequence) == (SENT.subject, "41")
    assert document["payload"]["operation"]["id"] == "op"
    assert set(document["headers"]) == {
        "traceparent",
        "content-type",
        *(name for name in SENT.headers if name.startswith("ce-")),
    }


def test_replayed_message_is_unchanged_but_for_its_id() -> None:
    message = build_replay(parse_dead_letter(7, dead_lettered(TRACED)), "new-id")
    assert (message.subject, message.payload, message.id) == (SENT.subject, SENT.payload, "new-id")
    assert message.headers == TRACED.headers | {MSG_ID: "new-id", "ce-id": "new-id"}
    assert decode_message(message.subject, message.headers, message.payload)[0] == EVENT


def test_a_replay_has_no_headers_for_the_server() -> None:
    """A node may store dead letters of its own node with any headers."""
    letter = dead_lettered(TRACED)
    control = {
        "Status": "100",
        "Nats-Rollup": "all",
        "nats-rollup": "sub",
        "KV-Operation": "DEL",
        "Description": "Idle",
    }
    stored = msgspec.structs.replace(letter, headers=letter.headers | control | {"tracestate": "a\r\nNats-TTL: 1s"})
    replayed = build_replay(parse_dead_letter(7, stored), "new-id")
    assert replayed.headers == TRACED.headers | {MSG_ID: "new-id", "ce-id": "new-id", "tracestate": "a??Nats-TTL: 1s"}


def test_a_replay_goes_to_the_subject_that_nats_has_permitted() -> None:
    """A node may store dead letters of its own node only, but writes what it likes into their headers."""
    forged = dead_lettered(TRACED)
    forged = msgspec.structs.replace(forged, subject="hotplug-dead.requested.node1._._")
    letter = parse_dead_letter(7, forged)
    assert letter.subject == "hotplug.requested.node1._._"
    with pytest.raises(UnusableMessage) as caught:
        build_replay(letter, "new-id")
    assert caught.value.reason == "SubjectMismatch"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (msgspec.structs.replace(TRACED, payload=b"{"), "Undecodable"),
        (msgspec.structs.replace(TRACED, payload=b"x" * 70_000), "Oversized"),
        (msgspec.structs.replace(TRACED, subject="hotplug.requested._.elsewhere.vm"), "SubjectMismatch"),
        (msgspec.structs.replace(TRACED, headers={}), "BadHeaders"),
        (
            msgspec.structs.replace(TRACED, headers=TRACED.headers | {"ce-source": "/hotnic/handler/n"}),
            "ForbiddenPublisher",
        ),
    ],
)
def test_message_that_would_be_dead_lettered_again_is_not_replayed(message: BusMessage, reason: str) -> None:
    with pytest.raises(UnusableMessage) as raised:
        build_replay(parse_dead_letter(7, dead_lettered(message)), "new-id")
    assert raised.value.reason == reason


def test_foreign_dead_letter_is_shown_but_not_replayed() -> None:
    dead_letter = parse_dead_letter(7, BusMessage("hotplug-dead.x", b"\xff\x00", {}))
    assert dead_letter.document()["payload"] == "ff00"
    assert parse_dead_letter(7, BusMessage("hotplug-dead.x", b"text", {})).document()["payload"] == "text"
    with pytest.raises(UnusableMessage):
        build_replay(dead_letter, "new-id")
    assert DEAD_SUBJECT not in dead_letter.headers
