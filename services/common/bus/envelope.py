"""Encoding of an event as a NATS message and decoding: subject, payload, headers, message id; and dead letters.

Pure: no connection and no spans. Next: :mod:`services.common.bus.spans`, the spans of a message.
"""

import hashlib
import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from schemas.bus import cloudevents
from schemas.bus.encoding import DEAD_ROOT, NO_NODE, SUBJECT_ROOT, Subject, parse_subject
from schemas.bus.events import MAX_EVENT_BYTES, Event, Failed, GuestAttached, Requested, decode, encode, is_observed
from schemas.bus.permissions import NODE_ROLES
from schemas.stages import ROWS
from services.common.domain.status.stage_history import normalize_time

MSG_ID = "Nats-Msg-Id"
DEAD_REASON = "Hotnic-Dead-Reason"
DEAD_DETAIL = "Hotnic-Dead-Detail"
DEAD_SUBJECT = "Hotnic-Dead-Subject"
DEAD_CONSUMER = "Hotnic-Dead-Consumer"
DEAD_SEQUENCE = "Hotnic-Dead-Sequence"
DEAD_AT = "Hotnic-Dead-At"

MAX_MESSAGE_CHARS = 4096
"""Longer failure messages are truncated: consumers reject an event over the size limit."""
MAX_SUBJECT_CHARS = 2048
"""Longer than any subject of valid names. NATS closes the connection at a subject of 4096."""
MAX_NAME_CHARS = 253
"""Longest name of a Kubernetes object. Ids and UIDs are shorter."""
_KEPT_HEADER = re.compile(r"ce-[a-z]{1,20}|traceparent|tracestate|content-type|hotnic-[a-z-]{1,40}")
"""The headers of a message that its dead letter keeps, and a replay."""
_MAX_KEPT = 16
"""As many of them; an event has 8."""
_TOKEN = re.compile(r"[A-Za-z0-9_%-]{1,1024}")
"""A token of a subject of hotnic's."""


class BusMessage(msgspec.Struct, frozen=True):
    """A NATS message: subject, payload and headers."""

    subject: str
    payload: bytes
    headers: dict[str, str]

    @property
    def id(self) -> str:
        """The message id, by which the server drops repeated publishes."""
        return self.headers.get(MSG_ID, "")


