"""The keys that have nothing to do, so that a resync leaves them out: most VMs are at rest at any time.

A key rests as long as the caches hold what its last run found nothing to do with. A resync still finds every change
that was missed; only the work of finding nothing again is saved, also for changes of labels and of fields that hotnic
does not read. What else a run depends on (events, the bucket, timers, settings) adds its keys itself. A rest ends by
itself in the end, so that a run still finds what was overlooked here. Next: :mod:`services.controller.projector`.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.common.kube.cache.cached_reader import HasMetadata, ObjectCache
from services.common.telemetry.stores import STORES

Key = tuple[str, str]
Object: TypeAlias = VirtualMachine | VirtualMachineInstance | Pod
T_co = TypeVar("T_co", bound=HasMetadata, covariant=True)


class IndexedCache(ObjectCache[T_co], Protocol[T_co]):
    """A cache with an index, such as :class:`services.common.kube.cache.reflector.Reflector`."""

    def indexed(self, value: str, limit: int | None = None) -> Iterable[T_co]:
        """Return the objects that have this value of the index: of pods, the UID of their VMI.

        :param limit: the maximum number of them.
        """
        ...


MEAN_REST = 600.0
"""Seconds that a key rests on average: half as many at least, and half as many again at most."""


class CachedObjects(NamedTuple):
    """The objects of a key, as the caches have them at one moment.

    :ivar pods: the launcher pods of the VMI.
    """

    vm: VirtualMachine | None
    vmi: VirtualMachineInstance | None
    pods: tuple[Pod, ...]

    def include(self, vm: VirtualMachine | None, vmi: VirtualMachineInstance | None, pod: Pod | None) -> bool:
        """Return whether these are the cached objects, and none was read from the API server since."""
        return self.vm is vm and self.vmi is vmi and (pod is None or any(pod is cached for cached in self.pods))


class _Rest(NamedTuple):
    objects: CachedObjects
    until: float


class RestingKeys:
    """Remembers the keys that rest.

    :param vms: the cache of VMs.
    :param vmis: the cache of VMIs.
    :param pods: the cache of launcher pods.
    :param mean: seconds that a key rests on average.
    :param clock: returns seconds.
    """

    def __init__(
        self,
        vms: ObjectCache[VirtualMachine],
        vmis: ObjectCache[VirtualMachineInstance],
        pods: IndexedCache[Pod],
        *,
        mean: float = MEAN_REST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vms = vms
        self._vmis = vmis
        self._pods = pods
        self._mean = mean
        self._clock = clock
        self._resting: dict[Key, _Rest] = {}
        STORES.watch("resting-vms", self, lambda keys: len(keys._resting))

    def objects(self, key: Key) -> CachedObjects:
        """Return the cached objects of a key."""
        vmi = self._vmis.get(*key)
        pods = self._pods.indexed(vmi.metadata.uid) if vmi is not None else ()
        return CachedObjects(self._vms.get(*key), vmi, tuple(pods))

    def add(self, key: Key, objects: CachedObjects) -> None:
        """Let a key rest.

        :param objects: the cached objects from before the run that found nothing to do.
        """
        # Jitter, because the keys of a cluster begin to rest together, at the start.
        self._resting[key] = _Rest(objects, self._clock() + self._mean * random.uniform(0.5, 1.5))

    def discard(self, key: Key) -> None:
        """Let a key rest no more."""
        self._resting.pop(key, None)

    def clear(self) -> None:
        """Let no key rest any more."""
        self._resting.clear()

    def rests(self, key: Key) -> bool:
        """Return whether a key rests."""
        rest = self._resting.get(key)
        if rest is None or self._clock() >= rest.until:
            return False
        noted, now = rest.objects, self.objects(key)
        if len(now.pods) != len(noted.pods) or not all(map(_is_same, (*now[:2], *now.pods), (*noted[:2], *noted.pods))):
            return False
        # The next comparison then finds the very objects, and none is kept that the caches have dropped.
        self._resting[key] = _Rest(now, rest.until)
        return True


def _is_same(one: Object | None, other: Object | None) -> bool:
    """Return whether two versions of an object differ in nothing that a plan or a status depends on.

    The generation is left out: that of a VMI counts every write of its status, and a spec is compared itself. So are
    the labels: that of a launcher pod with the UID of its VMI is the index.
    """
    if one is other:
        return True
    if one is None or other is None:
        return False
    mine, others = one.metadata, other.metadata
    return (
        mine.uid == others.uid
        and mine.annotations == others.annotations
        and mine.owner_references == others.owner_references
        and mine.deletion_timestamp == others.deletion_timestamp
        and one.spec == other.spec
        and one.status == other.status
    )
