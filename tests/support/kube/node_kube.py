"""A fake Kubernetes API on a loopback port, with the part that node roles use: objects in a dict, versions, watches.

It supports get, list, watch (by one label and by the fields of :data:`FIELDS`), create, JSON patch (also as a dry run),
merge patch with the version as precondition, and delete. The lab's API server is another one (:mod:`lab.apiserver`).
"""

import asyncio
import copy
import functools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import unused_port

Object = dict[str, Any]
Key = tuple[str, str, str]
FIELDS = frozenset({"metadata.name", "spec.nodeName", "involvedObject.uid", "type"})
"""The fields by which objects can be selected; others are ignored."""
PODS, NADS, EVENTS = "pods", "network-attachment-definitions", "events"


@dataclass
class FakeKube:
    """The objects and the received requests.

    :ivar requests: method, resource and name of each request.
    :ivar before: called with method, resource and name before each request; raise :class:`Refused` to refuse it.
    :ivar mutate: a mutating webhook: called with the resource, the object and what a JSON patch makes of it, to change.
    :ivar reviewed: specs of the received access reviews.
    :ivar may: decides an access review.
    :ivar review: answers an access review in another way.
    :ivar reviewer: answers token reviews; by default nothing does.
    """

    objects: dict[Key, Object] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    before: Callable[[str, str, str], None] = lambda _method, _plural, _name: None
    mutate: Callable[[str, Object, Object], None] = lambda _plural, _old, _new: None
    reviewed: list[Object] = field(default_factory=list)
    may: Callable[[Object], bool] = lambda _spec: True
    review: Callable[[Object], Awaitable[web.Response]] | None = None
    reviewer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    url: str = ""
    _version: int = 100
    _closed: bool = False
    _history: list[tuple[int, str, str, Object]] = field(default_factory=list)
    _changes: asyncio.Condition = field(default_factory=asyncio.Condition)

    def put(self, plural: str, namespace: str, name: str, **parts: Any) -> Object:
        """Create or replace an object, and complete its metadata."""
        known = self.objects.get((plural, namespace, name))
        meta = {"uid": f"uid-{name}", **parts.pop("metadata", {}), "namespace": namespace, "name": name}
        new = {**parts, "metadata": meta}
        self._changed("MODIFIED" if known else "ADDED", plural, new)
        return new

    def annotate(self, plural: str, namespace: str, name: str, annotations: dict[str, str | None]) -> Object:
        """Change annotations, as another client does."""
        return self._merged(plural, (plural, namespace, name), {"metadata": {"annotations": annotations}})

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object."""
        gone = self.objects.pop((plural, namespace, name))
        self._changed("DELETED", plural, copy.deepcopy(gone))

    def annotations(self, plural: str, namespace: str, name: str) -> dict[str, str]:
        """Return the annotations of an object."""
        found: dict[str, str] = self.objects[plural, namespace, name]["metadata"].get("annotations") or {}
        return found

    def of(self, plural: str) -> list[Object]:
        """Return all objects of a resource, in the order of their creation."""
        return [found for (kind, _, _), found in self.objects.items() if kind == plural]

    def counted(self, method: str, plural: str) -> int:
        """Return the number of requests of a method for a resource."""
        return sum(1 for request in self.requests if request[:2] == (method, plural))

    async def until(self, condition: Callable[[], bool], timeout: float = 45.0) -> None:
        """Wait until a condition on the objects holds."""
        async with asyncio.timeout(timeout), self._changes:
            await self._changes.wait_for(condition)

    def _changed(self, type_: str, plural: str, new: Object) -> None:
        self._version += 1
        new["metadata"]["resourceVersion"] = str(self._version)
        meta = new["metadata"]
        if type_ != "DELETED":
            self.objects[plural, meta["namespace"], meta["name"]] = new
        self._history.append((self._version, type_, plural, copy.deepcopy(new)))
        asyncio.get_running_loop().create_task(self._notify()) if _loop_runs() else None

    async def _notify(self) -> None:
        async with self._changes:
            self._changes.notify_all()

    def _merged(self, plural: str, key: Key, patch: Object) -> Object:
        old = self.objects[key]
        new = _merge(copy.deepcopy(old), patch)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new != old:
            self._changed("MODIFIED", plural, new)
        return self.objects[key]

    def app(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(middlewares=[_statuses])
        app.router.add_get("/version", self._about)
        app.router.add_post("/apis/authorization.k8s.io/v1/subjectaccessreviews", self._review)
        if self.reviewer is not None:
            app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self.reviewer)
        for prefix in ("/api/v1", "/apis/{group}/{version}"):
            for scope in ("", "/namespaces/{namespace}"):
                app.router.add_get(f"{prefix}{scope}/{{plural}}", self._list)
                app.router.add_post(f"{prefix}{scope}/{{plural}}", self._create)
                app.router.add_get(f"{prefix}{scope}/{{plural}}/{{name}}", self._get)
                app.router.add_patch(f"{prefix}{scope}/{{plural}}/{{name}}", self._patch)
                app.router.add_patch(f"{prefix}{scope}/{{plural}}/{{name}}/status", self._patch)
        return app

    def _enter(self, request: web.Request) -> Key:
        info = request.match_info
        key = (info["plural"], info.get("namespace", ""), info.get("name", ""))
        method = "WATCH" if "watch" in request.query else request.method
        self.requests.append((method, key[0], key[2]))
        self.before(method, key[0], key[2])
        return key

    async def _about(self, _request: web.Request) -> web.Response:
        self.before("GET", "version", "")
        return web.json_response({"gitVersion": "v0.0.0-fake"})

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.before("POST", "subjectaccessreviews", "")
        self.reviewed.append(body["spec"])
        if self.review is not None:
            return await self.review(body)
        return web.json_response({**body, "status": {"allowed": self.may(body["spec"])}}, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        key = self._enter(request)
        return web.json_response(self._find(key))

    async def _patch(self, request: web.Request) -> web.Response:
        key = self._enter(request)
        if request.content_type == "application/json-patch+json":
            dry_run = request.query.get("dryRun") == "All"
            return web.json_response(self._json_patched(key, await request.json(), dry_run=dry_run))
        if request.content_type != "application/merge-patch+json":
            raise Refused(415, "UnsupportedMediaType", request.content_type)
        patch = await request.json()
        found = self._find(key)
        wanted = patch.get("metadata", {}).pop("resourceVersion", None)
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", f"the object {key[2]} has been modified")
        return web.json_response(self._merged(key[0], key, patch))

    async def _create(self, request: web.Request) -> web.Response:
        plural, namespace, _ = self._enter(request)
        body = await request.json()
        name = body["metadata"]["name"]
        if (plural, namespace, name) in self.objects:
            raise Refused(409, "AlreadyExists", f"{name} exists")
        meta = {"uid": f"uid-{name}", **body["metadata"], "namespace": namespace}
        self._changed("ADDED", plural, {**body, "metadata": meta})
        return web.json_response(self.objects[plural, namespace, name], status=201)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        plural, namespace, _ = self._enter(request)
        selected = _selector(request.query.get("fieldSelector", ""), request.query.get("labelSelector", ""))
        if "watch" in request.query:
            return await self._watch(request, plural, lambda one: selected(one) and _is_in(namespace, one))
        items = [
            found
            for (kind, space, _), found in self.objects.items()
            if kind == plural and namespace in ("", space) and selected(found)
        ]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str, selected: Callable[[Object], bool]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen = int(request.query.get("resourceVersion") or 0)
        while not self._closed:
            history, until = self._history[:], self._version
            before: dict[tuple[str, str], Object] = {}
            for version, type_, kind, found in history:
                if kind != plural:
                    continue
                name = found["metadata"].get("namespace", ""), found["metadata"]["name"]
                # A watch reports an object that the selector no longer matches as deleted.
                left = not selected(found) and name in before and selected(before[name])
                if version > seen and (left or selected(found)):
                    event = {"type": "DELETED" if left else type_, "object": found}
                    await response.write(json.dumps(event).encode() + b"\n")
                before[name] = found
            seen = until
            async with self._changes:
                await self._changes.wait_for(functools.partial(self._newer_than, seen))
        return response

    def _newer_than(self, version: int) -> bool:
        return self._closed or self._version > version

    async def close(self) -> None:
        """End every watch."""
        self._closed = True
        await self._notify()

    def _json_patched(self, key: Key, ops: list[Object], *, dry_run: bool) -> Object:
        old = self._find(key)
        new = _json_patch(copy.deepcopy(old), ops)
        self.mutate(key[0], old, new)
        if dry_run:
            return new
        if new != old:
            self._changed("MODIFIED", key[0], new)
        return self.objects[key]

    def _find(self, key: Key) -> Object:
        if key not in self.objects:
            raise Refused(404, "NotFound", f"{key[0]} {key[2]!r} not found")
        return self.objects[key]


def _is_in(namespace: str, found: Object) -> bool:
    return namespace in ("", found["metadata"].get("namespace", ""))


class Refused(Exception):
    """A refused request; the response is a Status."""

    def __init__(self, code: int, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def forbid(plural: str, account: str) -> Callable[[str, str, str], None]:
    """Return a :attr:`FakeKube.before` that forbids a ServiceAccount (``namespace:name``) to read a resource."""
    verbs = {"GET": "get", "LIST": "list", "WATCH": "watch"}

    def refuse(method: str, requested: str, name: str) -> None:
        if requested == plural and method in ("GET", "WATCH"):
            verb = verbs[method if method == "WATCH" or name else "LIST"]
            user = f"system:serviceaccount:{account}"
            message = f'User "{user}" cannot {verb} resource "{plural}" in API group "" at the cluster scope'
            raise Refused(403, "Forbidden", f"{plural} is forbidden: {message}")

    return refuse


@web.middleware
async def _statuses(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except Refused as refused:
        status = {"kind": "Status", "status": "Failure", "code": refused.code, "reason": refused.reason}
        return web.json_response({**status, "message": str(refused)}, status=refused.code)
    return response


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _selector(fields: str, labels: str) -> Callable[[Object], bool]:
    wanted = dict(part.split("=", 1) for part in fields.split(",") if part)
    label = re.fullmatch(r"([\w./-]+)(?:=(.*)| in \((.*)\))?", labels)

    def selected(found: Object) -> bool:
        for path in wanted.keys() & FIELDS:
            if functools.reduce(lambda part, name: part.get(name, {}), path.split("."), found) != wanted[path]:
                return False
        if label is None:
            return True
        value = (found["metadata"].get("labels") or {}).get(label[1])
        return value is not None and (label[2] in (None, value)) and (label[3] is None or value in label[3].split(","))

    return selected


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result


def _json_patch(document: Object, ops: list[Object]) -> Object:
    """Apply a JSON patch (RFC 6902) to maps. A ``test`` for null also matches a missing member, as upstream."""
    for op in ops:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in op["path"].split("/")[1:]]
        target = document
        for part in parents:
            target = target.get(part, {}) if op["op"] == "test" else target[part]
        if op["op"] == "test" and target.get(last) != op["value"]:
            raise Refused(422, "Invalid", f"testing value {op['path']} failed: test failed")
        if op["op"] == "remove":
            del target[last]
        elif op["op"] != "test":
            target[last] = op["value"]
    return document


@asynccontextmanager
async def serving_kube(kube: FakeKube) -> AsyncIterator[FakeKube]:
    """Serve the API on a loopback port while the context is open; ``kube.url`` is its address."""
    runner = web.AppRunner(kube.app(), shutdown_timeout=0.5)
    await runner.setup()
    port = unused_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    kube.url = f"http://127.0.0.1:{port}"
    try:
        yield kube
    finally:
        await kube.close()
        await runner.cleanup()


def write_kubeconfig(path: Path, url: str) -> str:
    """Write a kubeconfig for the server; return its path."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "fake", "user": {}}],
    }
    path.write_text(json.dumps(document))
    return str(path)
