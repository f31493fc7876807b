"""The events of one guest that wait for their reader: bounded, because a guest causes as many as it likes.

Next: :mod:`services.common.guest.qmp_client` and :mod:`services.common.guest.libvirt_domain`, which fill it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from services.common.flowcontrol.allowance import Allowance
from services.common.telemetry.stores import STORES

MAX_PENDING_EVENTS = 1024
"""Events that wait for the reader. One that does not fit ends the watch."""

MAX_EVENTS, EVENTS_PER_SECOND = 8192, 256
"""Events of libvirt that are forwarded at once, and in the long run."""

T = TypeVar("T")


class PendingEvents(Generic[T]):
    """A queue that ends when its source does, or when an event is lost: the reader then observes what it missed."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()
        self._ended = False
        STORES.watch("guest-events", self, len, MAX_PENDING_EVENTS)

    def __len__(self) -> int:
        # The end of the queue is no event; once the reader has taken it, the queue is empty.
        return max(0, self._queue.qsize() - self._ended)

    def put(self, event: T) -> None:
        """Append an event; end the queue if it is full."""
        if len(self) >= MAX_PENDING_EVENTS:
            self.end()
        if not self._ended:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Let the reader stop after the events that wait."""
        if not self._ended:
            self._ended = True
            self._queue.put_nowait(None)

    async def read(self) -> AsyncIterator[T]:
        """Yield the events until the queue ends; for one reader."""
        while (event := await self._queue.get()) is not None:
            yield event


class EventGate(Generic[T]):
    """Forwards the events of one connection until there are more than any domain has; used in one thread.

    :param forward: called with each event.
    :param on_flood: called once, when there are too many.
    """

    def __init__(self, forward: Callable[[T], None], on_flood: Callable[[], None]) -> None:
        self._allowance = Allowance(1 / EVENTS_PER_SECOND)
        self._forward = forward
        self._on_flood = on_flood
        self._flooded = False

    def put(self, event: T, now: float) -> None:
        """Forward an event, or drop it.

        :param now: seconds of a monotonic clock.
        """
        if self._flooded:
            return
        if self._allowance.use(now) > MAX_EVENTS:
            self._flooded = True
            self._on_flood()
        else:
            self._forward(event)