class UnusableMessage(Exception):
    """A message that no consumer can process.

    :ivar reason: CamelCase, for machines.
    :ivar detail: the same as text for users.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class UnsendableEvent(ValueError):
    """An event that is too large to be sent. Its names and texts are from objects, which others may write."""


def event_outcome(event: Event) -> str:
    """Return what distinguishes two events of the same stage and attempt."""
    if isinstance(event, Failed):
        return f"{event.at}/{event.reason}"
    return str(event.confirmed_by) if isinstance(event, GuestAttached) else ""


def message_id(event: Event, start_id: str, role: str = "") -> str:
    """Return the ``Nats-Msg-Id``: equal for all retries of one publish and for nothing else.

    :param start_id: random id of the publisher's start. After a restart the same event is published again; and nobody
        else can compute the id, by whose use the server would drop the event as a repeated one.
    :param role: the publisher. It publishes an observed event once, however often it sees it: nothing was done again.
    """
    observed = is_observed(event, role)
    parts = (
        event.operation.id,
        # The server compares ids over all subjects of a stream: the same id on another subject is dropped.
        str(event.stage),
        event.node,
        event.pod.uid if event.pod else "",
        event.sandbox_id or "",
        event_outcome(event),
        "" if observed else str(event.attempt),
        # A link of an ordinary pod can be attached, detached and attached again under one derived operation id.
        event.changed.resource_version if event.changed and not observed else "",
        start_id,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def encode_message(event: Event, *, role: str, node: str, start_id: str, now: datetime | None = None) -> BusMessage:
    """Return the message of an event, without trace context.

    :raises UnsendableEvent: the event or its subject is too large.
    :raises ValueError: the role may not publish this stage, or a name is empty.
    """
    observed = is_observed(event, role)
    if not ROWS[event.stage].may_publish(role, observed=observed):
        raise ValueError(f"role {role} may not publish {event.stage}")
    if isinstance(event, Failed) and len(event.message) > MAX_MESSAGE_CHARS:
        event = msgspec.structs.replace(event, message=event.message[: MAX_MESSAGE_CHARS - 1] + "…")
    payload = encode(event)
    if len(payload) > MAX_EVENT_BYTES:
        raise UnsendableEvent(f"event has {len(payload)} bytes; the limit is {MAX_EVENT_BYTES}")
    subject = str(event.subject)
    if len(subject) > MAX_SUBJECT_CHARS:
        raise UnsendableEvent(
            f"the subject of the event has {len(subject)} characters; the limit is {MAX_SUBJECT_CHARS}"
        )
    event_id = message_id(event, start_id, role)
    headers = cloudevents.build_headers(
        event_id=event_id,
        stage=event.stage,
        role=role,
        node=node,
        time=_event_time(event) or normalize_time((now or datetime.now(UTC)).isoformat()),
    )
    headers[MSG_ID] = event_id
    if observed:
        headers[cloudevents.OBSERVED] = "true"
    return BusMessage(subject, payload, headers)


def _event_time(event: Event) -> str:
    """Return the time at which the event occurred; empty if that is the time of the publish."""
    # Roles publish in parallel, each after its own change: without this, `requested` may seem later than its outcome.
    return normalize_time(event.operation.requested_at or "") if isinstance(event, Requested) else ""


def decode_message(subject: str, headers: Mapping[str, str] | None, payload: bytes) -> tuple[Event, Subject]:
    """Return the event in a message, and its subject.

    :raises UnusableMessage: it is not an event, contradicts its subject or headers, or its source may not publish it.
    """
    # Before decoding, whose cost grows with the size.
    if len(payload) > MAX_EVENT_BYTES:
        raise UnusableMessage("Oversized", f"payload has {len(payload)} bytes; the limit is {MAX_EVENT_BYTES}")
    try:
        event = decode(payload)
        expected = event.subject
        proper = str(expected)
    except (ValueError, RecursionError) as error:
        raise UnusableMessage("Undecodable", str(error)) from None
    if too_long := _too_long(event):
        raise UnusableMessage("Oversized", f"{too_long} is longer than any that Kubernetes or hotnic makes")
    # Permissions of NATS are bound to subjects, so a payload must not name another node.
    if subject != proper:
        raise _wrong_subject(subject, expected)
    found = headers or {}
    try:
        cloudevents.check_headers(found, event.stage)
    except ValueError as error:
        raise UnusableMessage("BadHeaders", str(error)) from None
    if problem := _wrong_publisher(event, expected, found["ce-source"]):
        raise UnusableMessage("ForbiddenPublisher", f"{found['ce-source']} {problem}")
    return event, expected


def _too_long(event: Event) -> str:
    """Return which name of an event is too long; empty if none is. Whoever receives events keeps their names."""
    names: list[tuple[str, str]] = [("the operation", event.operation.id), ("the interface", event.operation.interface)]
    for what, ref in (("the VMI", event.vmi), ("the pod", event.pod)):
        if ref is not None:
            names += ((what, name) for name in (ref.namespace, ref.name, ref.uid))
    names += [("the sandbox", event.sandbox_id or ""), ("the node", event.node)]
    return next((what for what, name in names if len(name) > MAX_NAME_CHARS), "")


def _wrong_publisher(event: Event, subject: Subject, ce_source: str) -> str:
    """Return why the message cannot be from the publisher that it names; empty if it can.

    NATS has permitted the subject, and the identities of a node publish on subjects of their node alone. So whoever
    names another publisher than one with this stage and node has made its name up.
    """
    try:
        role, node = cloudevents.parse_source(ce_source)
    except ValueError:
        return "is no publisher of hotnic"
    if not ROWS[event.stage].may_publish(role, observed=is_observed(event, role)):
        return f"may not publish {event.stage}"
    if role in NODE_ROLES and node != subject.node:
        return f"may not publish events of node {subject.node}"
    if isinstance(event, Failed) and role in NODE_ROLES and role not in ROWS[event.at].publishers:
        return f"may not fail at {event.at}"
    return ""


def _wrong_subject(subject: str, expected: Subject) -> UnusableMessage:
    try:
        parse_subject(subject)
    except ValueError as error:
        return UnusableMessage("BadSubject", str(error))
    return UnusableMessage("SubjectMismatch", f"the payload belongs to subject {expected}")


def build_dead_letter(
    message: BusMessage,
    error: UnusableMessage,
    *,
    consumer: str,
    sequence: int,
    start_id: str,
    now: datetime | None = None,
) -> BusMessage:
    """Return the dead letter of an unusable message: payload and headers of the message, and the reason.

    Consumers of one process that reject one message store one dead letter, however often they get it.

    :param sequence: sequence of the message in its stream.
    :param start_id: random id of the process' start. Without it, the message's publisher could compute the id, and use
        it first: the server would drop the dead letter as a repeated one.
    """
    # Whoever sent the message has chosen everything in it; a larger message or a longer subject ends the connection.
    headers = keep_headers(message.headers) | {
        DEAD_REASON: error.reason,
        DEAD_DETAIL: _one_line(error.detail),
        DEAD_SUBJECT: _one_line(message.subject, MAX_SUBJECT_CHARS),
        DEAD_CONSUMER: consumer,
        DEAD_SEQUENCE: str(sequence),
        DEAD_AT: (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    seed = f"{start_id}\0{message.subject}\0{sequence}\0{message.id}".encode() + b"\0" + message.payload
    headers[MSG_ID] = "dead-" + hashlib.sha256(seed).hexdigest()[:32]
    return BusMessage(_dead_subject(message.subject), message.payload[: MAX_EVENT_BYTES + 1], headers)


def keep_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of another's message that hotnic may publish in its own name.

    Others, such as Nats-Expected-Stream, are for the server: it would reject the message, or remove others for it.
    """
    kept = (name for name in headers if _KEPT_HEADER.fullmatch(name))
    return {name: _one_line(headers[name]) for name in itertools.islice(kept, _MAX_KEPT)}


def _dead_subject(subject: str) -> str:
    """Return the subject of the dead letter of a message: the message's own, as far as it is one of hotnic's.

    The stage and the node stay, because a role of a node may publish dead letters of its node only.
    """
    root, *tokens = subject.split(".")
    if root == SUBJECT_ROOT and tokens and len(subject) <= MAX_SUBJECT_CHARS and all(map(_TOKEN.fullmatch, tokens)):
        return ".".join((DEAD_ROOT, *tokens))
    kept = [token if _TOKEN.fullmatch(token) else NO_NODE for token in tokens[:2]]
    return ".".join((DEAD_ROOT, *kept, hashlib.sha256(subject.encode(errors="replace")).hexdigest()[:32]))


def _one_line(text: str, limit: int = 500) -> str:
    """Return text as a header value: no line breaks, control or non-ASCII characters, and no longer than a limit."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:limit])
