"""What roles know of the bus: publish, consume, a small key-value store. Types only.

An event is a hint, never the truth: losing, repeating or reordering any of them changes nothing but latency.
Next: :mod:`services.common.bus.jetstream`, the one production implementation.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import msgspec
from opentelemetry.context import Context

from schemas.encoding import Subject
from schemas.events import Event


class Received(msgspec.Struct, frozen=True):
    """One event as it came.

    :ivar subject: decoded; it agrees with the event's own.
    :ivar context: of the consumer's ``process`` span: the parent for whatever the event sets off.
    :ivar redelivered: the bus delivered it before. :ivar time: the publisher's (``ce-time``), as it came.
    """

    event: Event
    subject: Subject
    context: Context
    redelivered: bool = False
    time: str = ""


EventHandler = Callable[[Received], None]
"""Puts the event's key into a queue. Must not block and should not raise."""


class BusError(Exception):
    """A bus operation failed."""


class BusUnavailable(BusError):
    """The bus is away or did not answer in time; the same call may work later."""


class WrongRevision(BusError):
    """The key changed since the revision that was named (or exists, for ``create``)."""


class KeyValueEntry(msgspec.Struct, frozen=True):
    """A value of a bucket. ``value`` is ``None`` for a key that was deleted (in a watch only).

    :ivar revision: grows with every change of the bucket; compare for equality only.
    """

    key: str
    value: bytes | None
    revision: int


class KeyValue(Protocol):
    """A bucket. Every call raises :class:`BusUnavailable` when the bus is away; the bucket is made when missing."""

    async def get(self, key: str) -> KeyValueEntry | None:
        """The value of a key, ``None`` when there is none."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Set a key whatever it held; returns the new revision."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that holds nothing.

        :raises WrongRevision: it does hold something.
        """
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Set a key that still has this revision.

        :raises WrongRevision: it has another.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove a key; one that is missing is no error."""
        ...

    async def forget(self, key: str) -> None:
        """Remove what is left of a deleted key: the mark by which watches learn of it, which takes room for ever."""
        ...

    def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """What the matching keys hold now, then ``None`` once, then every change, until the caller stops.

        Marks of keys deleted earlier may be among what they hold.
        Ends with :class:`BusUnavailable` when the bus goes away: the caller begins again.
        """
        ...


class Bus(Protocol):
    """The bus as one process sees it."""

    @property
    def connected(self) -> bool:
        """Whether the bus is reached at this moment. Nothing may wait for it."""
        ...

    async def publish(self, event: Event) -> None:
        """Publish an event as a child of the current span.

        Takes at most the publish budget (50 ms); after that it goes on in the background. Never raises because
        the bus is away: the next reconcile makes up for an event that got lost.
        """
        ...

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Hand every new event that matches one of the filters to the handler, until cancelled.

        :param consumer: a name without dots, unique per role and node (:func:`schemas.encoding.node_consumer`).
        :param filters: subject filters (:func:`schemas.encoding.node_filter`, :func:`schemas.encoding.stage_filter`).
        """
        ...

    def kv(self, bucket: str) -> KeyValue:
        """A bucket by name."""
        ...

    async def close(self) -> None:
        """Publish what still waits (within a second), then leave the bus."""
        ...
