"""The notices of what a stream has stored: one subscription of the connection, whoever follows how much.

A notice says only that it is time to read. Without identities anybody can send one, so none may cost much: with a
subscription for each reader, each notice would arrive as often as there are readers, and the server ends a connection
that does not keep up. What is dropped or malformed costs its readers the time until they read without a notice.
Next: :mod:`services.common.bus.nats.stored.messages`, which reads.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas.bus.encoding import stored_notice
from schemas.inputs import REJECTED, Edge, RejectReason

SEQUENCE = "Nats-Sequence"
"""The header with the sequence of the message."""
MAX_WAITING = 1024
"""Notices that wait to be handled; further ones are dropped."""
MAX_WAITING_BYTES = 1024 * 1024
"""Their bytes; those of the server have none but in headers."""
_MAX_DIGITS, _MAX_SEQUENCE = 20, 2**64 - 1
_MAX_TOKENS = 16
"""A notice's subject has 7, and a forged one thousands."""


class Follower:
    """Who reads a stream, and what it was given notice of.

    :ivar after: the last sequence that it has read.
    :ivar arrived: set by a notice of a later one.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.arrived = asyncio.Event()
        self._noticed = 0

    def notice(self, sequence: int) -> None:
        """Give notice of a message."""
        if sequence > self.after:
            self._noticed = sequence
            self.arrived.set()

    def take(self) -> int:
        """Return the sequence of the last notice since the call before; 0 without one."""
        self.arrived.clear()
        noticed, self._noticed = self._noticed, 0
        return noticed


class Notices:
    """Passes the notices that arrive on one connection to its followers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        # By what their filter begins with, so that a notice costs the same however many there are.
        self._followers: dict[str, set[Follower]] = {}
        self._subscribed: set[str] = set()
        self._subscribing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def following(self, subjects: str, after: int, *, noticed: str) -> AsyncIterator[Follower]:
        """Provide a follower of messages after a sequence, who gets all notices from now on.

        :param subjects: what it reads. Only what precedes the first wildcard counts, so there may be notices of other
            messages, too.
        :param noticed: the subjects of all messages of which the stream gives notice; empty if of none.
        :raises nats.errors.Error: the connection is lost.
        """
        follower, key = Follower(after), _literal(stored_notice(subjects))
        self._followers.setdefault(key, set()).add(follower)
        try:
            if noticed:
                await self._subscribe(stored_notice(noticed))
            yield follower
        finally:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key]

    async def _subscribe(self, subject: str) -> None:
        """Subscribe once for as long as the connection lasts."""
        async with self._subscribing:
            if subject not in self._subscribed:
                await self._client.subscribe(
                    subject,
                    cb=self._on_notice,
                    pending_msgs_limit=MAX_WAITING,
                    pending_bytes_limit=MAX_WAITING_BYTES,
                )
                self._subscribed.add(subject)

    async def _on_notice(self, msg: Msg) -> None:
        sequence = parse_sequence((msg.headers or {}).get(SEQUENCE))
        if sequence is None:
            REJECTED.count(Edge.BUS, RejectReason.MALFORMED)
            return
        tokens = msg.subject.split(".", _MAX_TOKENS)
        for count in range(1, len(tokens) + 1):
            for follower in self._followers.get(".".join(tokens[:count]), ()):
                follower.notice(sequence)


def parse_sequence(text: object) -> int | None:
    """Return the sequence of a header; ``None`` if it is none."""
    if not isinstance(text, str) or len(text) > _MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    sequence = int(text)
    return sequence if sequence <= _MAX_SEQUENCE else None


def _literal(pattern: str) -> str:
    """Return the tokens of a filter before the first wildcard."""
    tokens = pattern.split(".")
    first = next((number for number, token in enumerate(tokens) if token in ("*", ">")), len(tokens))
    return ".".join(tokens[:first])
