"""Reader that uses the cache only if the cache has exactly the expected version of an object.

The expected version is the one that an event of the bus or the response to our own patch has named. Versions are opaque
and compared for equality only; a cache with any other version costs one live GET. Without an expected version the
cached object is used: the watch delivers later changes.
"""

from typing import Generic, Protocol, TypeVar

from schemas.bus.events import ChangedObject
from schemas.kubernetes.objects import ObjectMeta, Resource
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.telemetry.stores import Bounded

MAX_EXPECTED = 4096
"""Objects whose version is expected. Without its expectation, an object is read from the cache until the watch delivers
the change. Events of the bus may name objects that do not exist."""


class HasMetadata(Protocol):
    """A Kubernetes object."""

    @property
    def metadata(self) -> ObjectMeta:
        """The object's metadata."""
        ...


T = TypeVar("T", bound=HasMetadata)
T_co = TypeVar("T_co", bound=HasMetadata, covariant=True)


class ObjectCache(Protocol[T_co]):
    """The part of :class:`services.common.kube.cache.reflector.Reflector` that the reader uses."""

    def get(self, namespace: str, name: str) -> T_co | None:
        """Return the object as last seen."""
        ...


class CachedReader(Generic[T]):
    """Reader of the objects of one kind: from the cache if it is up to date, otherwise from the API server."""

    def __init__(self, kube: Kube, resource: Resource[T], cache: ObjectCache[T]) -> None:
        self._kube = kube
        self._resource = resource
        self._cache = cache
        self._expected: Bounded[tuple[str, str], tuple[str, str]] = Bounded("expected-versions", MAX_EXPECTED)

    def expect(self, namespace: str, name: str, changed: ChangedObject | None) -> None:
        """Expect the version that an event names; ``None`` expects nothing."""
        # A redelivered event may name an older version. That costs one live GET, and nothing else.
        if changed is not None and changed.kind == self._resource.kind:
            self._expect(namespace, name, (changed.uid, changed.resource_version))

    def record_written(self, written: T) -> None:
        """Expect the version that our own patch returned."""
        self._expect(written.metadata.namespace, written.metadata.name, _version(written))

    def record_cached(self, found: T) -> None:
        """Record that the cache has received this object: if it has the expected version, none is expected any more.

        Without this call, a cache that has meanwhile received a later version costs one live GET.
        """
        meta = found.metadata
        if self._expected.get((meta.namespace, meta.name)) == _version(found):
            self._expected.pop((meta.namespace, meta.name))

    def _expect(self, namespace: str, name: str, version: tuple[str, str]) -> None:
        self._expected[namespace, name] = version

    async def read(self, namespace: str, name: str) -> T | None:
        """Return the object; ``None`` if it does not exist.

        :raises KubeError: a live read was needed and failed. The next read tries again.
        """
        cached = self._cache.get(namespace, name)
        expected = self._expected.get((namespace, name))
        if expected is None:
            return cached
        if cached is not None and _version(cached) == expected:
            self._expected.pop((namespace, name))
            return cached
        try:
            live = await self._kube.get(self._resource, namespace, name)
        except NotFound:
            live = None
        if self._expected.get((namespace, name)) == expected:
            if live is None or (cached is not None and _version(cached) == _version(live)):
                self._expected.pop((namespace, name))
            else:
                # The cache is behind or ahead, which versions do not show: use it again once it has this version.
                self._expected[namespace, name] = _version(live)
        return live


def _version(found: HasMetadata) -> tuple[str, str]:
    return found.metadata.uid, found.metadata.resource_version
