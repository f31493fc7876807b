"""Keeps a store in step with a collection: list, then watch with bookmarks, for as long as it is left running.

Whatever breaks (a version too old, a dropped or silent connection, garbage in the stream, an error event) leads to
a new watch or a new list, with jittered backoff; what was deleted meanwhile is found by comparing. One object that
cannot be decoded is logged and skipped. Not a queue: ``on_change`` is called at once and must be cheap.
Next: :mod:`services.common.reconcile`, whose ``add`` an ``on_change`` usually calls.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

from schemas.kube import Resource, Status
from services.common.kube.client import Kube
from services.common.kube.errors import BadApiAnswer, Gone, KubeError, of_status
from services.common.logs import Log

T = TypeVar("T")
Key: TypeAlias = tuple[str, str]

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 10.0
STEADY = 1.0
"""Seconds: a watch that ended sooner and brought nothing counts as a failure, whatever it ended by."""
MAX_LINE = 32 * 1024 * 1024


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class _Identity(msgspec.Struct, frozen=True):
    metadata: _Meta


class _WatchEvent(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Stored(msgspec.Struct, Generic[T], frozen=True):
    uid: str
    version: str
    value: T


_identity = msgspec.json.Decoder(_Identity)
_event = msgspec.json.Decoder(_WatchEvent)
_status = msgspec.json.Decoder(Status)


class Reflector(Generic[T]):
    """The store of one collection.

    :param on_change: called with the key and the object, or ``None`` when it is gone. An object that was deleted and
        made anew under its name is announced as gone first.
    :param on_state: called when the store gets in step (``True``) or falls out of it, with the cause.
    :ivar synced: set once the first list is in the store.
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
        rng: random.Random | None = None,
        idle: float = 75.0,
        duration: float = 300.0,
        steady: float = STEADY,
    ) -> None:
        self._kube = kube
        self._resource = resource
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._on_change = on_change
        self._on_state = on_state
        self._log = log.bind(resource=resource.plural)
        self._rng = rng or random.Random()
        self._idle = idle
        self._duration = duration
        self._steady = steady
        self._opened: float | None = None
        self._expired = False
        self._store: dict[Key, _Stored[T]] = {}
        self._version = ""
        self._failures = 0
        self._ok: bool | None = None
        self.synced = asyncio.Event()

    def get(self, namespace: str, name: str) -> T | None:
        """An object as last seen."""
        found = self._store.get((namespace, name))
        return found.value if found is not None else None

    def items(self) -> Iterable[T]:
        """All objects as last seen."""
        return [stored.value for stored in self._store.values()]

    def keys(self) -> list[Key]:
        """The keys of all objects as last seen."""
        return list(self._store)

    def version(self, namespace: str, name: str) -> str | None:
        """The resource version of an object as last seen; to be compared for equality only."""
        found = self._store.get((namespace, name))
        return found.version if found is not None else None

    async def run(self) -> None:
        """Keep the store in step until cancelled."""
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
        listing = await self._kube.list_raw(self._resource, self._namespace, labels=self._labels, fields=self._fields)
        seen: set[Key] = set()
        for raw in listing.items:
            identity = self._identify(raw)
            if identity is not None:
                seen.add(_key(identity))
                self._take(identity, raw)
        for key in [key for key in self._store if key not in seen]:
            self._drop(key)
        self._version = listing.resource_version
        self.synced.set()

    async def _watch(self) -> None:
        fruitful = False
        # Watches that began together do not end together.
        duration = self._duration * self._rng.uniform(0.8, 1.2)
        async with self._kube.watch(
            self._resource,
            self._namespace,
            resource_version=self._version,
            labels=self._labels,
            fields=self._fields,
            duration=duration,
            idle=self._idle,
        ) as chunks:
            self._opened = self._now()
            self._in_step(True, "")
            async for line in _lines(chunks):
                self._handle(line)
                fruitful, self._failures, self._expired = True, 0, False
        if not fruitful and not self._was_steady():
            raise BadApiAnswer("the watch ended as soon as it was opened")
        self._failures = 0

    def _handle(self, line: bytes) -> None:
        try:
            event = _event.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Something between us and the API speaks; how much was lost is unknown.
            self._version = ""
            raise BadApiAnswer(f"not a watch event: {error}: {line[:200]!r}") from error
        if event.type == "ERROR":
            self._version = ""
            raise _error_of(event.object)
        identity = self._identify(event.object)
        if identity is None:
            return
        if event.type == "DELETED":
            self._drop(_key(identity))
        elif event.type != "BOOKMARK":
            self._take(identity, event.object)
        self._version = identity.resource_version or self._version

    def _identify(self, raw: msgspec.Raw) -> _Meta | None:
        try:
            return _identity.decode(raw).metadata
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._log.error("object without readable metadata", error=str(error))
            return None

    def _take(self, identity: _Meta, raw: msgspec.Raw) -> None:
        key = _key(identity)
        before = self._store.get(key)
        if before is not None and before.uid == identity.uid and before.version == identity.resource_version:
            return
        try:
            value = self._kube.decode(self._resource, raw)
        except BadApiAnswer as error:
            self._log.error("object cannot be decoded", namespace=key[0], object=key[1], error=str(error))
            return
        if before is not None and before.uid != identity.uid:
            self._drop(key)
        self._store[key] = _Stored(identity.uid, identity.resource_version, value)
        self._announce(key, value)

    def _drop(self, key: Key) -> None:
        if self._store.pop(key, None) is not None:
            self._announce(key, None)

    def _announce(self, key: Key, value: T | None) -> None:
        try:
            self._on_change(key, value)
        except Exception:
            self._log.exception("on_change failed", namespace=key[0], object=key[1])

    def _in_step(self, ok: bool, why: str) -> None:
        if ok is not self._ok:
            self._ok = ok
            self._on_state(ok, why)

    def _was_steady(self) -> bool:
        return self._opened is not None and self._now() - self._opened >= self._steady

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _pause(self, error: KubeError) -> None:
        self._failures = 1 if self._was_steady() else self._failures + 1
        self._opened = None
        if isinstance(error, Gone) and not self._expired:
            # The server is there and asks for a new list. Once; then it is a failure like others.
            self._expired = True
            return
        step = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures - 1, 30))
        wait = max(error.retry_after or 0.0, step * self._rng.uniform(0.5, 1.0))
        self._log.warning("watch interrupted", error=str(error), reason=error.reason, again_in=round(wait, 3))
        self._in_step(False, f"{error.reason}: {error}")
        await asyncio.sleep(wait)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split a stream into its lines; a last one without an end was cut off and is dropped."""
    rest = bytearray()
    async for chunk in chunks:
        if b"\n" not in chunk:
            rest += chunk
            if len(rest) > MAX_LINE:
                raise BadApiAnswer(f"a watch event larger than {MAX_LINE} bytes")
            continue
        first, *others = chunk.split(b"\n")
        rest += first
        if rest:
            yield bytes(rest)
        for line in others[:-1]:
            if line:
                yield line
        rest = bytearray(others[-1])


def _key(identity: _Meta) -> Key:
    return identity.namespace, identity.name


def _error_of(raw: msgspec.Raw) -> KubeError:
    try:
        return of_status(_status.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return BadApiAnswer(f"an error event without a status: {bytes(raw)[:200]!r}")
