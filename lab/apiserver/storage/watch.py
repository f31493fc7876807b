"""The watch cache: the event log of one resource, its past states, and the queues of its watchers.

`Channel.publish` adds an event to every watcher's queue at once, without polling. A `Watcher` filters events by
namespace and selectors; when an object enters or leaves the selection, it turns the change into ADDED or DELETED, as
k8s.io/apiserver's cacher does. `endpoints/watch_http.py` sends the events over HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.apiserver.errors import Object, expired, too_large_resource_version

if TYPE_CHECKING:
    from lab.apiserver.storage.store import StoredObject

QUEUE_LIMIT = 20_000
"""Most queued events of a watcher; its watch ends when they exceed it, as upstream ends slow watchers."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    :ivar stored: the state after it; for DELETED the last state.
    :ivar before: the state before it.
    """

    type: str
    stored: StoredObject
    before: StoredObject | None


Selector = Callable[[Object], bool]
Key = tuple[str, str]
"""Namespace and name."""


class Watcher:
    """The queue of one watch."""

    def __init__(self, namespace: str, selects: Selector | None) -> None:
        self._namespace = namespace
        self._selects = selects
        self._queue: deque[tuple[str, StoredObject]] = deque()
        self._wake = asyncio.Event()
        self.closed = False

    def enqueue(self, event: Event) -> None:
        """Queue the event as this watcher sees it, or drop it."""
        if self._namespace and event.stored.obj["metadata"].get("namespace", "") != self._namespace:
            return
        event_type = self._translate(event)
        if event_type is None:
            return
        if len(self._queue) >= QUEUE_LIMIT:
            self.close()
            return
        self._queue.append((event_type, event.stored))
        self._wake.set()

    def _translate(self, event: Event) -> str | None:
        if self._selects is None:
            return event.type
        selected_before = event.before is not None and self._selects(event.before.obj)
        if event.type == "DELETED":
            return "DELETED" if selected_before else None
        selected_now = self._selects(event.stored.obj)
        if selected_now:
            return "MODIFIED" if selected_before else "ADDED"
        return "DELETED" if selected_before else None

    async def next_events(self) -> list[tuple[str, StoredObject]]:
        """Wait for events and return all that are queued; return an empty list when the watch has ended."""
        while not self._queue and not self.closed:
            self._wake.clear()
            await self._wake.wait()
        return self.take_pending()

    def take_pending(self) -> list[tuple[str, StoredObject]]:
        """Return the events that are queued now and clear the queue."""
        taken = list(self._queue)
        self._queue.clear()
        return taken

    def close(self) -> None:
        """End the watch."""
        self.closed = True
        self._wake.set()


class Channel:
    """The bounded event log of one resource with its watchers.

    :param floor: the oldest resourceVersion from which a watch can start.
    """

    def __init__(self, floor: int, size: int) -> None:
        self._floor = floor
        self._log: deque[Event] = deque(maxlen=size)
        self._watchers: set[Watcher] = set()

    def publish(self, event: Event) -> None:
        """Append an event to the log and to the queues of all watchers."""
        # The oldest event is about to be dropped: a watch can no longer start before it.
        if self._log.maxlen is not None and len(self._log) == self._log.maxlen and self._log:
            self._floor = self._log[0].stored.version
        self._log.append(event)
        for watcher in tuple(self._watchers):
            watcher.enqueue(event)

    def forget(self, version: int) -> None:
        """Answer no request any more for a version before this one, as after a compaction of etcd."""
        self._floor = max(self._floor, version)

    def reaches(self, version: int) -> bool:
        """Return whether the log has all changes since a version."""
        return version >= self._floor

    def rewind(self, objects: Mapping[Key, StoredObject], version: int) -> Mapping[Key, StoredObject]:
        """Return the objects as they were at an earlier version.

        :param objects: the current ones.
        :raises ApiError: 410 when the log starts later.
        """
        if not self.reaches(version):
            raise expired("The resourceVersion for the provided list is too old.")
        found = dict(objects)
        for event in reversed(self._log):
            if event.stored.version <= version:
                break
            if event.before is None:
                del found[event.stored.key]
            else:
                found[event.stored.key] = event.before
        return found

    def subscribe(self, since: int, current: int, namespace: str, selects: Selector | None) -> Watcher:
        """Return a watcher of every change after version `since`.

        :raises ApiError: 410 when the log starts later, 504 when `since` is in the future.
        """
        if since > current:
            raise too_large_resource_version(since, current)
        if not self.reaches(since):
            raise expired(f"too old resource version: {since} ({self._floor})")
        watcher = Watcher(namespace, selects)
        for event in self._log:
            if event.stored.version > since:
                watcher.enqueue(event)
        self._watchers.add(watcher)
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        self._watchers.discard(watcher)

    def close(self) -> None:
        """End every watch."""
        for watcher in tuple(self._watchers):
            watcher.close()
