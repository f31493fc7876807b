"""The api's routes: discovery without a user, subresources only through the aggregation layer.

Every error is a Kubernetes ``Status`` (the shared middleware sees to that). Next: :mod:`services.api.request`.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web

from schemas.hotplug_status import as_json
from schemas.options import MAX_BODY_BYTES, OPERATION_HEADER, AddInterfaceOptions, RemoveInterfaceOptions
from services.api.apply import carry_out
from services.api.discovery import GROUPS, HOTNIC_GROUP, document, paths
from services.api.front_proxy import FrontProxy, Identity
from services.api.hotplug_status import read
from services.api.observe import Cluster, observe
from services.api.plan import Target
from services.api.plan.checks import GATE_CLOSED
from services.api.request import BadBody, decode_add, decode_remove
from services.api.watch import WATCHERS, Streams, flag, seconds
from services.common.bus.protocol import Bus
from services.common.http.server import StatusError, make_app
from services.common.http.tls import peer_common_name
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from services.common.logs import Log
from services.common.telemetry import Telemetry

Decode = Callable[[bytes], AddInterfaceOptions | RemoveInterfaceOptions]

VERBS: dict[str, tuple[Decode, str]] = {
    "addinterface": (decode_add, "interface requested"),
    "removeinterface": (decode_remove, "removal of an interface requested"),
}
"""How the body of each subresource is read, and what is logged of it."""


class Api:
    """The handlers and what they need.

    :param cluster: what holds for the whole cluster now. :param enabled: whether NICs may be hot-plugged.
    :param watchers: how many may watch ladders at once.
    """

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        telemetry: Telemetry,
        proxy: FrontProxy,
        log: Log,
        *,
        cluster: Callable[[], Cluster] = Cluster,
        enabled: Callable[[], bool] = lambda: True,
        watchers: int = WATCHERS,
    ) -> None:
        self._kube = kube
        self._bus = bus
        self._proxy = proxy
        self._log = log
        self._cluster = cluster
        self._enabled = enabled
        self._turns: WeakValueDictionary[tuple[Target, str, str], asyncio.Lock] = WeakValueDictionary()
        self.app = make_app(telemetry=telemetry, max_body=MAX_BODY_BYTES)
        for path in [*paths(), "/openapi/v2"]:
            self.app.router.add_get(path, self._discovery)
        for path in ("/healthz", "/livez", "/readyz"):
            self.app.router.add_get(path, self._healthy)
        for group, versions in GROUPS.items():
            for version in versions:
                self.app.router.add_get(f"/apis/{group}/{version}/healthz", self._connected)
                for target in Target:
                    base = f"/apis/{group}/{version}/namespaces/{{namespace}}/{target}s/{{name}}"
                    for verb in VERBS:
                        self.app.router.add_put(f"{base}/{verb}", partial(self._change, target, verb))
        self._streams = Streams(kube, bus, log, watchers)
        self.app.on_shutdown.append(self._streams.close)
        hotplug_status = f"/apis/{HOTNIC_GROUP}/v1/namespaces/{{namespace}}/{Target.VMI}s/{{name}}/interfaces"
        self.app.router.add_get(hotplug_status, self._interfaces)

    async def _discovery(self, request: web.Request) -> web.Response:
        return web.json_response(document(request.path))

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _connected(self, _request: web.Request) -> web.Response:
        """Whether the Kubernetes API server answers, as virt-api says it."""
        try:
            answer = await self._kube.request("GET", "/version")
        except KubeError as error:
            said = {"connectivity": "failed", "error": error.message}
            return web.json_response({"apiserver": said}, status=500)
        return web.json_response({"apiserver": {"connectivity": "ok", "version": msgspec.json.decode(answer.body)}})

    def _identify(self, request: web.Request) -> Identity:
        groups = [value for header in self._proxy.group_headers for value in request.headers.getall(header, [])]
        return self._proxy.identify(peer_common_name(request), request.headers, groups)

    async def _interfaces(self, request: web.Request) -> web.StreamResponse:
        self._identify(request)
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        duration, stored = seconds(request.query), flag(request.query, "stored")
        try:
            if duration is not None:
                return await self._streams.serve(request, namespace, name, duration)
            found = await read(self._kube, self._bus, namespace, name, stored=stored)
        except KubeError as error:
            raise _passed_on(error) from error
        return web.Response(body=as_json(found), content_type="application/json")

    async def _change(self, target: Target, verb: str, request: web.Request) -> web.Response:
        caller = self._identify(request)
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        decode, said = VERBS[verb]
        if not self._enabled():
            raise StatusError(400, "BadRequest", GATE_CLOSED)
        try:
            options = decode(await request.read())
        except BadBody as error:
            raise StatusError(400, "BadRequest", str(error)) from error
        look = partial(observe, self._kube, self._cluster(), target, namespace, name, options, caller)
        # Requests for one object would only make each other's guards fail.
        turn = self._turns.setdefault((target, namespace, name), asyncio.Lock())
        try:
            async with turn:
                operation = await carry_out(look, self._kube, self._bus)
        except KubeError as error:
            raise _passed_on(error) from error
        self._log.info(
            said,
            **{target.name.lower(): f"{namespace}/{name}"},
            interface=options.name,
            operation=operation.id,
            user=caller.user,
        )
        return web.Response(status=202, headers={OPERATION_HEADER: operation.id})


def _passed_on(error: KubeError) -> StatusError:
    """The cluster's own answer (a webhook's refusal, say) is the user's answer."""
    details = error.status_body.details if error.status_body is not None else None
    return StatusError(error.status or 500, error.reason or "InternalError", error.message, details)
