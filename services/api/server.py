"""The routes of the aggregated API server: discovery for everyone, subresources through the aggregation layer only.

The shared middleware turns every error into a Kubernetes ``Status``. Next: :mod:`services.api.request`.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

from aiohttp import web

from schemas.bus.hotplug_status import encode_json
from schemas.inputs import Edge, InputDecoder, RejectedInput, printable
from schemas.kubernetes.networks import MAX_QUOTE
from schemas.kubernetes.options import MAX_BODY_BYTES, OPERATION_HEADER, AddInterfaceOptions, RemoveInterfaceOptions
from schemas.names import is_object_name
from services.api.apply import apply_request
from services.api.discovery import (
    API_SERVICES,
    GROUPS,
    HOTNIC_GROUP,
    KIND_RESOURCES,
    aggregated_document,
    claimed_groups,
    discovery_document,
    discovery_paths,
    negotiate,
)
from services.api.front_proxy import FrontProxy, UserIdentity
from services.api.hotplug_status.read import read_hotplug_status
from services.api.hotplug_status.watch import MAX_WATCHERS, StatusStreams, parse_duration, parse_flag
from services.api.observe import ClusterSettings, observe
from services.api.openapi.documents import openapi_documents, openapi_paths
from services.api.permissions import own_reads, wait_permitted
from services.api.plan import ChangeObject, JoinOperation, RequestTarget
from services.api.plan.checks import find_mode_obstacle
from services.api.request import BadBody, decode_add, decode_remove, parse_dry_run
from services.common.http.server import Handler, StatusError, make_app
from services.common.http.tls import peer_common_name
from services.common.kube.errors import BadApiResponse, KubeError, Unauthorized
from services.common.runtime.context import RoleContext
from services.common.runtime.fair_queue import FairSlots

REQUESTS = 16
"""Requests that are worked on at once; the namespaces share them, so that none waits behind many of another one."""
MAX_HEALTH_AGE = 5.0
"""Seconds for which the answer about the Kubernetes API server is repeated."""
HEALTH_DEADLINE = 5.0
"""Seconds for that answer."""
STATUS_CODES = frozenset(code.value for code in HTTPStatus if code >= 400)
"""The codes of errors that are passed on to the user."""

_version = InputDecoder(Edge.KUBE, dict[str, Any])
Decode = Callable[[bytes], AddInterfaceOptions | RemoveInterfaceOptions]

VERBS: dict[str, tuple[Decode, str]] = {
    "addinterface": (decode_add, "plug requested"),
    "removeinterface": (decode_remove, "unplug requested"),
}
"""Per subresource: the decoder of its body, and the log event of an accepted request."""


class Api:
    """The HTTP application and its handlers.

    :param proxy: returns the current settings by which the aggregation layer and the user are identified.
    :param cluster: returns the current settings of the cluster.
    :param enabled: returns whether NICs may be hot-plugged.
    :param watchers: the maximum number of open watches of hot-plug statuses.
    :param api_services: names of the APIServices that register this server.
    :ivar app: the aiohttp application.
    """

    def __init__(
        self,
        context: RoleContext,
        proxy: Callable[[], FrontProxy],
        *,
        cluster: Callable[[], ClusterSettings],
        enabled: Callable[[], bool],
        watchers: int = MAX_WATCHERS,
        api_services: tuple[str, ...] = API_SERVICES,
    ) -> None:
        self._kube = context.kube
        self._bus = context.bus
        self._log = context.log
        self._proxy = proxy
        self._cluster = cluster
        self._enabled = enabled
        self._api_services = api_services
        self._slots = FairSlots(REQUESTS)
        # A lock exists as long as a request uses it, so the dictionary does not grow with the objects.
        self._locks: WeakValueDictionary[tuple[RequestTarget, str, str], asyncio.Lock] = WeakValueDictionary()
        self.app = make_app(telemetry=context.telemetry, max_body=MAX_BODY_BYTES)
        # Without authentication: the aggregator checks the availability without a client certificate.
        for path in discovery_paths():
            self._add_get(path, self._serve_discovery)
        # Now, so that no request waits for it: a build takes longer than an answer to any other request.
        for owned in (True, False):
            openapi_documents(claimed_groups(api_services, owned_by_hotnic=owned))
        for path in openapi_paths():
            self._add_get(path, self._serve_openapi)
        for path in ("/healthz", "/livez", "/readyz"):
            self._add_get(path, self._serve_health)
        for group, versions in GROUPS.items():
            for version in versions:
                self._add_get(f"/apis/{group}/{version}/healthz", self._check_apiserver)
                for resource, kind in KIND_RESOURCES[group].items():
                    path = f"/apis/{group}/{version}/namespaces/{{namespace}}/{resource}"
                    self._add_get(path, partial(self._refuse_kind, kind))
                for target in RequestTarget:
                    base = f"/apis/{group}/{version}/namespaces/{{namespace}}/{target}s/{{name}}"
                    for verb in VERBS:
                        self.app.router.add_put(f"{base}/{verb}", partial(self._serve_change, target, verb))
        # Anybody may ask, without authentication.
        self._checking = asyncio.Lock()
        self._checked_at = -math.inf
        self._health: tuple[int, dict[str, object]] = (500, {})
        self._streams = StatusStreams(context, lambda: self._cluster().beside, watchers)
        self.app.on_shutdown.append(self._streams.close)
        hotplug_status = f"/apis/{HOTNIC_GROUP}/v1/namespaces/{{namespace}}/{RequestTarget.VMI}s/{{name}}/interfaces"
        self._add_get(hotplug_status, self._serve_status)

    def _add_get(self, path: str, handler: Handler) -> None:
        # aiohttp would also answer HEAD, by the same handler: with the chunks of a watch, which a client would take for
        # the answer to the next request of its connection.
        self.app.router.add_get(path, handler, allow_head=False)

    def _groups(self) -> tuple[str, ...]:
        return claimed_groups(self._api_services, owned_by_hotnic=self._cluster().owned_by_hotnic)

    async def _serve_discovery(self, request: web.Request) -> web.Response:
        aggregated = negotiate(_accepted(request), aggregated=request.path == "/apis")
        if aggregated is None:
            raise _not_acceptable(request)
        if aggregated:
            return aggregated_document(self._groups(), aggregated).respond(request)
        return web.json_response(discovery_document(request.path, self._groups()), headers={"Vary": "Accept"})

    async def _serve_openapi(self, request: web.Request) -> web.Response:
        document = openapi_documents(self._groups()).get(request.path)
        if document is None:
            raise StatusError(404, None, f"no such path: {request.path}")
        if negotiate(_accepted(request), aggregated=False) is None:
            raise _not_acceptable(request)
        return document.respond(request)

    async def _refuse_kind(self, kind: str, request: web.Request) -> web.Response:
        self._identify(request)
        message = f"there are no objects of the kind {kind}, only the content of a subresource; see kubectl explain"
        raise StatusError(405, None, message, headers={"Allow": ""})

    async def _serve_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _check_apiserver(self, _request: web.Request) -> web.Response:
        """Return whether the Kubernetes API server answers, in virt-api's format; the answer is some seconds old."""
        async with self._checking:
            loop = asyncio.get_running_loop()
            if loop.time() - self._checked_at > MAX_HEALTH_AGE:
                self._health = await self._ask_apiserver()
                self._checked_at = loop.time()
        status, body = self._health
        return web.json_response({"apiserver": body}, status=status)

    async def _ask_apiserver(self) -> tuple[int, dict[str, object]]:
        try:
            answer = await self._kube.request("GET", "/version", timeout=HEALTH_DEADLINE)
            version = _version.decode(answer.body)
        except (KubeError, RejectedInput) as error:
            return 500, {"connectivity": "failed", "error": str(error)}
        return 200, {"connectivity": "ok", "version": version}

    def _identify(self, request: web.Request) -> UserIdentity:
        proxy = self._proxy()
        groups = [value for header in proxy.group_headers for value in request.headers.getall(header, [])]
        return proxy.identify(peer_common_name(request), request.headers, groups)

    async def _serve_status(self, request: web.Request) -> web.StreamResponse:
        caller = self._identify(request)
        namespace, name = _named_object(request, RequestTarget.VMI)
        duration, stored = parse_duration(request.query), parse_flag(request.query, "stored")

        async def answer() -> web.StreamResponse:
            with own_reads():
                if duration is not None:
                    return await self._streams.serve(request, namespace, name, duration, caller.user)
                async with self._slots.hold(namespace):
                    found = await read_hotplug_status(
                        self._kube, self._bus, self._cluster().beside, namespace, name, stored=stored
                    )
            return web.Response(body=encode_json(found), content_type="application/json")

        try:
            return await wait_permitted(answer)
        except KubeError as error:
            raise _forwarded_error(error) from error

    async def _serve_change(self, target: RequestTarget, verb: str, request: web.Request) -> web.Response:
        caller = self._identify(request)
        namespace, name = _named_object(request, target)
        decode, log_event = VERBS[verb]
        cluster = self._cluster()
        # As virt-api: the feature gate is checked before the body.
        if (obstacle := find_mode_obstacle(cluster.beside, enabled=self._enabled())) is not None:
            code, reason, message = obstacle
            raise StatusError(code, reason, message)
        allow_eviction = parse_flag(request.query, "allowEviction")
        try:
            options, dry_run = decode(await request.read()), parse_dry_run(request.query)
        except BadBody as error:
            raise StatusError(400, "BadRequest", str(error)) from error
        observe_request = partial(
            observe, self._kube, cluster, target, namespace, name, options, caller, allow_eviction=allow_eviction
        )
        # Concurrent patches of one object make each other's guards fail, so its requests take turns.
        lock = self._locks.setdefault((target, namespace, name), asyncio.Lock())

        async def apply() -> JoinOperation | ChangeObject:
            async with lock, self._slots.hold(namespace):
                return await apply_request(observe_request, self._kube, self._bus, dry_run=dry_run)

        try:
            answer = await wait_permitted(apply)
        except KubeError as error:
            raise _forwarded_error(error) from error
        # As virt-api: 202 with an empty body.
        response = web.Response(status=202)
        for warning in answer.warnings if isinstance(answer, ChangeObject) else ():
            response.headers.add("Warning", _warning_header(warning))
        if dry_run:
            return response
        self._log.info(
            log_event,
            **{target.name.lower(): f"{namespace}/{name}"},
            interface=options.name,
            operation=answer.operation.id,
            user=caller.user,
        )
        response.headers[OPERATION_HEADER] = answer.operation.id
        return response


