"""Reflector: keeps a store in sync with a collection by list and watch with bookmarks.

It decodes a list page by page, so its memory is that of the store and one page.
The server ends each watch after some minutes, and the next one continues from the last version. A watch without events
and bookmarks is no failure. After any failure (a version too old, a broken connection, garbage in the stream, an error
event) it watches or lists again, with jittered backoff. A new list also finds what was deleted meanwhile. An object
that cannot be decoded is logged and skipped; a VM or VMI is stored as a rejected one. This is no queue: ``on_change``
is called at once and must be cheap.
Next: :mod:`services.common.reconcile`, whose ``add`` an ``on_change`` usually calls.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from itertools import islice
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectedInput, find_member, rejecting
from schemas.kubernetes.decoding import reject_object, rejection_of
from schemas.kubernetes.objects import Resource, Status
from services.common.flowcontrol.backoff import jittered
from services.common.kube.cache.object_metadata import ObjectMetadata, decode_metadata, find_metadata
from services.common.kube.client import Kube
from services.common.kube.denials import Denials, describe_error
from services.common.kube.errors import BadApiResponse, Forbidden, Gone, KubeError, of_status
from services.common.kube.listing import RawPage
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES

T = TypeVar("T")
Key: TypeAlias = tuple[str, str]

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 10.0
"""Seconds, and so the longest time that a watch takes to return after an outage of the API server."""
WATCH_SECONDS = 300.0
"""Seconds until the server ends a watch, at least."""
MIN_WATCH_SECONDS = 1.0
"""Seconds. A watch that ended sooner and delivered nothing counts as a failure, however it ended."""
MAX_LINE = 32 * 1024 * 1024
"""Bytes. Bounds the memory of a stream without newlines; etcd limits one object to 1.5 MiB by default."""


class _WatchEvent(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Stored(msgspec.Struct, Generic[T], frozen=True, gc=False):
    uid: str
    version: str
    value: T


_event = InputDecoder(Edge.KUBE, _WatchEvent, max_bytes=MAX_LINE)
_status = InputDecoder(Edge.KUBE, Status)


class Reflector(Generic[T]):
    """The store of one collection.

    :param labels: label selector.
    :param fields: field selector.
    :param on_change: called with the key and the object, or ``None`` if it was deleted. An object that was deleted and
        created again under its name is reported as deleted first.
    :param on_state: called when the watch opens (``True``) or breaks (``False``), with the cause.
    :param denials: told when the API server forbids the list or the watch, and when it allows them again.
    :param index: returns the values under which :meth:`indexed` finds an object; without it there are none.
    :param duration: seconds after which the server ends a watch, at least; at most twice as many.
    :param min_watch: seconds after which a watch without events counts as a success.
    :ivar synced: set after the first list.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource[T],
        *,
        namespace: str | None = None,
        labels: str | None = None,
        fields: str | None = None,
        on_change: Callable[[Key, T | None], None],
        log: Log,
        on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
        denials: Denials | None = None,
        index: Callable[[T], Iterable[str]] = lambda _object: (),
        rng: random.Random | None = None,
        duration: float = WATCH_SECONDS,
        min_watch: float = MIN_WATCH_SECONDS,
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._on_change = on_change
        self._on_state = on_state
        self._denials = denials or Denials()
        self._log = log.bind(resource=resource.plural)
        self._rng = rng or random.Random()
        self._duration = duration
        self._min_watch = min_watch
        self._opened: float | None = None
        self._relisted = False
        self._store: dict[Key, _Stored[T]] = {}
        self._index = index
        self._indexed: dict[str, dict[Key, None]] = {}
        self._version = ""
        self._failures = 0
        self._state: bool | None = None
        self.synced = asyncio.Event()
        STORES.watch(f"objects-{resource.plural}", self, lambda reflector: len(reflector._store))

    def get(self, namespace: str, name: str) -> T | None:
        """Return an object as last seen."""
        found = self._store.get((namespace, name))
        return found.value if found is not None else None

    def items(self) -> Iterable[T]:
        """Return all objects as last seen."""
        return [stored.value for stored in self._store.values()]

    def indexed(self, value: str, limit: int | None = None) -> list[T]:
        """Return the objects that have this value of the index, as last seen, without a walk over all others.

        :param limit: the maximum number of them.
        """
        return [self._store[key].value for key in islice(self._indexed.get(value, ()), limit)]

    def keys(self) -> list[Key]:
        """Return the keys of all objects as last seen."""
        return list(self._store)

    def version(self, namespace: str, name: str) -> str | None:
        """Return the resource version of an object as last seen. Compare it for equality only."""
        found = self._store.get((namespace, name))
        return found.version if found is not None else None

    async def run(self) -> None:
        """Keep the store in sync until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except KubeError as error:
                if isinstance(error, Gone):
                    self._version = ""
                await self._pause(error)

    async def _list(self) -> None:
        seen: set[Key] = set()
        version = ""
        async for page in self._kube.list_pages(
            self._resource, self._namespace, labels=self._labels, fields=self._fields
        ):
            # The watch starts where the first page was read: what changed since then may be in none of the others.
            version = version or page.resource_version
            self._put_page(page, seen)
            # Frees the page while the next one is on its way.
            del page
        # Only now: an object that is in no page so far may be in the next one.
        for key in [key for key in self._store if key not in seen]:
            self._remove(key)
        self._version = version
        self.synced.set()

    def _put_page(self, page: RawPage, seen: set[Key]) -> None:
        for raw in page.items:
            identity = self._identify(raw)
            if identity is not None:
                seen.add(_key(identity))
                self._put(identity, partial(self._kube.decode, self._resource, raw))

    async def _watch(self) -> None:
        received = False
        # Jitter, so that watches that began together do not end together.
        duration = self._duration * self._rng.uniform(1.0, 2.0)
        async with self._kube.watch(
            self._resource,
            self._namespace,
            resource_version=self._version,
            labels=self._labels,
            fields=self._fields,
            duration=duration,
        ) as chunks:
            self._opened = self._now()
            self._set_state(True, "")
            self._denials.set(self, "")
            async for line in _lines(chunks):
                self._handle(line)
                received = True
                self._record_success()
        if not received and not self._lasted():
            raise BadApiResponse("the watch ended as soon as it was open")
        self._record_success()

    def _record_success(self) -> None:
        self._failures, self._relisted = 0, False

    def _handle(self, line: bytes) -> None:
        try:
            event = _event.decode_shallow(line)
        except RecursionError as error:
            self._skip(line, error)
            return
        except RejectedInput as error:
            # Garbage, such as a proxy's error page. Events may be lost, so list again.
            self._version = ""
            raise BadApiResponse(f"cannot decode watch event: {error}: {line[:200]!r}") from error
        if event.type == "ERROR":
            self._version = ""
            raise _error_of(event.object)
        identity = self._identify(event.object)
        if identity is None:
            return
        if event.type == "DELETED":
            self._remove(_key(identity))
        elif event.type != "BOOKMARK":
            self._put(identity, partial(self._kube.decode, self._resource, event.object))
        # A bookmark changes only this: the next watch then starts where this one ended, without a list.
        self._version = identity.resource_version or self._version

    def _skip(self, line: bytes, error: RecursionError) -> None:
        """Reject or skip an object that is nested too deeply for a decoder, even for one that only passes over it."""
        try:
            identity = find_metadata(line, "object", "metadata")
            with rejecting(Edge.KUBE):
                deleted = find_member(line, "type") == b'"DELETED"'
        except RejectedInput as unknown:
            self._log.error("object without metadata skipped", error=str(unknown))
            return
        if deleted:
            self._remove(_key(identity))
        else:
            self._put(identity, partial(reject_object, self._resource.type, line, str(error), "object", "metadata"))
        self._version = identity.resource_version or self._version

    def _identify(self, raw: msgspec.Raw) -> ObjectMetadata | None:
        try:
            return decode_metadata(raw)
        except RejectedInput as error:
            self._log.error("object without metadata skipped", error=str(error))
            return None

    def _put(self, identity: ObjectMetadata, decode: Callable[[], T]) -> None:
        key = _key(identity)
        before = self._store.get(key)
        if before is not None and before.uid == identity.uid and before.version == identity.resource_version:
            # A new list repeats what the store has: nothing changed.
            return
        try:
            value = decode()
        except (BadApiResponse, RejectedInput) as error:
            self._log.error("undecodable object skipped", namespace=key[0], object=key[1], error=str(error))
            return
        if rejection := rejection_of(value):
            self._log.error("object rejected", namespace=key[0], object=key[1], error=rejection)
        if before is not None and before.uid != identity.uid:
            # Deleted and created again between two events.
            self._remove(key)
        self._replace(key, _Stored(identity.uid, identity.resource_version, value))
        self._notify(key, value)

    def _remove(self, key: Key) -> None:
        if key in self._store:
            self._replace(key, None)
            self._notify(key, None)

    def _replace(self, key: Key, stored: _Stored[T] | None) -> None:
        before = self._store.get(key)
        for value in self._index(before.value) if before is not None else ():
            keys = self._indexed.get(value, {})
            keys.pop(key, None)
            if not keys:
                self._indexed.pop(value, None)
        if stored is None:
            self._store.pop(key, None)
            return
        self._store[key] = stored
        for value in self._index(stored.value):
            self._indexed.setdefault(value, {})[key] = None

    def _notify(self, key: Key, value: T | None) -> None:
        try:
            self._on_change(key, value)
        except Exception:
            self._log.exception("on_change failed", namespace=key[0], object=key[1])

    def _set_state(self, ok: bool, why: str) -> None:
        if ok is not self._state:
            self._state = ok
            self._on_state(ok, why)

    def _lasted(self) -> bool:
        return self._opened is not None and self._now() - self._opened >= self._min_watch

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _pause(self, error: KubeError) -> None:
        if self._lasted():
            self._record_success()
        self._failures += 1
        self._opened = None
        if isinstance(error, Gone) and not self._relisted:
            # An expired version is normal: list again at once. A second one in a row is a failure like any other.
            self._relisted = True
            return
        wait = max(error.retry_after or 0.0, jittered(self._failures, FIRST_BACKOFF, MAX_BACKOFF, self._rng))
        why = describe_error(error)
        if isinstance(error, Forbidden):
            self._denials.set(self, why)
        self._log.warning("watch interrupted", error=why, reason=error.reason, again_in=round(wait, 3))
        self._set_state(False, f"{error.reason}: {why}")
        await asyncio.sleep(wait)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split a stream into lines. A last line without a newline was cut off and is dropped."""
    rest = bytearray()
    async for chunk in chunks:
        if b"\n" not in chunk:
            rest += chunk
            if len(rest) > MAX_LINE:
                raise BadApiResponse(f"watch event larger than {MAX_LINE} bytes")
            continue
        first, *others = chunk.split(b"\n")
        rest += first
        if rest:
            yield bytes(rest)
        for line in others[:-1]:
            if line:
                yield line
        rest = bytearray(others[-1])


def _key(identity: ObjectMetadata) -> Key:
    return identity.namespace, identity.name


def _error_of(raw: msgspec.Raw) -> KubeError:
    try:
        return of_status(_status.decode(raw))
    except RejectedInput:
        return BadApiResponse(f"watch error event without a Status: {bytes(raw)[:200]!r}")
