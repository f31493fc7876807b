"""``?watch=true``: stream the hot-plug status of one VMI, one line for each change, each with the whole status.

The Kubernetes API server ends a call of a subresource after 60 s, so a stream ends earlier, with a bookmark. A client
that resumes with the bookmark's ``resourceVersion`` gets a line only when the status has changed. Streams of one VMI
share its watch; the number of streams is limited. A status is built in :mod:`services.api.hotplug_status.read`.
Next: :mod:`services.api.hotplug_status.shared_watches`.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing, nullcontext, suppress

import msgspec
from aiohttp import web

from schemas.bus.hotplug_status import (
    BUCKET,
    HotplugStatus,
    HotplugStatusEvent,
    StatusEntry,
    decode_entry,
    encode_json,
    new_hotplug_status,
)
from schemas.kubernetes.objects import ObjectMeta, StatusDetails
from services.api.hotplug_status.read import (
    BUS_DEADLINE,
    bucket_prefix,
    build_hotplug_status,
    derive_from_cluster,
    derive_vmi_statuses,
    observe_vmi,
)
from services.api.hotplug_status.shared_watches import SharedWatches, VmiView
from services.common.bus.protocol import BusUnavailable
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.http.server import StatusError
from services.common.runtime.context import RoleContext
from services.common.runtime.fair_queue import FairSlots
from services.common.telemetry.stores import STORES

MAX_DURATION = 50.0
"""Seconds after which a stream ends, before the API server ends it after 60 s."""
MAX_WATCHERS = 128
"""Maximum number of open streams of one server."""
MAX_WATCHERS_OF_USER = 16
"""Maximum number of open streams of one user, so that nobody uses up those of the others."""
SHARE_OF_NAMESPACE = 0.5
"""Share of the streams of one server that one namespace may have, as a tenant may have many users."""
EVALUATIONS = 2
"""Streams whose status is derived in one turn of the event loop: between two turns, all other requests go on."""
DEBOUNCE = 0.05
"""Seconds in which changes are collected into one line."""
SURROUNDINGS_INTERVAL = 10.0
"""Seconds between two reads of what stands around a VM beside KubeVirt, unless the VM changes."""
BUS_RETRY_DELAY = 1.0
"""Seconds between two attempts to watch the bucket while the bus is unavailable."""


def parse_duration(query: Mapping[str, str]) -> float | None:
    """Return the requested duration of a stream in seconds; ``None`` when the request is not a watch.

    :raises StatusError: 400; a parameter cannot be parsed.
    """
    watch = parse_flag(query, "watch")
    try:
        requested = int(query.get("timeoutSeconds", "0"))
    except ValueError:
        raise StatusError(400, "BadRequest", "timeoutSeconds must be a whole number of seconds") from None
    if not watch:
        return None
    # A whole number may be larger than any float.
    return float(min(requested, MAX_DURATION)) if requested > 0 else MAX_DURATION


def parse_flag(query: Mapping[str, str], name: str) -> bool:
    """Return the value of a boolean parameter; a missing one is false.

    :raises StatusError: 400; the value is neither true nor false.
    """
    value = query.get(name, "false").lower()
    if value not in ("", "1", "t", "true", "0", "f", "false"):
        raise StatusError(400, "BadRequest", f"{name} must be true or false, not {value!r}")
    # As in Kubernetes, a parameter without a value is true.
    return value not in ("0", "f", "false")


class StatusStreams:
    """The streams of one server.

    :param beside: returns what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :param limit: the maximum number of open streams.
    """

    def __init__(
        self, context: RoleContext, beside: Callable[[], Capabilities | None], limit: int = MAX_WATCHERS
    ) -> None:
        self._context = context
        self._beside = beside
        self._limit = limit
        self._closing = asyncio.Event()
        self._turns = FairSlots(EVALUATIONS)
        self._watches = SharedWatches(context.kube, context.log)
        self._limit_of_namespace = max(1, math.floor(limit * SHARE_OF_NAMESPACE))
        self._users: Counter[str] = Counter()
        self._namespaces: Counter[str] = Counter()
        STORES.watch("status-streams", self, lambda streams: streams.open, limit)

    @property
    def open(self) -> int:
        """The number of open streams."""
        return self._users.total()

    async def close(self, _app: web.Application) -> None:
        """End all streams; the server would wait for them when it stops."""
        self._closing.set()

    async def serve(
        self, request: web.Request, namespace: str, name: str, duration: float, user: str
    ) -> web.StreamResponse:
        """Stream the status of a VMI until the duration is over, the VMI is deleted, or the client disconnects.

        :param duration: in seconds.
        :param user: who asks.
        :raises StatusError: 429, too many streams are open; or 422, the VMI cannot be parsed.
        :raises KubeError: the API server does not answer, or the VMI does not exist.
        """
        if (
            self.open >= self._limit
            or self._users[user] >= MAX_WATCHERS_OF_USER
            or self._namespaces[namespace] >= self._limit_of_namespace
        ):
            details = StatusDetails(retry_after_seconds=1)
            message = (
                f"too many open watches ({self._limit} in all, {MAX_WATCHERS_OF_USER} of one user, "
                f"{self._limit_of_namespace} of one namespace); try again later"
            )
            raise StatusError(429, "TooManyRequests", message, details, headers={"Retry-After": "1"})
        self._users[user] += 1
        self._namespaces[namespace] += 1
        try:
            observed = await observe_vmi(self._context.kube, namespace, name)
            # Once the response has begun, an error can no longer be reported by its HTTP status.
            derive_vmi_statuses(observed, self._beside())
            assert observed.vmi is not None
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache"})
            await response.prepare(request)
            meta = observed.vmi.metadata
            stream = _Stream(response, self._context, meta, self._beside, self._turns)
            try:
                async with self._watches.watching(meta) as view:
                    await stream.run(view, duration, request.query.get("resourceVersion", ""), self._closing)
            except ConnectionError:
                pass  # the client has disconnected
            except StatusError as error:
                self._context.log.warning(
                    "hot-plug status stream failed", vmi=f"{namespace}/{name}", error=error.message
                )
            return response
        finally:
            self._users[user] -= 1
            self._namespaces[namespace] -= 1
            # Those who have none are forgotten.
            self._users += Counter()
            self._namespaces += Counter()


class _Stream:
    def __init__(
        self,
        response: web.StreamResponse,
        context: RoleContext,
        meta: ObjectMeta,
        beside: Callable[[], Capabilities | None],
        turns: FairSlots,
    ) -> None:
        self._response = response
        self._turns = turns
        self._context = context
        self._beside = beside
        self._meta = meta
        self._last = new_hotplug_status(meta.namespace, meta.name, "", (), None)
        self._entries: dict[str, StatusEntry] | None = None
        self._bucket_loaded = asyncio.Event()

    async def run(self, watched: VmiView, duration: float, version: str, closing: asyncio.Event) -> None:
        tasks = [
            asyncio.create_task(self._write_changes(watched, version)),
            asyncio.create_task(self._follow_bucket(watched)),
            asyncio.create_task(closing.wait()),
        ]
        try:
            await asyncio.wait({tasks[0], tasks[2]}, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        # The writer's own error, such as a lost connection, ends the stream without a bookmark.
        if not tasks[0].cancelled():
            tasks[0].result()
        await self._write("BOOKMARK", msgspec.structs.replace(self._last, items=(), degraded=None))
        await self._response.write_eof()

    async def _write_changes(self, watched: VmiView, version: str) -> None:
        """Write the status, unless the client has this version, then every change; return when the VMI is deleted."""
        await watched.wait_synced(self._meta.resource_version)
        # Without this wait the first line of a working bus would be `degraded`.
        with suppress(TimeoutError):
            async with asyncio.timeout(BUS_DEADLINE):
                await self._bucket_loaded.wait()
        first = "MODIFIED" if version else "ADDED"
        while True:
            # Cleared before the objects are read, so that a change during the read is not missed.
            watched.changed.clear()
            observed = watched.read()
            if observed.vmi is None:
                await self._write("DELETED", self._last)
                return
            beside = self._beside()
            # Beside KubeVirt it also reads from the API server, for which no other stream waits.
            async with self._turns.hold(self._meta.namespace) if beside is None else nullcontext():
                nic_statuses = await derive_from_cluster(self._context.kube, observed, beside)
                self._last = now = build_hotplug_status(observed, nic_statuses, self._entries)
            if now.metadata["resourceVersion"] != version:
                await self._write(first, now)
                version, first = now.metadata["resourceVersion"], "MODIFIED"
            # What stands around a VM is not watched, and matters while something is in progress.
            waits = beside is not None and any(not one.complete for one in nic_statuses)
            with suppress(TimeoutError):
                async with asyncio.timeout(SURROUNDINGS_INTERVAL if waits else None):
                    await watched.changed.wait()
            await asyncio.sleep(DEBOUNCE)

    async def _follow_bucket(self, watched: VmiView) -> None:
        """Keep the bucket's entries of the VMI up to date; they are ``None`` while the bus is unavailable."""
        keys = f"{bucket_prefix(self._meta.namespace, self._meta.name)}>"
        while True:
            try:
                found: dict[str, StatusEntry] = {}
                async with aclosing(self._context.bus.kv(BUCKET).watch(keys)) as entries:
                    async for item in entries:
                        if item is None:
                            self._entries = found
                            self._bucket_loaded.set()
                        else:
                            entry = decode_entry(item.value)
                            found.pop(item.key, None)
                            if entry is not None:
                                found[item.key] = entry
                        if self._bucket_loaded.is_set():
                            watched.changed.set()
            except BusUnavailable:
                self._entries = None
                self._bucket_loaded.set()
                watched.changed.set()
                await asyncio.sleep(BUS_RETRY_DELAY)

    async def _write(self, event_type: str, status: HotplugStatus) -> None:
        await self._response.write(encode_json(HotplugStatusEvent(event_type, status)) + b"\n")
