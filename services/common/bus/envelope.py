"""An event as a NATS message and back: subject, payload, headers, message id, and what makes a message unusable.

Pure: no connection and no span here. Next: :mod:`services.common.bus.spans`.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from schemas import cloudevents
from schemas.encoding import DEAD_ROOT, SUBJECT_ROOT, Subject, parse_subject
from schemas.events import MAX_EVENT_BYTES, Event, Failed, GuestAttached, decode, encode
from schemas.stages import ROWS

MSG_ID = "Nats-Msg-Id"
DEAD_REASON = "Hotnic-Dead-Reason"
DEAD_DETAIL = "Hotnic-Dead-Detail"
DEAD_SUBJECT = "Hotnic-Dead-Subject"
DEAD_CONSUMER = "Hotnic-Dead-Consumer"
DEAD_SEQUENCE = "Hotnic-Dead-Sequence"
DEAD_AT = "Hotnic-Dead-At"

MAX_MESSAGE_CHARS = 4096
"""Longer failure messages are cut: an event over the size limit would be refused by every consumer."""


class BusMessage(msgspec.Struct, frozen=True):
    """What goes over the wire."""

    subject: str
    payload: bytes
    headers: dict[str, str]

    @property
    def id(self) -> str:
        """The id by which the server absorbs retries of this publish."""
        return self.headers.get(MSG_ID, "")


class Unusable(Exception):
    """A message that no consumer can act on.

    :ivar reason: CamelCase, for machines; :ivar detail: for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def outcome(event: Event) -> str:
    """What tells two events of one stage and attempt apart."""
    if isinstance(event, Failed):
        return f"{event.at}/{event.reason}"
    return str(event.confirmed_by) if isinstance(event, GuestAttached) else ""


def message_id(event: Event, start_id: str) -> str:
    """``Nats-Msg-Id``: the same for every retry of one publish, another for everything else.

    :param start_id: made anew at every start of the publisher: a restarted one repeats itself rightly.
    """
    parts = (
        event.operation.id,
        str(event.stage),
        event.node,
        event.pod.uid if event.pod else "",
        event.sandbox_id or "",
        outcome(event),
        str(event.attempt),
        # An ordinary pod's link can come, go and come again under one operation, which is derived from its name.
        event.changed.resource_version if event.changed else "",
        start_id,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def outgoing(event: Event, *, role: str, node: str, start_id: str, now: datetime | None = None) -> BusMessage:
    """The message of an event, still without trace context.

    :raises ValueError: the role may not publish this stage, a name is empty, or the event is too large.
    """
    if role not in ROWS[event.stage].publishers:
        raise ValueError(f"{role} does not publish {event.stage}")
    if isinstance(event, Failed) and len(event.message) > MAX_MESSAGE_CHARS:
        event = msgspec.structs.replace(event, message=event.message[: MAX_MESSAGE_CHARS - 1] + "…")
    payload = encode(event)
    if len(payload) > MAX_EVENT_BYTES:
        raise ValueError(f"event of {len(payload)} bytes; at most {MAX_EVENT_BYTES} are read")
    event_id = message_id(event, start_id)
    headers = cloudevents.headers(
        event_id=event_id,
        stage=event.stage,
        role=role,
        node=node,
        time=(now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )
    headers[MSG_ID] = event_id
    return BusMessage(str(event.subject), payload, headers)


def incoming(subject: str, headers: Mapping[str, str] | None, payload: bytes) -> tuple[Event, Subject]:
    """The event in a message.

    :raises Unusable: it is none, contradicts its subject or headers, or its source may not publish it.
    """
    if len(payload) > MAX_EVENT_BYTES:
        raise Unusable("Oversized", f"{len(payload)} bytes; at most {MAX_EVENT_BYTES} are read")
    try:
        event = decode(payload)
        expected = event.subject
        proper = str(expected)
    except (ValueError, RecursionError) as error:
        raise Unusable("Undecodable", str(error)) from None
    if subject != proper:
        raise _wrong_subject(subject, expected)
    found = headers or {}
    try:
        cloudevents.check(found, event.stage)
    except ValueError as error:
        raise Unusable("BadHeaders", str(error)) from None
    publisher = found["ce-source"].removeprefix("/hotnic/").partition("/")[0]
    if publisher not in ROWS[event.stage].publishers:
        raise Unusable("ForbiddenPublisher", f"{found['ce-source']} does not publish {event.stage}")
    return event, expected


def _wrong_subject(subject: str, expected: Subject) -> Unusable:
    try:
        parse_subject(subject)
    except ValueError as error:
        return Unusable("BadSubject", str(error))
    return Unusable("SubjectMismatch", f"the payload belongs on {expected}")


def dead_letter(
    message: BusMessage, error: Unusable, *, consumer: str, sequence: int, now: datetime | None = None
) -> BusMessage:
    """The letter that keeps an unusable message: its payload and headers, and why it could not be used.

    Its id depends on the message alone, so several consumers that refuse one message keep one letter.

    :param sequence: of the message in its stream.
    """
    headers = {key: value for key, value in message.headers.items() if not key.startswith("Nats-")}
    headers |= {
        DEAD_REASON: error.reason,
        DEAD_DETAIL: _one_line(error.detail),
        DEAD_SUBJECT: message.subject,
        DEAD_CONSUMER: consumer,
        DEAD_SEQUENCE: str(sequence),
        DEAD_AT: (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    seed = f"{message.subject}\0{sequence}\0{message.id}".encode() + b"\0" + message.payload
    headers[MSG_ID] = "dead-" + hashlib.sha256(seed).hexdigest()[:32]
    return BusMessage(DEAD_ROOT + message.subject.removeprefix(SUBJECT_ROOT), message.payload, headers)


def _one_line(text: str) -> str:
    """A header value: no line breaks, no control or non-ASCII characters, at most 500 characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:500]
