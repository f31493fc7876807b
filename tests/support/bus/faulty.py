"""A bus that drops, duplicates, delays and reorders the deliveries of another bus."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.bus.events import Event
from services.common.bus.protocol import Bus, EventHandler, KeyValue, ReceivedEvent


@dataclass(frozen=True)
class Faults:
    """Faults of a bus.

    :ivar drop: probability that an event is dropped.
    :ivar duplicate: probability that an event is delivered twice.
    :ivar reorder: probability that a delivery is held back and delivered after later ones.
    :ivar delay: longest delay of a delivery in seconds.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0


class FaultyBus:
    """Drops, duplicates, delays and reorders the deliveries of another bus; reproducible by its seed."""

    def __init__(self, inner: Bus, faults: Faults | None = None, *, seed: int = 0) -> None:
        self._inner = inner
        self._faults = faults or Faults()
        self._random = random.Random(seed)
        self._held_back: list[tuple[EventHandler, ReceivedEvent]] = []
        self.dropped = 0
        self.duplicated = 0

    @property
    def connected(self) -> bool:
        """Whether the other bus is connected."""
        return self._inner.connected

    async def publish(self, event: Event) -> None:
        """Publish on the other bus."""
        await self._inner.publish(event)

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """Deliver events with faults."""
        await self._inner.consume(
            consumer=consumer, filters=filters, handler=lambda received: self._deliver(handler, received)
        )

    def kv(self, bucket: str) -> KeyValue:
        """Return a bucket of the other bus, without faults."""
        return self._inner.kv(bucket)

    async def close(self) -> None:
        """Deliver what is held back, then close the other bus."""
        self.release()
        await self._inner.close()

    def release(self) -> None:
        """Deliver the events that are held back, in random order."""
        held, self._held_back = self._held_back, []
        self._random.shuffle(held)
        for handler, received in held:
            handler(received)

    def _deliver(self, handler: EventHandler, received: ReceivedEvent) -> None:
        if self._random.random() < self._faults.drop:
            self.dropped += 1
            return
        if self._random.random() < self._faults.duplicate:
            self.duplicated += 1
            self._handle(handler, received)
        self._handle(handler, received)

    def _handle(self, handler: EventHandler, received: ReceivedEvent) -> None:
        if self._random.random() < self._faults.reorder:
            self._held_back.append((handler, received))
            return
        if self._faults.delay:
            later = self._random.uniform(0, self._faults.delay)
            asyncio.get_running_loop().call_later(later, handler, received)
        else:
            handler(received)
        if self._held_back and self._random.random() < 0.5:
            self.release()
