"""The bus in memory, and one with faults: stand-ins that pass the same conformance suite as the real bus."""

import asyncio
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import structlog
from structlog.typing import FilteringBoundLogger

from schemas.events import Event
from schemas.stages import ROWS
from services.common.bus import spans
from services.common.bus.delivery import deliver
from services.common.bus.envelope import BusMessage, incoming, outgoing
from services.common.bus.protocol import (
    Bus,
    BusUnavailable,
    EventHandler,
    KeyValue,
    KeyValueEntry,
    Received,
    WrongRevision,
)
from services.common.telemetry import Telemetry
from tests.support.spans import recording_telemetry

ROLE_OF_THE_STAGE = "the first role that may publish the stage"


def matches(pattern: str, subject: str) -> bool:
    """NATS' subject matching: ``*`` is one token, a last ``>`` one or more."""
    wanted, found = pattern.split("."), subject.split(".")
    for i, token in enumerate(wanted):
        if token == ">":
            return len(found) > i
        if i >= len(found) or token not in ("*", found[i]):
            return False
    return len(wanted) == len(found)


@dataclass
class _Consumer:
    filters: Sequence[str]
    waiting: deque[tuple[int, BusMessage]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Broker:
    """What the server would hold: messages, consumers, dead letters, buckets. Several buses share one."""

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
        """Wait until something about the broker is so."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def changed(self) -> None:
        """Something about the broker changed."""
        self._changed.set()

    def stop(self) -> None:
        """The server goes away: publishes wait, key-value calls fail."""
        self.up.clear()

    def start(self) -> None:
        """The server is back; what waited is published."""
        self.up.set()
        delayed, self._delayed = self._delayed, []
        for message in delayed:
            self.accept(message)

    def accept(self, message: BusMessage) -> None:
        """Store a message (once per id) for every consumer that filters for it."""
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

    def consumer(self, name: str, filters: Sequence[str]) -> _Consumer:
        """The named consumer; one that is new gets new messages only."""
        found = self.consumers.get(name)
        if found is None or list(found.filters) != list(filters):
            found = self.consumers[name] = _Consumer(list(filters))
            self.changed()
        return found


class MemoryBus:
    """The in-memory twin of :class:`services.common.bus.jetstream.JetStreamBus`.

    Encodes, decodes, checks and traces like the real one.

    :ivar published: every event that was published through this bus.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        role: str = ROLE_OF_THE_STAGE,
        node: str = "_",
        telemetry: Telemetry | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self.broker = broker or Broker()
        self.published: list[Event] = []
        self._role = role
        self._node = node
        self._telemetry = telemetry or recording_telemetry()[0]
        self._log: FilteringBoundLogger = log or structlog.get_logger()
        self._start_id = uuid4().hex

    @property
    def connected(self) -> bool:
        """Whether the broker is up."""
        return self.broker.up.is_set()

    async def publish(self, event: Event) -> None:
        """Publish at once, or when the broker is back."""
        role = ROWS[event.stage].publishers[0] if self._role == ROLE_OF_THE_STAGE else self._role
        message = outgoing(event, role=role, node=self._node, start_id=self._start_id)
        self._telemetry.metrics.published(event)
        with spans.send(self._telemetry.tracer, message, stage=str(event.stage), operation=event.operation.id) as span:
            if not self.connected:
                span.set_attribute(spans.BUFFERED, True)
            self.broker.accept(message)
        self.published.append(incoming(message.subject, message.headers, message.payload)[0])

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Deliver until cancelled."""
        mine = self.broker.consumer(consumer, filters)
        while True:
            while mine.waiting and self.connected:
                sequence, message = mine.waiting.popleft()
                dead = deliver(
                    message,
                    handler,
                    telemetry=self._telemetry,
                    log=self._log,
                    consumer=consumer,
                    stream="HOTPLUG",
                    sequence=sequence,
                )
                if dead is not None and dead.id not in {letter.id for letter in self.broker.dead}:
                    self.broker.dead.append(dead)
                self.broker.changed()
            mine.arrived.clear()
            if mine.waiting:
                await self.broker.up.wait()
            else:
                await mine.arrived.wait()

    def kv(self, bucket: str) -> KeyValue:
        """A bucket of the broker."""
        return self.broker.buckets.setdefault(bucket, MemoryKeyValue(self.broker))

    async def close(self) -> None:
        """Nothing is held."""


class MemoryKeyValue:
    """A bucket in memory."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._entries: dict[str, KeyValueEntry] = {}
        self._revision = 0
        self._watchers: list[tuple[str, asyncio.Queue[KeyValueEntry | None]]] = []

    def entries(self) -> list[KeyValueEntry]:
        """All that is there."""
        return list(self._entries.values())

    def restore(self, values: dict[str, bytes]) -> None:
        """Set back to a copy; nobody is told, as when a server's data is replaced."""
        self._revision += 1
        self._entries = {key: KeyValueEntry(key, value, self._revision) for key, value in values.items()}

    async def get(self, key: str) -> KeyValueEntry | None:
        """The value of a key."""
        self._check(key)
        return self._entries.get(key)

    async def put(self, key: str, value: bytes) -> int:
        """Set a key."""
        self._check(key)
        return self._set(key, value)

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that holds nothing."""
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
        """Remove a key."""
        self._check(key)
        self._revision += 1
        self._entries.pop(key, None)
        self._tell(KeyValueEntry(key, None, self._revision))

    async def forget(self, key: str) -> None:
        """No mark was left."""
        self._check(key)

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """What is there, ``None``, then every change."""
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
        self._tell(self._entries[key])
        return self._revision

    def _tell(self, entry: KeyValueEntry) -> None:
        for keys, updates in self._watchers:
            if matches(keys, entry.key):
                updates.put_nowait(entry)

    def _check(self, key: str) -> None:
        if not self._broker.up.is_set():
            raise BusUnavailable("the broker is down")
        # What a real server takes for a key.
        if not re.fullmatch(r"[-/_=.a-zA-Z0-9]+", key) or key[0] == "." or key[-1] == ".":
            raise BusUnavailable(f"{key!r} is not a key")


@dataclass(frozen=True)
class Faults:
    """Probabilities per delivered event; ``delay`` is a longest wait in seconds for the delayed and reordered."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0


class FaultyBus:
    """Loses, repeats, delays and reorders what another bus delivers, the same way for the same seed."""

    def __init__(self, inner: Bus, faults: Faults | None = None, *, seed: int = 0) -> None:
        self._inner = inner
        self._faults = faults or Faults()
        self._random = random.Random(seed)
        self._held: list[tuple[EventHandler, Received]] = []
        self.dropped = 0
        self.duplicated = 0

    @property
    def connected(self) -> bool:
        """The other bus' word."""
        return self._inner.connected

    async def publish(self, event: Event) -> None:
        """Passed on."""
        await self._inner.publish(event)

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Deliver with faults."""
        await self._inner.consume(
            consumer=consumer, filters=filters, handler=lambda received: self._deliver(handler, received)
        )

    def kv(self, bucket: str) -> KeyValue:
        """Without faults."""
        return self._inner.kv(bucket)

    async def close(self) -> None:
        """Let go of what is held back, then close the other bus."""
        self.release()
        await self._inner.close()

    def release(self) -> None:
        """Deliver what is held back, in any order."""
        held, self._held = self._held, []
        self._random.shuffle(held)
        for handler, received in held:
            handler(received)

    def _deliver(self, handler: EventHandler, received: Received) -> None:
        if self._random.random() < self._faults.drop:
            self.dropped += 1
            return
        if self._random.random() < self._faults.duplicate:
            self.duplicated += 1
            self._pass(handler, received)
        self._pass(handler, received)

    def _pass(self, handler: EventHandler, received: Received) -> None:
        if self._random.random() < self._faults.reorder:
            self._held.append((handler, received))
            return
        if self._faults.delay:
            later = self._random.uniform(0, self._faults.delay)
            asyncio.get_running_loop().call_later(later, handler, received)
        else:
            handler(received)
        if self._held and self._random.random() < 0.5:
            self.release()
