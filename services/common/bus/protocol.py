"""The bus as roles see it: publish, consume, and a small key-value store. Types only.

An event is a hint, never the truth: losing, repeating or reordering events changes nothing but latency.
Next: :mod:`services.common.bus.nats.jetstream`, the one production implementation.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import msgspec
from opentelemetry.context import Context

from schemas.bus.encoding import Subject
from schemas.bus.events import Event


class ReceivedEvent(msgspec.Struct, frozen=True):
    """One received event.

    :ivar subject: decoded; it agrees with the event's own subject.
    :ivar context: context of the consumer's ``process`` span, the parent of the work that the event triggers.
    :ivar redelivered: whether the bus has delivered the event before.
    :ivar time: the publisher's ``ce-time``, not validated.
    """

    event: Event
    subject: Subject
    context: Context
    redelivered: bool = False
    time: str = ""


EventHandler = Callable[[ReceivedEvent], None]
"""Adds the event's key to a queue. It must not block and should not raise."""


class BusError(Exception):
    """A bus operation failed."""


class BusUnavailable(BusError):
    """The bus is not connected or did not answer in time; the same call may succeed later."""


class BusDenied(BusUnavailable):
    """The bus does not permit the call to the identity of the caller."""


class WrongRevision(BusError):
    """The key has another revision than the named one, or exists already (``create``)."""


class KeyValueEntry(msgspec.Struct, frozen=True):
    """A key of a bucket with its value.

    :ivar value: ``None`` for a deleted key (in a watch only).
    :ivar revision: grows with every change of the bucket.
    """

    key: str
    value: bytes | None
    revision: int


class BucketState(msgspec.Struct, frozen=True):
    """What a bucket says of itself in one answer.

    :ivar revision: that of the last change, 0 before the first.
    :ivar stored: number of keys, and of markers of deleted ones.
    """

    revision: int
    stored: int


class KeyValue(Protocol):
    """A bucket; it is created when missing.

    :raises BusUnavailable: (every call) the bus is unavailable.
    """

    async def get(self, key: str) -> KeyValueEntry | None:
        """Return the entry of a key, ``None`` when the key does not exist."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Set a key, whatever its revision; return the new revision."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that does not exist; return the new revision.

        :raises WrongRevision: the key exists.
        """
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Set a key that still has this revision; return the new revision.

        :raises WrongRevision: the key has another revision.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete a key; a missing key is no error. A delete marker remains, from which watches learn of it."""
        ...

    async def purge(self, key: str) -> None:
        """Remove the delete marker of a key; otherwise markers of deleted keys fill the bucket over time."""
        ...

    async def state(self) -> BucketState:
        """Return the state of the bucket."""
        ...

    def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """Yield the entries of the matching keys, then ``None`` once, then every change, until the caller stops.

        The first entries may include markers of keys that were deleted earlier.

        :raises BusUnavailable: the connection is lost; the caller starts a new watch.
        """
        ...


class Bus(Protocol):
    """The bus of one process."""

    @property
    def connected(self) -> bool:
        """Whether the bus is connected at this moment. Roles must not wait for it."""
        ...

    async def publish(self, event: Event) -> None:
        """Publish an event as a child of the current span.

        The call takes at most the publish budget (50 ms); then the publish continues in the background. It never raises
        because the bus is unavailable: the next reconcile makes up for a lost event.
        """
        ...

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Pass every new event that matches one of the filters to the handler, until cancelled.

        :param consumer: a name without dots; a role of a node has no other consumer than its own
            (:func:`schemas.bus.encoding.node_consumer`), and a role of the cluster but the controller has none.
        :param filters: subject filters (:func:`schemas.bus.encoding.node_filter`,
            :func:`schemas.bus.encoding.stage_filter`).
        :raises ValueError: the role has no such consumer, which is a bug of the caller.
        """
        ...

    def kv(self, bucket: str) -> KeyValue:
        """Return a bucket by name."""
        ...

    async def close(self) -> None:
        """Publish what is in the outbox (within a second), then close the connection."""
        ...
