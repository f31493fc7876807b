"""The aggregation layer: which APIServices other servers serve, where these are, and whether they are available.

Every APIService with a service is probed like upstream's availability controller does, by a GET of its group version.
The response also supplies the resource list for discovery. `proxy.py` forwards requests. They are forwarded even while
the last probe failed, so that a server which has just started is reached at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field

import aiohttp
import msgspec
from aiohttp import web

from lab.apiserver.aggregation.proxy import UNAVAILABLE, AggregatedBackend, Forwarder
from lab.apiserver.documents.discovery import AggregatedGroupVersion
from lab.apiserver.errors import Object, unavailable
from lab.apiserver.identity.auth import User
from lab.apiserver.registry.metadata import now
from lab.apiserver.registry.resources import APISERVICE_KEY, Registry
from lab.apiserver.storage.store import Store
from lab.apiserver.storage.watch import Event

_log = logging.getLogger("hotnic.lab.apiserver")

PROBE_TIMEOUT, PROBE_INTERVAL, PROBE_RETRY = 5.0, 30.0, 1.0
"""Seconds: deadline of one probe, pause after success, pause after failure."""


@dataclass(slots=True)
class _ApiServiceState:
    """State of one APIService.

    :ivar resources: its last resource list.
    :ivar probe_requested: requests a probe before the pause is over.
    """

    available: bool = False
    resources: tuple[Object, ...] = ()
    probe_requested: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class _UnavailableError(Exception):
    """An APIService is unavailable; reason and message are those of its condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Aggregator:
    """Routes requests to aggregated servers and probes them; `run` must run as a task."""

    def __init__(self, store: Store, registry: Registry, forwarder: Forwarder) -> None:
        self._store = store
        self._registry = registry
        self._forwarder = forwarder
        self._states: dict[str, _ApiServiceState] = {}
        self._changed = asyncio.Event()
        store.add_listener(self._on_change)

    def _on_change(self, storage_key: str, event: Event) -> None:
        if storage_key == APISERVICE_KEY:
            name = event.stored.obj["metadata"]["name"]
            # A change of status alone comes from the probe itself and must not trigger another one.
            spec_same = event.before is not None and event.before.obj.get("spec") == event.stored.obj.get("spec")
            if not (spec_same and event.type == "MODIFIED"):
                self._changed.set()
                if name in self._states:
                    self._states[name].probe_requested.set()
        # Any of them may be the address of an aggregated server; an extra probe costs less than finding out.
        elif storage_key in ("/services", "/endpoints"):
            for state in self._states.values():
                state.probe_requested.set()

    # -- routing

    def find_api_service(self, path: str) -> str | None:
        """Return the name of the APIService whose server must answer this path, or None."""
        if not path.startswith("/apis/"):
            return None
        parts = path.split("/", 4)
        if len(parts) < 4 or not parts[3]:
            return None
        name = f"{parts[3]}.{parts[2]}"
        stored = self._store.get(APISERVICE_KEY, "", name)
        return name if stored is not None and (stored.obj.get("spec") or {}).get("service") else None

    def remotes(self) -> list[AggregatedGroupVersion]:
        """Return the aggregated group versions, for discovery."""
        found = []
        for stored in self._store.list(APISERVICE_KEY):
            spec = stored.obj.get("spec") or {}
            if spec.get("service"):
                state = self._states.get(stored.obj["metadata"]["name"])
                available, resources = (state.available, state.resources) if state else (False, ())
                found.append(
                    AggregatedGroupVersion(
                        spec["group"], spec["version"], spec.get("versionPriority", 0), available, resources
                    )
                )
        return found

    async def proxy(self, request: web.BaseRequest, name: str, user: User) -> web.StreamResponse:
        """Forward a request to the server of an APIService and return its response.

        :raises ApiError: 503 or 504.
        """
        try:
            backend = self._backend(name)
        except _UnavailableError as error:
            raise unavailable(f"{UNAVAILABLE}: {error}") from None
        return await self._forwarder.forward(request, backend, user, endless=_is_watch(request))

    def _backend(self, name: str) -> AggregatedBackend:
        stored = self._store.get(APISERVICE_KEY, "", name)
        spec: Object = (stored.obj.get("spec") or {}) if stored is not None else {}
        reference: Object = spec.get("service") or {}
        namespace, service_name = reference.get("namespace", ""), reference.get("name", "")
        port_number = reference.get("port") or 443
        service_ref = f'"{namespace}/{service_name}"'
        service = self._store.get("/services", namespace, service_name)
        if service is None:
            raise _UnavailableError("ServiceNotFound", f"service/{service_name} in {service_ref} is not present")
        service_spec = service.obj.get("spec") or {}
        # The APIService names the service's port; the Endpoints have the target port under the same port name.
        port = next((port for port in service_spec.get("ports") or [] if port.get("port") == port_number), None)
        if port is None:
            message = f"service/{service_name} in {service_ref} is not listening on port {port_number}"
            raise _UnavailableError("ServicePortError", message)
        if service_spec.get("type") == "ExternalName":
            host, number = service_spec.get("externalName", ""), port_number
        else:
            host, number = self._endpoint(namespace, service_name, port.get("name", ""))
        return AggregatedBackend(
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
            raise _UnavailableError("EndpointsNotFound", message)
        found = [
            (address["ip"], port["port"])
            for subset in endpoints.obj.get("subsets") or []
            for address in subset.get("addresses") or []
            for port in subset.get("ports") or []
            if port.get("name", "") == port_name
        ]
        if not found:
            message = f'endpoints for service/{name} in "{namespace}" have no addresses with port name "{port_name}"'
            raise _UnavailableError("MissingEndpoints", message)
        # Without kube-proxy, the server itself spreads requests over the endpoints.
        return random.choice(found)

    # -- probing

    async def run(self) -> None:
        """Probe every APIService in a task of its own, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                names = {stored.obj["metadata"]["name"] for stored in self._store.list(APISERVICE_KEY)}
                for name in self._states.keys() - names:
                    removed = self._states.pop(name)
                    if removed.task is not None:
                        removed.task.cancel()
                for name in names - self._states.keys():
                    state = self._states[name] = _ApiServiceState()
                    # One task per APIService, so that an unreachable server does not delay the probes of the others.
                    state.task = group.create_task(self._probe_loop(name, state), name=f"probe {name}")
                await self._changed.wait()

    async def _probe_loop(self, name: str, state: _ApiServiceState) -> None:
        while True:
            state.probe_requested.clear()
            try:
                self._write_condition(name, await self._probe(name, state))
            except Exception:  # a failure with one APIService must not stop the probes of the others
                _log.exception("probe of %s failed", name)
            pause = PROBE_INTERVAL if state.available else PROBE_RETRY
            try:
                async with asyncio.timeout(pause):
                    await state.probe_requested.wait()
            except TimeoutError:
                continue

    async def _probe(self, name: str, state: _ApiServiceState) -> tuple[str, str, str]:
        """Get the group version from the server; return status, reason and message of the condition."""
        stored = self._store.get(APISERVICE_KEY, "", name)
        spec: Object = (stored.obj.get("spec") or {}) if stored is not None else {}
        if not spec.get("service"):
            state.available = True
            return "True", "Local", "Local APIServices are always available"
        path = f"/apis/{spec.get('group')}/{spec.get('version')}"
        state.available = False
        try:
            backend = self._backend(name)
            code, body = await self._forwarder.fetch(backend, path, PROBE_TIMEOUT)
        except _UnavailableError as error:
            return "False", error.reason, str(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            problem = str(error) or type(error).__name__
            return "False", "FailedDiscoveryCheck", f"failing or missing response from {path}: {problem}"
        if not 200 <= code < 300:
            return "False", "FailedDiscoveryCheck", f"failing or missing response from {path}: bad status: {code}"
        state.available = True
        state.resources = _resources(body)
        return "True", "Passed", "all checks passed"

    def _write_condition(self, name: str, result: tuple[str, str, str]) -> None:
        """Write the Available condition if it changed."""
        stored = self._store.get(APISERVICE_KEY, "", name)
        resource = self._registry.storage(APISERVICE_KEY)
        if stored is None or resource is None:
            return
        conditions: list[Object] = (stored.obj.get("status") or {}).get("conditions") or []
        before = next((c for c in conditions if c.get("type") == "Available"), None)
        status, reason, message = result
        if before is not None and (before["status"], before["reason"], before["message"]) == result:
            return
        transition_time = before["lastTransitionTime"] if before is not None and before["status"] == status else now()
        condition = {
            "type": "Available",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": transition_time,
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
    """Return whether a request watches a collection; such a request has no time limit.

    `?watch` on a single object is an ordinary GET.
    """
    value = request.query.get("watch", "").lower()
    if request.method != "GET" or value in ("", "0", "false"):
        return False
    parts = request.path.strip("/").split("/")[3:]
    if parts[:1] == ["namespaces"]:
        parts = parts[2:]
    return len(parts) == 1
