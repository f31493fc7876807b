"""The bus in memory: a test double that passes the conformance suite of the real bus.

Next: :mod:`tests.support.bus.faulty`, a bus with faults.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import structlog

from schemas.bus.encoding import STREAM
from schemas.bus.events import Event
from schemas.stages import ROWS
from services.common.bus import spans
from services.common.bus.delivery import build_delivery_handler
from services.common.bus.envelope import BusMessage, decode_message, encode_message
from services.common.bus.middleware import Delivery
from services.common.bus.protocol import (
    BucketState,
    BusUnavailable,
    EventHandler,
    KeyValue,
    KeyValueEntry,
    WrongRevision,
)
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log
from tests.support.telemetry.spans import recording_telemetry

PUBLISHER_OF_STAGE = "publisher-of-stage"
"""The default role of a bus: the first role that may publish the event's stage."""


def matches(pattern: str, subject: str) -> bool:
    """Return whether NATS would deliver a subject to a pattern: ``*`` is one token, a final ``>`` one or more."""
    expected_tokens, found = pattern.split("."), subject.split(".")
    for i, token in enumerate(expected_tokens):
        if token == ">":
            return len(found) > i
        if i >= len(found) or token not in ("*", found[i]):
            return False
    return len(expected_tokens) == len(found)


