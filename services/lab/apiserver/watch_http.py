"""One watch over HTTP: initial events, changes as they come, bookmarks in silence, an end.

Changes are written as soon as they are queued; several that wait together go out in one write. What a watch may
start from is upstream's table: unset or 0 begins with the present objects, a number after that version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from aiohttp import web

from services.lab.apiserver.errors import ApiError, Cause, Object, invalid
from services.lab.apiserver.rest import Call
from services.lab.apiserver.selectors import make_selector
from services.lab.apiserver.store import Store, Stored
from services.lab.apiserver.watch import Watcher
from services.lab.apiserver.wire import encode_json

Renderer = Callable[[Stored], bytes]
_INITIAL_END = {"k8s.io/initial-events-end": "true"}


def subscribe(store: Store, call: Call) -> tuple[Watcher, list[Stored], int, ApiError | None]:
    """Begin a watch: its queue, the objects to begin with, the version it starts at.

    A version that is too old does not refuse the request: as upstream, the watch opens and its only event is the
    error, which is returned for that. Raises `ApiError` 400, 422, 504.
    """
    options = call.options
    resource = call.resource
    selects = make_selector(resource, options.text("labelSelector"), options.text("fieldSelector"))
    since = options.resource_version()
    initial = options.text("sendInitialEvents") != "" and options.flag("sendInitialEvents")
    if options.text("sendInitialEvents") and options.text("resourceVersionMatch") != "NotOlderThan":
        message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        raise invalid("", "ListOptions", "", [Cause("FieldValueForbidden", message, "resourceVersionMatch")])
    if initial and not options.flag("allowWatchBookmarks"):
        message = "Forbidden: sendInitialEvents requires allowWatchBookmarks"
        raise invalid("", "ListOptions", "", [Cause("FieldValueForbidden", message, "sendInitialEvents")])
    namespace = call.target.namespace
    channel = store.table(resource.storage_key).channel
    from_present = initial or (since in (None, 0) and not options.text("sendInitialEvents"))
    present: list[Stored] = []
    if from_present:
        present = [s for s in store.list(resource.storage_key, namespace) if selects is None or selects(s.obj)]
    start = store.version if from_present or not since else since
    try:
        return channel.subscribe(start, store.version, namespace, selects), present, start, None
    except ApiError as error:
        if error.code != 410:
            raise
        return Watcher(namespace, None), [], start, error


async def stream(
    request: web.BaseRequest, store: Store, call: Call, render: Renderer, *, bookmark_after: float
) -> web.StreamResponse:
    """Serve one watch until its time is over, its client leaves, or the server stops."""
    options = call.options
    watcher, present, _, refused = subscribe(store, call)
    bookmarks = options.flag("allowWatchBookmarks")
    life = options.number("timeoutSeconds") or random.uniform(1800, 3600)
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
    channel = store.table(call.resource.storage_key).channel
    try:
        await response.prepare(request)
        if refused is not None:
            await response.write(_line("ERROR", encode_json(refused.to_status())))
            return response
        if present:
            await response.write(b"".join(_line("ADDED", render(stored)) for stored in present))
        if options.flag("sendInitialEvents"):
            await response.write(_line("BOOKMARK", _bookmark(call, store.version, _INITIAL_END)))
        loop = asyncio.get_running_loop()
        end = loop.time() + life
        while not watcher.closed and (left := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(left, bookmark_after) if bookmarks else left):
                    events = await watcher.take()
            except TimeoutError:
                if bookmarks:
                    await response.write(_line("BOOKMARK", _bookmark(call, store.version, {})))
                continue
            if events:
                await response.write(b"".join(_line(kind, render(stored)) for kind, stored in events))
        await response.write_eof()
    except ConnectionError:
        pass  # the client left; nothing more to tell it
    finally:
        channel.unsubscribe(watcher)
    return response


def _line(kind: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), body)


def _bookmark(call: Call, version: int, annotations: dict[str, str]) -> bytes:
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    resource = call.resource
    return encode_json({"kind": resource.kind, "apiVersion": resource.group_version, "metadata": metadata})
