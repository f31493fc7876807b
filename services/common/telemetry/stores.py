"""The sizes of what a process remembers: caches, queues and records that grow with what comes from outside.

Each is a store with a name, and with a limit unless it holds one entry for each object that exists anyway.
Metrics: ``hotnic_store_entries{store}``, ``hotnic_store_limit{store}``. docs/observability.md lists all stores.
Next: :mod:`services.common.telemetry.metrics`, which observes them.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")
T = TypeVar("T")


class StoreSize(NamedTuple):
    """The size of a store.

    :ivar limit: ``None`` if it has one entry for each object that exists.
    """

    entries: int
    limit: int | None


class Stores:
    """The stores of a process. Their owners are not kept alive."""

    def __init__(self) -> None:
        self._watched: dict[tuple[str, int], tuple[Callable[[], int | None], int | None]] = {}

    def watch(self, store: str, owner: T, entries: Callable[[T], int], limit: int | None = None) -> None:
        """Report the size of a store from now on, as long as its owner lives.

        :param entries: returns the number of entries; it must not hold the owner.
        """
        key = (store, id(owner))
        found = weakref.ref(owner, lambda _: self._watched.pop(key, None))

        def count() -> int | None:
            alive = found()
            return entries(alive) if alive is not None else None

        self._watched[key] = count, limit

    def limits(self) -> dict[str, int]:
        """Return the limit of each store that has one, without counting entries."""
        return {store: limit for (store, _), (_, limit) in list(self._watched.items()) if limit is not None}

    def sizes(self) -> dict[str, StoreSize]:
        """Return the size of each store. Of several with a limit it is the fullest, otherwise the sum of all."""
        sizes: dict[str, StoreSize] = {}
        for (store, _), (count, limit) in list(self._watched.items()):
            entries = count()
            if entries is None:
                continue
            others = sizes[store].entries if store in sizes else 0
            sizes[store] = StoreSize(others + entries if limit is None else max(others, entries), limit)
        return sizes


STORES: Final = Stores()
"""One for the process: what remembers has no telemetry otherwise."""


class Bounded(Generic[K, V]):
    """A dictionary with a limit, beyond which it drops the entry that was set the longest time ago. It is a store.

    :param store: name of the store.
    :param limit: the largest number of entries.
    """

    def __init__(self, store: str, limit: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._limit = limit
        STORES.watch(store, self, len, limit)

    def __setitem__(self, key: K, value: V) -> None:
        """Set an entry, which is dropped last from then on."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: object = None) -> object:
        """Return the value of a key."""
        return self._entries.get(key, default)

    def pop(self, key: K) -> V | None:
        """Remove a key and return its value; ``None`` if there is none."""
        return self._entries.pop(key, None)
