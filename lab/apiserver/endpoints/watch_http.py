"""One watch over HTTP: initial events, changes, bookmarks while there are no changes, and the end.

Changes are written as soon as they are queued; those that are queued together are sent in one write. The start of a
watch follows upstream's table: without a resourceVersion or with 0, it begins with the current objects; otherwise
after that version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from aiohttp import web

from lab.apiserver.endpoints.serializer import encode_json
from lab.apiserver.errors import ApiError, FieldError, Object, invalid
from lab.apiserver.registry.selectors import make_selector
from lab.apiserver.rest.verbs import RestCall
from lab.apiserver.storage.store import Store, StoredObject
from lab.apiserver.storage.watch import Watcher

Renderer = Callable[[StoredObject], bytes]
_INITIAL_END = {"k8s.io/initial-events-end": "true"}
"""Annotation of the bookmark after the initial events of `sendInitialEvents`."""


def subscribe(store: Store, call: RestCall) -> tuple[Watcher, list[StoredObject], int, ApiError | None]:
    """Start a watch; return its queue, the initial objects, the version at which it starts, and an error or None.

    A version that is too old does not fail the request: as upstream, the watch opens and the error is its only event.

    :raises ApiError: 400, 422 or 504.
    """
    options = call.options
    resource = call.resource
    selects = make_selector(resource, options.text("labelSelector"), options.text("fieldSelector"))
    since = options.resource_version()
    initial = options.text("sendInitialEvents") != "" and options.flag("sendInitialEvents")
    if options.text("sendInitialEvents") and options.text("resourceVersionMatch") != "NotOlderThan":
        message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        raise invalid("", "ListOptions", "", [FieldError("FieldValueForbidden", message, "resourceVersionMatch")])
    if initial and not options.flag("allowWatchBookmarks"):
        message = "Forbidden: sendInitialEvents requires allowWatchBookmarks"
        raise invalid("", "ListOptions", "", [FieldError("FieldValueForbidden", message, "sendInitialEvents")])
    namespace = call.target.namespace
    channel = store.table(resource.storage_key).channel
    from_present = initial or (since in (None, 0) and not options.text("sendInitialEvents"))
    initial_objects: list[StoredObject] = []
    if from_present:
        initial_objects = [s for s in store.list(resource.storage_key, namespace) if selects is None or selects(s.obj)]
    start = store.version if from_present or not since else since
    try:
        return channel.subscribe(start, store.version, namespace, selects), initial_objects, start, None
    except ApiError as error:
        if error.code != 410:
            raise
        return Watcher(namespace, None), [], start, error


async def stream(
    request: web.BaseRequest, store: Store, call: RestCall, render: Renderer, *, bookmark_after: float
) -> web.StreamResponse:
    """Serve one watch until its timeout, until the client disconnects, or until the server stops."""
    options = call.options
    watcher, initial_objects, _, error = subscribe(store, call)
    bookmarks = options.flag("allowWatchBookmarks")
    lifetime = options.number("timeoutSeconds") or random.uniform(1800, 3600)
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"})
    channel = store.table(call.resource.storage_key).channel
    try:
        await response.prepare(request)
        if error is not None:
            await response.write(_line("ERROR", encode_json(error.to_status())))
            return response
        if initial_objects:
            await response.write(b"".join(_line("ADDED", render(stored)) for stored in initial_objects))
        if options.flag("sendInitialEvents"):
            await response.write(_line("BOOKMARK", _bookmark(call, store.version, _INITIAL_END)))
        loop = asyncio.get_running_loop()
        # Like upstream, end a watch without a timeout after 30 to 60 minutes; the random part spreads reconnections.
        end = loop.time() + lifetime
        while not watcher.closed and (remaining := end - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(remaining, bookmark_after) if bookmarks else remaining):
                    events = await watcher.next_events()
            except TimeoutError:
                if bookmarks:
                    await response.write(_line("BOOKMARK", _bookmark(call, store.version, {})))
                continue
            if events:
                await response.write(b"".join(_line(kind, render(stored)) for kind, stored in events))
        await response.write_eof()
    except ConnectionError:
        pass  # the client has disconnected
    finally:
        channel.unsubscribe(watcher)
    return response


def _line(kind: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), body)


def _bookmark(call: RestCall, version: int, annotations: dict[str, str]) -> bytes:
    # Go encodes the zero time as null.
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    resource = call.resource
    return encode_json({"kind": resource.kind, "apiVersion": resource.group_version, "metadata": metadata})
