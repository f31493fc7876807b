"""Slots of which there is a limited number, shared fairly by tenants: a queue of what waits for one.

What a tenant has may take long: a plugin that waits for its deadline, a guest that does not answer. If it held all
slots, the others would wait as long. While several tenants wait, each therefore gets a slot only while it holds fewer
than are free: the first one holds at most half of them (rounded up), a second one a quarter. A tenant that waits alone
gets all but a reserve of a quarter (rounded down, at least one of several), from which the next ones get a slot at
once: of 32 slots it holds 24, and the next four tenants 4, 2, 1 and 1. As it gives slots back, the others get them
until the shares are as if all had waited from the start.

What is urgent goes first, that of all tenants. One item in some is another one, so that none waits for ever.
Next: :mod:`services.common.reconcile.queue`, whose keys wait here, and :mod:`services.multus.server`, whose calls do.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

RESERVE = 4
"""One slot in as many is kept from a tenant that waits alone."""
MAX_URGENT = 8
"""Urgent items in a row while others wait."""


def namespace_of(key: Hashable) -> Hashable:
    """Return the tenant of a key: its namespace, if it is a pair of namespace and name; otherwise the key itself."""
    return key[0] if isinstance(key, tuple) else key


class _Lane(Generic[T]):
    """The waiting items of one urgency, first in, first out for each tenant; the tenants take turns."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, OrderedDict[T, None]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def append(self, tenant: Hashable, item: T) -> None:
        """Add an item."""
        self._waiting.setdefault(tenant, OrderedDict())[item] = None

    def has_others(self, tenant: Hashable) -> bool:
        """Return whether an item of another tenant waits."""
        return len(self._waiting) > (tenant in self._waiting)

    def remove(self, tenant: Hashable, item: T) -> bool:
        """Remove an item; return whether it was there."""
        items = self._waiting.get(tenant)
        if items is None or item not in items:
            return False
        del items[item]
        if not items:
            del self._waiting[tenant]
        return True

    def take(self, may_take: Callable[[Hashable], bool]) -> tuple[Hashable, T] | None:
        """Remove and return the next item of a tenant that may take one, with its tenant; ``None`` if there is none."""
        for tenant, items in self._waiting.items():
            if may_take(tenant):
                item, _ = items.popitem(last=False)
                # Behind the other tenants.
                self._waiting.move_to_end(tenant)
                if not items:
                    del self._waiting[tenant]
                return tenant, item
        return None


class FairQueue(Generic[T]):
    """The waiting items.

    :param slots: number of items that may be taken and not released.
    :param tenant_of: returns the tenant of an item.
    """

    def __init__(self, slots: int, *, tenant_of: Callable[[T], Hashable] = namespace_of) -> None:
        self._free = slots
        self._reserve = max(slots // RESERVE, 1) if slots > 1 else 0
        self._tenant_of = tenant_of
        self._urgent: _Lane[T] = _Lane()
        self._others: _Lane[T] = _Lane()
        self._held: Counter[Hashable] = Counter()
        self._urgent_in_a_row = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def append(self, item: T, *, urgent: bool = True) -> None:
        """Add an item that does not wait yet."""
        (self._urgent if urgent else self._others).append(self._tenant_of(item), item)

    def hasten(self, item: T) -> None:
        """Make a waiting item urgent, behind those of its tenant that are."""
        tenant = self._tenant_of(item)
        if self._others.remove(tenant, item):
            self._urgent.append(tenant, item)

    def take(self) -> T | None:
        """Return the next item that gets a slot, and remove it from the queue; ``None`` if none gets one now."""
        lanes = (self._urgent, self._others)
        # Tenants that are passed over hold a slot each, so their number does not grow with that of the tenants.
        for lane in (lanes if self._urgent_in_a_row < MAX_URGENT else reversed(lanes)) if self._free else ():
            if (found := lane.take(self._may_take)) is not None:
                tenant, item = found
                self._urgent_in_a_row = self._urgent_in_a_row + 1 if lane is self._urgent else 0
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

    def _may_take(self, tenant: Hashable) -> bool:
        if self._held[tenant] < self._free:
            return True
        return self._free > self._reserve and not any(lane.has_others(tenant) for lane in (self._urgent, self._others))


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
