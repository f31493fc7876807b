"""The messages to publish once NATS is back: first in, first out; bounded; the oldest is dropped.

A node decides how many dead letters there are, so these have a small bound of their own, and none pushes out an event.
Next: :mod:`services.common.bus.nats.jetstream`, which fills and drains it.
"""

import asyncio
from collections import deque

from schemas.bus.encoding import DEAD_ROOT
from services.common.bus.envelope import BusMessage
from services.common.telemetry.stores import STORES

MAX_DEAD_LETTERS = 100
"""Dead letters in the outbox, of all nodes together; a further one is dropped."""


class Outbox:
    """A bounded queue whose head stays until it is published."""

    def __init__(self, limit: int, dead_limit: int = MAX_DEAD_LETTERS) -> None:
        self._items: deque[BusMessage] = deque()
        self._limit = limit
        self._dead_limit = dead_limit
        self._dead_letters = 0
        self._not_empty = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        STORES.watch("bus-outbox", self, len, limit)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, message: BusMessage) -> BusMessage | None:
        """Append a message; return what was dropped: the oldest for an event, or a dead letter beyond its limit."""
        full = len(self._items) >= self._limit
        if _is_dead_letter(message) and (full or self._dead_letters >= self._dead_limit):
            return message
        dropped = self._pop() if full else None
        self._items.append(message)
        self._dead_letters += _is_dead_letter(message)
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
            self._pop()
        if not self._items:
            self._not_empty.clear()
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until the queue is empty."""
        await self._empty.wait()

    def _pop(self) -> BusMessage:
        message = self._items.popleft()
        self._dead_letters -= _is_dead_letter(message)
        return message


def _is_dead_letter(message: BusMessage) -> bool:
    return message.subject.startswith(f"{DEAD_ROOT}.")
