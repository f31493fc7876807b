"""The aggregation layer: which APIServices stand for other servers, where those are, and whether they answer.

Every APIService with a service is probed as upstream's availability controller does (GET of its group version),
which also brings the resource list for discovery. Requests are sent on by `proxy.py`; they go out even while the
last probe failed, so a server that has just come up is reached at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field

import aiohttp
import msgspec
from aiohttp import web

from services.lab.apiserver.auth import User
from services.lab.apiserver.discovery import Remote
from services.lab.apiserver.errors import Object, unavailable
from services.lab.apiserver.metadata import now
from services.lab.apiserver.proxy import UNAVAILABLE, Backend, Forwarder
from services.lab.apiserver.resources import APISERVICE_KEY, Registry
from services.lab.apiserver.store import Store
from services.lab.apiserver.watch import Event

_log = logging.getLogger("hotnic.lab.apiserver")

PROBE_LIMIT, PROBE_AGAIN, PROBE_FAILED = 5.0, 30.0, 1.0
"""Seconds: deadline of one probe, pause after a good one, pause after a bad one."""


@dataclass(slots=True)
class _Known:
    """What is known of one APIService: its last resource list, and the event that asks for a new probe."""

    available: bool = False
    resources: tuple[Object, ...] = ()
    look: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class _Unreachable(Exception):
    """Why an APIService is not available: (reason, message) of its condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Aggregator:
    """Routes and probes aggregated servers; `run` it as a task."""

    def __init__(self, store: Store, registry: Registry, forwarder: Forwarder) -> None:
        self._store = store
        self._registry = registry
        self._forwarder = forwarder
        self._known: dict[str, _Known] = {}
        self._changed = asyncio.Event()
        store.listen(self._on_change)

    def _on_change(self, storage_key: str, event: Event) -> None:
        if storage_key == APISERVICE_KEY:
            name = event.stored.obj["metadata"]["name"]
            spec_same = event.before is not None and event.before.obj.get("spec") == event.stored.obj.get("spec")
            if not (spec_same and event.type == "MODIFIED"):
                self._changed.set()
                if name in self._known:
                    self._known[name].look.set()
        elif storage_key in ("/services", "/endpoints"):
            for known in self._known.values():
                known.look.set()

    # -- routing

    def responsible(self, path: str) -> str | None:
        """The name of the APIService whose server must answer this path, if any."""
        if not path.startswith("/apis/"):
            return None
        parts = path.split("/", 4)
        if len(parts) < 4 or not parts[3]:
            return None
        name = f"{parts[3]}.{parts[2]}"
        stored = self._store.get(APISERVICE_KEY, "", name)
        return name if stored is not None and (stored.obj.get("spec") or {}).get("service") else None

    def remotes(self) -> list[Remote]:
        """The aggregated group versions, for discovery."""
        found = []
        for stored in self._store.list(APISERVICE_KEY):
            spec = stored.obj.get("spec") or {}
            if spec.get("service"):
                known = self._known.get(stored.obj["metadata"]["name"])
                available, resources = (known.available, known.resources) if known else (False, ())
                found.append(
                    Remote(spec["group"], spec["version"], spec.get("versionPriority", 0), available, resources)
                )
        return found

    async def proxy(self, request: web.BaseRequest, name: str, user: User) -> web.StreamResponse:
        """Answer a request through the server of an APIService. Raises `ApiError` 503, 504."""
        try:
            backend = self._backend(name)
        except _Unreachable as error:
            raise unavailable(f"{UNAVAILABLE}: {error}") from None
        return await self._forwarder.forward(request, backend, user, endless=_is_watch(request))

    def _backend(self, name: str) -> Backend:
        stored = self._store.get(APISERVICE_KEY, "", name)
        spec: Object = (stored.obj.get("spec") or {}) if stored is not None else {}
        reference: Object = spec.get("service") or {}
        namespace, service_name = reference.get("namespace", ""), reference.get("name", "")
        wanted = reference.get("port") or 443
        where = f'"{namespace}/{service_name}"'
        service = self._store.get("/services", namespace, service_name)
        if service is None:
            raise _Unreachable("ServiceNotFound", f"service/{service_name} in {where} is not present")
        service_spec = service.obj.get("spec") or {}
        port = next((port for port in service_spec.get("ports") or [] if port.get("port") == wanted), None)
        if port is None:
            message = f"service/{service_name} in {where} is not listening on port {wanted}"
            raise _Unreachable("ServicePortError", message)
        if service_spec.get("type") == "ExternalName":
            host, number = service_spec.get("externalName", ""), wanted
        else:
            host, number = self._endpoint(namespace, service_name, port.get("name", ""))
        return Backend(
            host=host,
            port=number,
            server_name=f"{service_name}.{namespace}.svc",
            ca_bundle=spec.get("caBundle") or "",
            insecure=bool(spec.get("insecureSkipTLSVerify")),
        )

    def _endpoint(self, namespace: str, name: str, port_name: str) -> tuple[str, int]:
        endpoints = self._store.get("/endpoints", namespace, name)
        if endpoints is None:
            message = f'cannot find endpoints for service/{name} in "{namespace}"'
            raise _Unreachable("EndpointsNotFound", message)
        found = [
            (address["ip"], port["port"])
            for subset in endpoints.obj.get("subsets") or []
            for address in subset.get("addresses") or []
            for port in subset.get("ports") or []
            if port.get("name", "") == port_name
        ]
        if not found:
            message = f'endpoints for service/{name} in "{namespace}" have no addresses with port name "{port_name}"'
            raise _Unreachable("MissingEndpoints", message)
        return random.choice(found)

    # -- probing

    async def run(self) -> None:
        """Probe until cancelled: one task per APIService."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                names = {stored.obj["metadata"]["name"] for stored in self._store.list(APISERVICE_KEY)}
                for name in self._known.keys() - names:
                    gone = self._known.pop(name)
                    if gone.task is not None:
                        gone.task.cancel()
                for name in names - self._known.keys():
                    known = self._known[name] = _Known()
                    known.task = group.create_task(self._watch_over(name, known), name=f"probe {name}")
                await self._changed.wait()

    async def _watch_over(self, name: str, known: _Known) -> None:
        while True:
            known.look.clear()
            try:
                self._write(name, await self._probe(name, known))
            except Exception:  # one APIService that nobody thought of must not end the probing of all others
                _log.exception("probe of %s failed", name)
            pause = PROBE_AGAIN if known.available else PROBE_FAILED
            try:
                async with asyncio.timeout(pause):
                    await known.look.wait()
            except TimeoutError:
                continue

    async def _probe(self, name: str, known: _Known) -> tuple[str, str, str]:
        """Ask the server for its group version; returns status, reason and message of the condition."""
        stored = self._store.get(APISERVICE_KEY, "", name)
        spec: Object = (stored.obj.get("spec") or {}) if stored is not None else {}
        if not spec.get("service"):
            known.available = True
            return "True", "Local", "Local APIServices are always available"
        path = f"/apis/{spec.get('group')}/{spec.get('version')}"
        known.available = False
        try:
            backend = self._backend(name)
            code, body = await self._forwarder.fetch(backend, path, PROBE_LIMIT)
        except _Unreachable as error:
            return "False", error.reason, str(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            told = str(error) or type(error).__name__
            return "False", "FailedDiscoveryCheck", f"failing or missing response from {path}: {told}"
        if not 200 <= code < 300:
            return "False", "FailedDiscoveryCheck", f"failing or missing response from {path}: bad status: {code}"
        known.available = True
        known.resources = _resources(body)
        return "True", "Passed", "all checks passed"

    def _write(self, name: str, told: tuple[str, str, str]) -> None:
        """Write the Available condition, when it says something new."""
        stored = self._store.get(APISERVICE_KEY, "", name)
        resource = self._registry.storage(APISERVICE_KEY)
        if stored is None or resource is None:
            return
        conditions: list[Object] = (stored.obj.get("status") or {}).get("conditions") or []
        before = next((c for c in conditions if c.get("type") == "Available"), None)
        status, reason, message = told
        if before is not None and (before["status"], before["reason"], before["message"]) == told:
            return
        moment = before["lastTransitionTime"] if before is not None and before["status"] == status else now()
        condition = {
            "type": "Available",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": moment,
        }
        obj = stored.copy(resource)
        obj["status"] = {"conditions": [*(c for c in conditions if c.get("type") != "Available"), condition]}
        self._store.put(APISERVICE_KEY, obj)


def _resources(body: bytes) -> tuple[Object, ...]:
    try:
        document = msgspec.json.decode(body)
        return tuple(resource for resource in document["resources"] if isinstance(resource.get("name"), str))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return ()


def _is_watch(request: web.BaseRequest) -> bool:
    """Only a watch of a collection is free of the limit; `?watch` on one object is an ordinary GET."""
    value = request.query.get("watch", "").lower()
    if request.method != "GET" or value in ("", "0", "false"):
        return False
    parts = request.path.strip("/").split("/")[3:]
    if parts[:1] == ["namespaces"]:
        parts = parts[2:]
    return len(parts) == 1
