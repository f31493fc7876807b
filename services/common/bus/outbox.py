"""The events that wait for an absent bus: first in first out, bounded, the oldest dropped."""

import asyncio
from collections import deque

from services.common.bus.envelope import BusMessage


class Outbox:
    """A bounded queue whose head stays until it is really sent."""

    def __init__(self, limit: int) -> None:
        self._items: deque[BusMessage] = deque()
        self._limit = limit
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, message: BusMessage) -> BusMessage | None:
        """Append; returns the oldest message when it had to go for this one."""
        dropped = self._items.popleft() if len(self._items) >= self._limit else None
        self._items.append(message)
        self._filled.set()
        self._drained.clear()
        return dropped

    async def head(self) -> BusMessage:
        """The oldest message, once there is one. It stays."""
        await self._filled.wait()
        return self._items[0]

    def done(self, message: BusMessage) -> None:
        """Take this message off, if it is still the oldest (it may have been dropped meanwhile)."""
        if self._items and self._items[0] is message:
            self._items.popleft()
        if not self._items:
            self._filled.clear()
            self._drained.set()

    async def drained(self) -> None:
        """Wait until nothing waits."""
        await self._drained.wait()
