"""A cache that is trusted only when it holds exactly the version that somebody spoke of.

An event, and our own last patch, name the version an object had afterwards. Versions are opaque: they are compared for
equality, and anything else than the very version costs one live GET. Without such a hint the cache will do: whatever
it misses, the watch will bring.
"""

from typing import Generic, Protocol, TypeVar

from schemas.events import Changed
from schemas.kube import ObjectMeta, Resource
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound


class HasMetadata(Protocol):
    """Any Kubernetes object."""

    @property
    def metadata(self) -> ObjectMeta:
        """Its metadata."""
        ...


T = TypeVar("T", bound=HasMetadata)
T_co = TypeVar("T_co", bound=HasMetadata, covariant=True)


class ObjectCache(Protocol[T_co]):
    """What a reflector offers."""

    def get(self, namespace: str, name: str) -> T_co | None:
        """The object as last seen."""
        ...


class CachedReader(Generic[T]):
    """Reads objects of one kind, from the cache where that is certain to be fresh enough."""

    def __init__(self, kube: Kube, resource: Resource[T], cache: ObjectCache[T]) -> None:
        self._kube = kube
        self._resource = resource
        self._cache = cache
        self._expected: dict[tuple[str, str], tuple[str, str]] = {}

    def expect(self, namespace: str, name: str, changed: Changed | None) -> None:
        """Note the version that an event says the object has; ``None`` notes nothing."""
        if changed is not None and changed.kind == self._resource.kind:
            self._expected[namespace, name] = (changed.uid, changed.resource_version)

    def wrote(self, written: T) -> None:
        """Note the object as our own patch left it."""
        meta = written.metadata
        self._expected[meta.namespace, meta.name] = (meta.uid, meta.resource_version)

    def saw(self, found: T) -> None:
        """Note that the cache has just got this object: the version that was spoken of need not be waited for twice."""
        meta = found.metadata
        if self._expected.get((meta.namespace, meta.name)) == _version(found):
            del self._expected[meta.namespace, meta.name]

    async def read(self, namespace: str, name: str) -> T | None:
        """The object, ``None`` when it is gone.

        :raises KubeError: a live read was needed and failed; the next read tries again.
        """
        cached = self._cache.get(namespace, name)
        expected = self._expected.get((namespace, name))
        if expected is None:
            return cached
        if cached is not None and _version(cached) == expected:
            del self._expected[namespace, name]
            return cached
        try:
            live = await self._kube.get(self._resource, namespace, name)
        except NotFound:
            live = None
        if self._expected.get((namespace, name)) == expected:
            if live is None or (cached is not None and _version(cached) == _version(live)):
                del self._expected[namespace, name]
            else:
                # The cache is still behind or ahead: it is not trusted until both agree.
                self._expected[namespace, name] = _version(live)
        return live


def _version(found: HasMetadata) -> tuple[str, str]:
    return found.metadata.uid, found.metadata.resource_version
