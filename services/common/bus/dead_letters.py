"""Dead letters as users read them, and the message that replays one. Pure.

Messages are dead-lettered in :mod:`services.common.bus.delivery`.
Next: :mod:`services.common.bus.nats.stored.reader`, which fetches dead letters.
"""

from typing import Any, cast

import msgspec

from schemas.bus.encoding import DEAD_ROOT, SUBJECT_ROOT
from schemas.inputs import Edge, InputDecoder, RejectedInput
from services.common.bus.envelope import (
    DEAD_AT,
    DEAD_CONSUMER,
    DEAD_DETAIL,
    DEAD_REASON,
    DEAD_SEQUENCE,
    DEAD_SUBJECT,
    MSG_ID,
    BusMessage,
    UnusableMessage,
    decode_message,
    keep_headers,
)

_DEAD_HEADERS = (DEAD_AT, DEAD_CONSUMER, DEAD_DETAIL, DEAD_REASON, DEAD_SEQUENCE, DEAD_SUBJECT)
MAX_SHOWN = 64 * 1024
"""Maximum of payload bytes to show; a longer payload is never a valid event."""

_payload = InputDecoder(Edge.BUS, cast("type[Any]", Any))


class DeadLetter(msgspec.Struct, frozen=True, rename="camel"):
    """One dead letter. A field whose header is missing is empty.

    :ivar sequence: sequence of the dead letter, by which users name it.
    :ivar at: time of the dead-lettering, RFC 3339.
    :ivar subject: subject of the original message.
    :ivar original_sequence: sequence of the original message in its stream.
    :ivar headers: headers of the original message.
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
        """Return all fields but headers and payload."""
        names = ("sequence", "at", "reason", "detail", "subject", "consumer")
        return {name: getattr(self, name) for name in names} | {"originalSequence": self.original_sequence}

    def document(self) -> dict[str, Any]:
        """Return all fields; the payload is decoded JSON if possible, otherwise text, otherwise hex."""
        return self.summary() | {
            "headers": self.headers,
            "bytes": len(self.payload),
            "payload": _readable(self.payload),
        }


def parse_dead_letter(sequence: int, message: BusMessage) -> DeadLetter:
    """Return the dead letter in a message of the dead letters' stream.

    :param sequence: sequence of the message in that stream.
    """
    headers = message.headers
    return DeadLetter(
        sequence=sequence,
        at=headers.get(DEAD_AT, ""),
        reason=headers.get(DEAD_REASON, ""),
        detail=headers.get(DEAD_DETAIL, ""),
        # Not what the header says: NATS has permitted the subject of the dead letter, and a replay goes to this one.
        subject=SUBJECT_ROOT + message.subject.removeprefix(DEAD_ROOT) if DEAD_SUBJECT in headers else "",
        consumer=headers.get(DEAD_CONSUMER, ""),
        original_sequence=headers.get(DEAD_SEQUENCE, ""),
        # The original's `Nats-` headers were removed, see `build_dead_letter`. These are the dead letter's own.
        headers={
            name: value for name, value in headers.items() if name not in _DEAD_HEADERS and not name.startswith("Nats-")
        },
        payload=message.payload,
    )


def build_replay(letter: DeadLetter, new_id: str) -> BusMessage:
    """Return the message that replays a dead letter.

    It has the original trace context and a new id: with the old one the server would drop it as a duplicate.

    :raises UnusableMessage: the message would only be dead-lettered again.
    """
    if not letter.subject:
        raise UnusableMessage("BadSubject", f"dead letter has no header {DEAD_SUBJECT}")
    # A node may have stored the dead letter, with any headers.
    headers = keep_headers(letter.headers) | ({"ce-id": new_id, MSG_ID: new_id} if "ce-id" in letter.headers else {})
    # Raises what a consumer would raise.
    decode_message(letter.subject, headers, letter.payload)
    return BusMessage(letter.subject, letter.payload, headers)


def _readable(payload: bytes) -> Any:
    """Return a payload as decoded JSON, text or hex."""
    payload = payload[:MAX_SHOWN]
    try:
        return _payload.decode(payload)
    except RejectedInput:
        pass
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.hex()
