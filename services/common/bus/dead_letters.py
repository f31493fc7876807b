"""Dead letters as somebody reads them, and the message that one becomes again. Pure.

How a message gets here: :mod:`services.common.bus.delivery`.
Next: :mod:`services.common.bus.reader`, which fetches them.
"""

from typing import Any

import msgspec

from services.common.bus.envelope import (
    DEAD_AT,
    DEAD_CONSUMER,
    DEAD_DETAIL,
    DEAD_REASON,
    DEAD_SEQUENCE,
    DEAD_SUBJECT,
    MSG_ID,
    BusMessage,
    Unusable,
    incoming,
)

_OURS = (DEAD_AT, DEAD_CONSUMER, DEAD_DETAIL, DEAD_REASON, DEAD_SEQUENCE, DEAD_SUBJECT)
MAX_SHOWN = 64 * 1024
"""Bytes of a payload that are shown; more was never an event."""


class DeadLetter(msgspec.Struct, frozen=True, rename="camel"):
    """One dead letter.

    :ivar sequence: of the letter, by which it is named. :ivar subject: the message's own.
    :ivar original_sequence: of the message in its stream; empty where it is not known, like the others.
    """

    sequence: int
    at: str
    reason: str
    detail: str
    subject: str
    consumer: str
    original_sequence: str
    headers: dict[str, str]
    payload: bytes

    def summary(self) -> dict[str, Any]:
        """All but headers and payload."""
        names = ("sequence", "at", "reason", "detail", "subject", "consumer")
        return {name: getattr(self, name) for name in names} | {"originalSequence": self.original_sequence}

    def document(self) -> dict[str, Any]:
        """All of it, the payload as JSON where it is some, else as text, else in hex."""
        return self.summary() | {"headers": self.headers, "bytes": len(self.payload), "payload": _shown(self.payload)}


def dead_letter_of(sequence: int, message: BusMessage) -> DeadLetter:
    """The letter in a message of the dead letters' stream."""
    found = message.headers
    return DeadLetter(
        sequence=sequence,
        at=found.get(DEAD_AT, ""),
        reason=found.get(DEAD_REASON, ""),
        detail=found.get(DEAD_DETAIL, ""),
        subject=found.get(DEAD_SUBJECT, ""),
        consumer=found.get(DEAD_CONSUMER, ""),
        original_sequence=found.get(DEAD_SEQUENCE, ""),
        headers={name: value for name, value in found.items() if name not in _OURS and not name.startswith("Nats-")},
        payload=message.payload,
    )


def again(letter: DeadLetter, fresh_id: str) -> BusMessage:
    """The message as it is to be published again, in its own trace, under a new id: no consumer takes it for the old.

    :raises Unusable: it would only become a dead letter again.
    """
    if not letter.subject:
        raise Unusable("BadSubject", "the letter does not say which subject it was sent to")
    headers = letter.headers | {"ce-id": fresh_id, MSG_ID: fresh_id} if "ce-id" in letter.headers else letter.headers
    incoming(letter.subject, headers, letter.payload)
    return BusMessage(letter.subject, letter.payload, dict(headers))


def _shown(payload: bytes) -> Any:
    payload = payload[:MAX_SHOWN]
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.hex()