def _named_object(request: web.Request, target: RequestTarget) -> tuple[str, str]:
    """Return the namespace and the name in the path of a request.

    :raises StatusError: no object can have them. They become a path of the Kubernetes API with the api's own rights.
    """
    namespace, name = request.match_info["namespace"], request.match_info["name"]
    if not (is_object_name(namespace) and is_object_name(name)):
        raise StatusError(404, "NotFound", f'{target}.kubevirt.io "{printable(name, MAX_QUOTE)}" not found')
    return namespace, name


def _accepted(request: web.Request) -> str:
    return ",".join(request.headers.getall("Accept", []))


def _not_acceptable(request: web.Request) -> StatusError:
    accepted = printable(_accepted(request), MAX_QUOTE)
    return StatusError(406, None, f"{request.path} is served as application/json only, not as {accepted}")


def _warning_header(sentence: str) -> str:
    """Return the value of a ``Warning`` header, as the Kubernetes API server sends them (RFC 7234 section 5.5)."""
    # A control character would end the response, or be shown by the user's terminal.
    shown = printable(" ".join(sentence.split()), len(sentence))
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'


def _forwarded_error(error: KubeError) -> StatusError:
    """Return an error of the Kubernetes API server, such as a webhook's refusal, as the user's own answer."""
    if isinstance(error, Unauthorized):
        # The user is authenticated: the API server does not accept the api's own credentials.
        return StatusError(500, None, f"hotnic's api is not authenticated: {error.message}")
    if error.status in STATUS_CODES:
        status = error.status_body
        details = status.details if status is not None else None
        return StatusError(error.status, status.reason if status is not None else None, error.message, details)
    return StatusError(500 if isinstance(error, BadApiResponse) else 503, None, error.message)
