"""``?watch=true``: the ladder of one VMI as a stream of lines, each the whole ladder, ended before it would be cut off.

An API server cuts a subresource's call at 60 s, so a stream ends itself earlier, with a bookmark: whoever comes back
with its ``resourceVersion`` gets a line only when something is different. Each stream watches for itself; their number
is bounded. What a ladder is made of: :mod:`services.api.hotplug_status`.
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing, suppress

import msgspec
from aiohttp import web

from schemas.hotplug_status import (
    BUCKET,
    HotplugStatus,
    HotplugStatusEvent,
    StatusEntry,
    as_json,
    entry_of,
    hotplug_status,
)
from schemas.kube import ObjectMeta, StatusDetails
from services.api.hotplug_status import BUS_DEADLINE, answer, folded, look, prefix_of
from services.common.bus.protocol import Bus, BusUnavailable
from services.common.http.server import StatusError
from services.common.kube.client import Kube
from services.common.kube.vmi_watch import VmiWatch, watch_vmi
from services.common.logs import Log

LONGEST = 50.0
"""Seconds."""
WATCHERS = 64
SETTLE = 0.05
"""Seconds in which changes are gathered into one line."""
BUS_RETRY = 1.0


def seconds(query: Mapping[str, str]) -> float | None:
    """How long a stream is asked for; ``None``: no stream, the ladder once.

    :raises StatusError: 400; a parameter means nothing.
    """
    watch = flag(query, "watch")
    try:
        asked = int(query.get("timeoutSeconds", "0"))
    except ValueError:
        raise StatusError(400, "BadRequest", "timeoutSeconds is a number of seconds") from None
    if not watch:
        return None
    return min(float(asked), LONGEST) if asked > 0 else LONGEST


def flag(query: Mapping[str, str], name: str) -> bool:
    """A parameter that is true, false, or not there: false.

    :raises StatusError: 400; it is neither.
    """
    said = query.get(name, "false").lower()
    if said not in ("", "1", "t", "true", "0", "f", "false"):
        raise StatusError(400, "BadRequest", f"{name}={said!r} is neither true nor false")
    return said not in ("0", "f", "false")


class Streams:
    """The streams of one server. :ivar open: how many there are."""

    def __init__(self, kube: Kube, bus: Bus, log: Log, limit: int = WATCHERS) -> None:
        self._kube = kube
        self._bus = bus
        self._log = log
        self._limit = limit
        self._closing = asyncio.Event()
        self.open = 0

    async def close(self, _app: web.Application) -> None:
        """End all of them; they would keep the server from ending."""
        self._closing.set()

    async def serve(self, request: web.Request, namespace: str, name: str, duration: float) -> web.StreamResponse:
        """Stream until the time is over, the VMI is gone, or the client is.

        :raises StatusError: 429; there are too many. :raises KubeError: there is no such VMI.
        """
        if self.open >= self._limit:
            details = StatusDetails(retry_after_seconds=1)
            message = f"{self._limit} watches are open already"
            raise StatusError(429, "TooManyRequests", message, details, headers={"Retry-After": "1"})
        self.open += 1
        try:
            seen = await look(self._kube, namespace, name)
            folded(seen)
            assert seen.vmi is not None
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache"})
            await response.prepare(request)
            stream = _Stream(response, self._kube, self._bus, self._log, seen.vmi.metadata)
            try:
                await stream.run(duration, request.query.get("resourceVersion", ""), self._closing)
            except ConnectionError:
                pass  # the client has left
            except StatusError as error:
                self._log.warning("a ladder's stream ends", vmi=f"{namespace}/{name}", error=error.message)
            return response
        finally:
            self.open -= 1


class _Stream:
    def __init__(self, response: web.StreamResponse, kube: Kube, bus: Bus, log: Log, meta: ObjectMeta) -> None:
        self._response = response
        self._kube = kube
        self._bus = bus
        self._log = log
        self._meta = meta
        self._last = hotplug_status(meta.namespace, meta.name, "", (), None)
        self._entries: dict[str, StatusEntry] | None = None
        self._bucket_known = asyncio.Event()

    async def run(self, duration: float, version: str, closing: asyncio.Event) -> None:
        async with watch_vmi(self._kube, self._meta, with_vm=True, log=self._log) as watched:
            tasks = [
                asyncio.create_task(self._tell(watched, version)),
                asyncio.create_task(self._follow_bucket(watched)),
                asyncio.create_task(closing.wait()),
            ]
            try:
                await asyncio.wait({tasks[0], tasks[2]}, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            if not tasks[0].cancelled():
                tasks[0].result()
        await self._write("BOOKMARK", msgspec.structs.replace(self._last, items=(), degraded=None))
        await self._response.write_eof()

    async def _tell(self, watched: VmiWatch, version: str) -> None:
        """A line now, unless the client has just this, and with every change; returns when the VMI is gone."""
        await watched.synced()
        with suppress(TimeoutError):
            async with asyncio.timeout(BUS_DEADLINE):
                await self._bucket_known.wait()
        first = "MODIFIED" if version else "ADDED"
        while True:
            watched.changed.clear()
            seen = watched.look()
            if seen.vmi is None:
                await self._write("DELETED", self._last)
                return
            self._last = now = answer(seen, folded(seen), self._entries)
            if now.metadata["resourceVersion"] != version:
                await self._write(first, now)
                version, first = now.metadata["resourceVersion"], "MODIFIED"
            await watched.changed.wait()
            await asyncio.sleep(SETTLE)

    async def _follow_bucket(self, watched: VmiWatch) -> None:
        """Keep the VMI's part of the bucket; ``None`` while the bus is away."""
        keys = f"{prefix_of(self._meta.namespace, self._meta.name)}>"
        while True:
            try:
                found: dict[str, StatusEntry] = {}
                async with aclosing(self._bus.kv(BUCKET).watch(keys)) as entries:
                    async for item in entries:
                        if item is None:
                            self._entries = found
                            self._bucket_known.set()
                        else:
                            entry = entry_of(item.value)
                            found.pop(item.key, None)
                            if entry is not None:
                                found[item.key] = entry
                        if self._bucket_known.is_set():
                            watched.changed.set()
            except BusUnavailable:
                self._entries = None
                self._bucket_known.set()
                watched.changed.set()
                await asyncio.sleep(BUS_RETRY)

    async def _write(self, type_: str, shown: HotplugStatus) -> None:
        await self._response.write(as_json(HotplugStatusEvent(type_, shown)) + b"\n")
