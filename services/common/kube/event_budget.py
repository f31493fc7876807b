"""The rate at which Kubernetes Events are created: a token bucket for each object, and one for each namespace.

A user who edits one annotation in a loop causes an Event for each edit, and each is an object in etcd for an hour.
The first Event of a reason about an object is never dropped, so a user sees everything that happens to the object.
client-go's recorder has such a bucket for each object (``EventCorrelator``). Next:
:mod:`services.common.kube.event_recorder`, which asks before each request.
"""

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from services.common.telemetry.stores import Bounded

OBJECT_BURST: Final = 50
"""Events about one object at once. client-go has 25."""
OBJECT_INTERVAL: Final = 10.0
"""Seconds until an object may have one more. client-go's 300 would hide half of what a VM's user does in an hour."""
NAMESPACE_BURST: Final = 500
"""Events in one namespace at once."""
NAMESPACE_INTERVAL: Final = 1.0
"""Seconds until a namespace may have one more."""
MAX_OBJECTS: Final = 4096
"""Objects that are remembered. A forgotten one starts again with a full bucket."""
MAX_NAMESPACES: Final = 1024
"""Namespaces that are remembered."""
MAX_KINDS: Final = 8192
"""Reasons of objects that are remembered. The next Event of a forgotten one counts as its first."""


class EventLimit(StrEnum):
    """The limit that drops an Event."""

    OBJECT = "object"
    NAMESPACE = "namespace"


class EventBudget:
    """Decides which Events are created.

    :param clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # When the bucket is full again: with the burst and the interval, that is the number of its tokens.
        self._objects: Bounded[str, float] = Bounded("event-objects", MAX_OBJECTS)
        self._namespaces: Bounded[str, float] = Bounded("event-namespaces", MAX_NAMESPACES)
        self._kinds: Bounded[tuple[str, str], None] = Bounded("event-kinds", MAX_KINDS)

    def exceeded(self, about: Mapping[str, str], namespace: str, reason: str) -> EventLimit | None:
        """Return the limit that forbids an Event, or take its tokens and return ``None``.

        :param about: the object, as in :meth:`services.common.kube.event_recorder.EventRecorder.record`.
        :param namespace: the Event's namespace.
        :param reason: its reason.
        """
        key = about.get("uid") or "/".join((about.get("kind", ""), namespace, about["name"]))
        now = self._clock()
        full_object = max(now, self._objects.get(key, now)) + OBJECT_INTERVAL
        full_namespace = max(now, self._namespaces.get(namespace, now)) + NAMESPACE_INTERVAL
        if (key, reason) in self._kinds:
            if full_object > now + OBJECT_BURST * OBJECT_INTERVAL:
                return EventLimit.OBJECT
            if full_namespace > now + NAMESPACE_BURST * NAMESPACE_INTERVAL:
                return EventLimit.NAMESPACE
        self._kinds[key, reason] = None
        # The first of a kind takes a token too, as far as there is one.
        self._objects[key] = min(full_object, now + OBJECT_BURST * OBJECT_INTERVAL)
        self._namespaces[namespace] = min(full_namespace, now + NAMESPACE_BURST * NAMESPACE_INTERVAL)
        return None
