"""Dead letters: what a reader is told of one, and what may be sent again."""

import msgspec
import pytest

from schemas.events import Requested
from schemas.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.dead_letters import again, dead_letter_of
from services.common.bus.envelope import DEAD_SUBJECT, MSG_ID, BusMessage, Unusable, dead_letter, incoming, outgoing

EVENT = Requested(Operation("op", OperationKind.PLUG, "iface1"))
SENT = outgoing(EVENT, role="api", node="_", start_id="start")
TRACED = BusMessage(
    SENT.subject, SENT.payload, SENT.headers | {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
)


def put_aside(message: BusMessage, reason: str = "HandlerFailed") -> BusMessage:
    return dead_letter(message, Unusable(reason, "a detail"), consumer="controller", sequence=41)


def test_a_letter_tells_why_whence_and_what() -> None:
    letter = dead_letter_of(7, put_aside(TRACED))
    document = letter.document()
    assert (letter.sequence, letter.reason, letter.detail, letter.consumer) == (
        7,
        "HandlerFailed",
        "a detail",
        "controller",
    )
    assert (letter.subject, letter.original_sequence) == (SENT.subject, "41")
    assert document["payload"]["operation"]["id"] == "op"
    assert set(document["headers"]) == {
        "traceparent",
        "content-type",
        *(n for n in SENT.headers if n.startswith("ce-")),
    }


def test_a_letter_is_sent_again_as_it_was_under_a_new_id() -> None:
    message = again(dead_letter_of(7, put_aside(TRACED)), "fresh")
    assert (message.subject, message.payload, message.id) == (SENT.subject, SENT.payload, "fresh")
    assert message.headers == TRACED.headers | {MSG_ID: "fresh", "ce-id": "fresh"}
    assert incoming(message.subject, message.headers, message.payload)[0] == EVENT


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
def test_what_would_be_put_aside_again_is_refused(message: BusMessage, reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        again(dead_letter_of(7, put_aside(message)), "fresh")
    assert refused.value.reason == reason


def test_a_letter_of_somebody_elses_is_shown_as_far_as_it_goes() -> None:
    letter = dead_letter_of(7, BusMessage("hotplug-dead.x", b"\xff\x00", {}))
    assert letter.document()["payload"] == "ff00"
    assert dead_letter_of(7, BusMessage("hotplug-dead.x", b"text", {})).document()["payload"] == "text"
    with pytest.raises(Unusable):
        again(letter, "fresh")
    assert DEAD_SUBJECT not in letter.headers
