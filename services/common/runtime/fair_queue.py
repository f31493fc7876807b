"""Slots of which there is a limited number, shared fairly by tenants: a queue of what waits for one.

What a tenant has may take long: a plugin that waits for its deadline, a guest that does not answer. If it held all
slots, the others would wait as long. A tenant therefore gets a slot only while it holds fewer than are free: one tenant
holds at most half of them (rounded up), a second one a quarter. Of 32 slots, all are held only when six tenants hold as
many as they may; until then a tenant that holds none gets one at once.
Next: :mod:`services.common.reconcile.queue`, whose keys wait here, and :mod:`services.multus.server`, whose calls do.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


def namespace_of(key: Hashable) -> Hashable:
    """Return the tenant of a key: its namespace, if it is a pair of namespace and name; otherwise the key itself."""
    return key[0] if isinstance(key, tuple) else key


class FairQueue(Generic[T]):
    """The waiting items, first in, first out for each tenant; the tenants take turns.

    :param slots: number of items that may be taken and not released.
    :param items: the first items.
    :param tenant_of: returns the tenant of an item.
    """

    def __init__(
        self, slots: int, items: Iterable[T] = (), *, tenant_of: Callable[[T], Hashable] = namespace_of
    ) -> None:
        self._free = slots
        self._tenant_of = tenant_of
        self._waiting: dict[Hashable, deque[T]] = {}
        self._held: Counter[Hashable] = Counter()
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def append(self, item: T) -> None:
        """Add an item."""
        self._waiting.setdefault(self._tenant_of(item), deque()).append(item)

    def take(self) -> T | None:
        """Return the next item that gets a slot, and remove it from the queue; ``None`` if none gets one now."""
        # Those that are passed over hold a slot each, so their number does not grow with that of the tenants.
        for tenant, items in self._waiting.items() if self._free else ():
            if self._held[tenant] < self._free:
                del self._waiting[tenant]
                item = items.popleft()
                if items:
                    # Behind the other tenants.
                    self._waiting[tenant] = items
                self._held[tenant] += 1
                self._free -= 1
                return item
        return None

    def release(self, item: T) -> None:
        """Give back the slot of an item."""
        tenant = self._tenant_of(item)
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]


class FairSlots:
    """A limited number of slots for what runs in callers' own tasks.

    :param limit: number of slots.
    """

    def __init__(self, limit: int) -> None:
        self._queue: FairQueue[tuple[Hashable, asyncio.Future[None]]] = FairQueue(limit)

    @asynccontextmanager
    async def hold(self, tenant: Hashable) -> AsyncIterator[None]:
        """Hold a slot while the block runs; wait for one before."""
        waiting = (tenant, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._grant()
        try:
            await waiting[1]
            yield
        finally:
            # The future of a caller that was cancelled while it waited is cancelled: it has no slot to give back.
            if waiting[1].done() and not waiting[1].cancelled():
                self._queue.release(waiting)
                self._grant()

    def _grant(self) -> None:
        while (granted := self._queue.take()) is not None:
            if granted[1].cancelled():
                self._queue.release(granted)
            else:
                granted[1].set_result(None)
