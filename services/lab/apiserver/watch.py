"""Watching: the event log of one resource and the queues of its watchers.

`Channel.publish` hands an event to every watcher's queue at once; nothing polls. `Watcher` narrows events to its
namespace and selectors and turns a change into ADDED or DELETED when an object enters or leaves the selection
(k8s.io/apiserver cacher). How events go out over HTTP: `watch_http.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.lab.apiserver.errors import Object, expired, too_large_resource_version

if TYPE_CHECKING:
    from services.lab.apiserver.store import Stored

QUEUE_LIMIT = 20_000
"""Events a watcher may lag behind before its watch is ended, as upstream ends slow watchers."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change: the state after it (for DELETED the last state) and the state before."""

    type: str
    stored: Stored
    before: Stored | None


Selector = Callable[[Object], bool]


class Watcher:
    """The queue of one watch; iterate with `next`, which gives None when the watch is over."""

    def __init__(self, namespace: str, selects: Selector | None) -> None:
        self._namespace = namespace
        self._selects = selects
        self._queue: deque[tuple[str, Stored]] = deque()
        self._wake = asyncio.Event()
        self.closed = False

    def offer(self, event: Event) -> None:
        """Queue the event as this watcher must see it, if at all."""
        if self._namespace and event.stored.obj["metadata"].get("namespace", "") != self._namespace:
            return
        seen = self._translate(event)
        if seen is None:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.close()
            return
        self._queue.append((seen, event.stored))
        self._wake.set()

    def _translate(self, event: Event) -> str | None:
        if self._selects is None:
            return event.type
        was = event.before is not None and self._selects(event.before.obj)
        if event.type == "DELETED":
            return "DELETED" if was else None
        now = self._selects(event.stored.obj)
        if now:
            return "MODIFIED" if was else "ADDED"
        return "DELETED" if was else None

    async def take(self) -> list[tuple[str, Stored]]:
        """Wait for events and take all there are; empty when the watch is over."""
        while not self._queue and not self.closed:
            self._wake.clear()
            await self._wake.wait()
        return self.pending()

    def pending(self) -> list[tuple[str, Stored]]:
        """Take what is queued now."""
        taken = list(self._queue)
        self._queue.clear()
        return taken

    def close(self) -> None:
        self.closed = True
        self._wake.set()


class Channel:
    """The bounded event log of one resource and its watchers. `floor` is the oldest version one can watch from."""

    def __init__(self, floor: int, size: int) -> None:
        self._floor = floor
        self._log: deque[Event] = deque(maxlen=size)
        self._watchers: set[Watcher] = set()

    def publish(self, event: Event) -> None:
        if self._log.maxlen is not None and len(self._log) == self._log.maxlen and self._log:
            self._floor = self._log[0].stored.version
        self._log.append(event)
        for watcher in tuple(self._watchers):
            watcher.offer(event)

    def subscribe(self, since: int, current: int, namespace: str, selects: Selector | None) -> Watcher:
        """A watcher of every change after version `since`.

        Raises `ApiError` 410 when the log does not reach back so far, 504 when `since` lies in the future.
        """
        if since > current:
            raise too_large_resource_version(since, current)
        if since < self._floor:
            raise expired(f"too old resource version: {since} ({self._floor})")
        watcher = Watcher(namespace, selects)
        for event in self._log:
            if event.stored.version > since:
                watcher.offer(event)
        self._watchers.add(watcher)
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def close(self) -> None:
        """End every watch."""
        for watcher in tuple(self._watchers):
            watcher.close()