@dataclass
class _Consumer:
    filters: Sequence[str]
    waiting: deque[tuple[int, BusMessage]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Broker:
    """The state of the server: messages, consumers, dead letters, buckets. Several buses share one broker."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.messages: list[BusMessage] = []
        self.dead: list[BusMessage] = []
        self.buckets: dict[str, MemoryKeyValue] = {}
        self.consumers: dict[str, _Consumer] = {}
        self._seen: set[str] = set()
        self._delayed: list[BusMessage] = []
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the broker holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """Report a change of the broker."""
        self._changed.set()

    def stop(self) -> None:
        """Stop the server: publishes are delayed, key-value calls fail."""
        self.up.clear()

    def start(self) -> None:
        """Start the server; delayed messages are published."""
        self.up.set()
        delayed, self._delayed = self._delayed, []
        for message in delayed:
            self.accept(message)

    def accept(self, message: BusMessage) -> None:
        """Store a message, once per id, and deliver it to every matching consumer."""
        if not self.up.is_set():
            self._delayed.append(message)
            return
        if message.id and message.id in self._seen:
            return
        self._seen.add(message.id)
        self.messages.append(message)
        for consumer in self.consumers.values():
            if any(matches(pattern, message.subject) for pattern in consumer.filters):
                consumer.waiting.append((len(self.messages), message))
                consumer.arrived.set()

    def accept_dead_letter(self, message: BusMessage) -> None:
        """Store a dead letter, once per id."""
        if message.id not in {letter.id for letter in self.dead}:
            self.dead.append(message)

    def consumer(self, name: str, filters: Sequence[str]) -> _Consumer:
        """Return the named consumer; a new one gets new messages only."""
        found = self.consumers.get(name)
        if found is None or list(found.filters) != list(filters):
            found = self.consumers[name] = _Consumer(list(filters))
            self.changed()
        return found


class MemoryBus:
    """The in-memory counterpart of :class:`services.common.bus.nats.jetstream.JetStreamBus`.

    It encodes, decodes, checks and traces events as the real bus does.

    :ivar published: every event that was published through this bus.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        role: str = PUBLISHER_OF_STAGE,
        node: str = "_",
        telemetry: Telemetry | None = None,
        log: Log | None = None,
    ) -> None:
        self.broker = broker or Broker()
        self.published: list[Event] = []
        self._role = role
        self._node = node
        self._telemetry = telemetry or recording_telemetry()[0]
        self._log: Log = log or structlog.get_logger()
        self._start_id = uuid4().hex

    @property
    def connected(self) -> bool:
        """Whether the broker is up."""
        return self.broker.up.is_set()

    async def publish(self, event: Event) -> None:
        """Publish at once, or after the broker has started."""
        role, node = self._role, self._node
        if role == PUBLISHER_OF_STAGE:
            role, node = ROWS[event.stage].publishers[0], event.node
        message = encode_message(event, role=role, node=node, start_id=self._start_id)
        self._telemetry.metrics.record_published(event)
        with spans.send_span(
            self._telemetry.tracer, message, stage=str(event.stage), operation=event.operation.id
        ) as span:
            if not self.connected:
                span.set_attribute(spans.BUFFERED, True)
            self.broker.accept(message)
        self.published.append(decode_message(message.subject, message.headers, message.payload)[0])

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Deliver messages until cancelled."""
        own = self.broker.consumer(consumer, filters)
        handle = build_delivery_handler(
            handler,
            consumer=consumer,
            start_id=self._start_id,
            telemetry=self._telemetry,
            log=self._log,
            publish_dead_letter=self.broker.accept_dead_letter,
        )
        while True:
            while own.waiting and self.connected:
                sequence, message = own.waiting.popleft()
                handle(Delivery(message, consumer, STREAM, sequence))
                self.broker.changed()
            own.arrived.clear()
            if own.waiting:
                await self.broker.up.wait()
            else:
                await own.arrived.wait()

    def kv(self, bucket: str) -> KeyValue:
        """Return a bucket of the broker."""
        return self.broker.buckets.setdefault(bucket, MemoryKeyValue(self.broker))

    async def close(self) -> None:
        """Do nothing; no resources are held."""


class MemoryKeyValue:
    """A bucket in memory."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._entries: dict[str, KeyValueEntry] = {}
        self._revision = 0
        self._watchers: list[tuple[str, asyncio.Queue[KeyValueEntry | None]]] = []

    def entries(self) -> list[KeyValueEntry]:
        """Return all entries."""
        return list(self._entries.values())

    def restore(self, values: dict[str, bytes]) -> None:
        """Replace all entries without notifying watchers, as when the data of a server is replaced."""
        self._revision += 1
        self._entries = {key: KeyValueEntry(key, value, self._revision) for key, value in values.items()}

    async def get(self, key: str) -> KeyValueEntry | None:
        """Return the entry of a key."""
        self._check(key)
        return self._entries.get(key)

    async def put(self, key: str, value: bytes) -> int:
        """Set a key."""
        self._check(key)
        return self._set(key, value)

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that does not exist."""
        self._check(key)
        if key in self._entries:
            raise WrongRevision(f"{key} exists")
        return self._set(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Set a key that still has this revision."""
        self._check(key)
        found = self._entries.get(key)
        if (found.revision if found else 0) != revision:
            raise WrongRevision(f"{key} is not at revision {revision}")
        return self._set(key, value)

    async def delete(self, key: str) -> None:
        """Delete a key."""
        self._check(key)
        self._revision += 1
        self._entries.pop(key, None)
        self._notify_watchers(KeyValueEntry(key, None, self._revision))

    async def purge(self, key: str) -> None:
        """Do nothing; deletions leave no markers."""
        self._check(key)

    async def state(self) -> BucketState:
        """Return the last revision and the number of keys."""
        self._check("x")
        return BucketState(self._revision, len(self._entries))

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """Yield the current entries, ``None``, then every change."""
        self._check("x")
        updates: asyncio.Queue[KeyValueEntry | None] = asyncio.Queue()
        for entry in list(self._entries.values()):
            if matches(keys, entry.key):
                updates.put_nowait(entry)
        updates.put_nowait(None)
        watcher = (keys, updates)
        self._watchers.append(watcher)
        try:
            while True:
                yield await updates.get()
        finally:
            self._watchers.remove(watcher)

    def _set(self, key: str, value: bytes) -> int:
        self._revision += 1
        self._entries[key] = KeyValueEntry(key, value, self._revision)
        self._notify_watchers(self._entries[key])
        return self._revision

    def _notify_watchers(self, entry: KeyValueEntry) -> None:
        for keys, updates in self._watchers:
            if matches(keys, entry.key):
                updates.put_nowait(entry)

    def _check(self, key: str) -> None:
        if not self._broker.up.is_set():
            raise BusUnavailable("the broker is down")
        # The keys that a real server accepts.
        if not re.fullmatch(r"[-/_=.a-zA-Z0-9]+", key) or key[0] == "." or key[-1] == ".":
            raise BusUnavailable(f"{key!r} is not a key")
