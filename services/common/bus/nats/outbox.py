"""The messages to publish once NATS is back: first in, first out; bounded; the oldest is dropped.

Next: :mod:`services.common.bus.nats.jetstream`, which fills and drains it.
"""

import asyncio
from collections import deque

from services.common.bus.envelope import BusMessage
from services.common.telemetry.stores import STORES


class Outbox:
    """A bounded queue whose head stays until it is published."""

    def __init__(self, limit: int) -> None:
        self._items: deque[BusMessage] = deque()
        self._limit = limit
        self._not_empty = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        STORES.watch("bus-outbox", self, len, limit)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, message: BusMessage) -> BusMessage | None:
        """Append a message; return the oldest message if it was dropped for this one."""
        dropped = self._items.popleft() if len(self._items) >= self._limit else None
        self._items.append(message)
        self._not_empty.set()
        self._empty.clear()
        return dropped

    async def wait_head(self) -> BusMessage:
        """Wait for a message and return the oldest; it stays in the queue."""
        await self._not_empty.wait()
        return self._items[0]

    def remove(self, message: BusMessage) -> None:
        """Remove this message if it is still the oldest; it may have been dropped in the meantime."""
        if self._items and self._items[0] is message:
            self._items.popleft()
        if not self._items:
            self._not_empty.clear()
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until the queue is empty."""
        await self._empty.wait()
