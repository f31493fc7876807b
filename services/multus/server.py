"""The unix socket: which path and method, bytes to a call, and a failure to the answer that upstream's shim knows.

Success of ADD is ``{"Result": …}``, of every other verb an empty body; a failure is 400 with a CNI error document, or
with a line of text where the request was none. ``GET /sandboxes/<id>`` shows a record and changes nothing.
Next: :mod:`services.multus.calls`, what a call does.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry import trace
from opentelemetry.metrics import Counter
from opentelemetry.trace import Status, StatusCode
from structlog.typing import FilteringBoundLogger

from schemas import cni, multus
from services.common.health import METRICS_TYPE
from services.common.http.server import Handler, make_app
from services.common.telemetry import Telemetry
from services.multus.call import Call, MalformedError, decode
from services.multus.calls import Calls
from services.multus.errors import CniError

Verb = Callable[[Call], Awaitable[cni.CniResult | None]]

_COUNTED: Final = {multus.CNI_PATH, multus.DELEGATE_PATH, multus.HEALTH_PATH, multus.READY_PATH}

DRAIN: Final = 8.0
"""Seconds that calls under way may take when the daemon stops (kubelet grants 10 in all)."""


def application(
    calls: Calls,
    *,
    telemetry: Telemetry,
    log: FilteringBoundLogger,
    stopping: Callable[[], bool],
    limit: int | None = None,
) -> web.Application:
    """The daemon's application.

    :param stopping: whether the daemon is about to end; ``/readyz`` says so.
    :param limit: how many calls may run at once; more wait their turn. ``None``: all of them.
    """
    app = make_app(telemetry=telemetry, max_body=multus.MAX_BODY_BYTES, errors="text")
    places: AbstractAsyncContextManager[object] = asyncio.Semaphore(limit) if limit else contextlib.nullcontext()
    requests = telemetry.meter.create_counter("multus_server_request", description="requests by path and status")
    app.middlewares.insert(0, _counting(requests))
    app.router.add_post(multus.CNI_PATH, _handler(calls.on_cni, log, places))
    app.router.add_post(multus.DELEGATE_PATH, _handler(calls.on_delegate, log, places))

    app.router.add_get(f"{multus.SANDBOXES_PATH}/{{id}}", _record(calls))

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response()

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(status=500, text="stopping\n") if stopping() else web.Response()

    for method in ("GET", "POST"):
        app.router.add_route(method, multus.HEALTH_PATH, healthz)
        app.router.add_route(method, multus.READY_PATH, readyz)
    return app


def metrics_app(telemetry: Telemetry) -> web.Application:
    """``/metrics`` for ``metricsPort``; the health endpoint has it too."""
    app = make_app(telemetry=telemetry, max_body=1024, errors="text", traced=False)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=telemetry.metrics_text(), headers={"Content-Type": METRICS_TYPE})

    app.router.add_get("/metrics", metrics)
    return app


def _counting(requests: Counter) -> Any:
    """Count as upstream does: ``multus_server_request_total`` by handler, code and method."""

    @web.middleware
    async def counting(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        path = request.path if request.path in _COUNTED else "NotFound"
        requests.add(1, {"handler": path, "code": str(response.status), "method": request.method.lower()})
        return response

    return counting


def _handler(
    verb: Verb, log: FilteringBoundLogger, places: AbstractAsyncContextManager[object]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            call = decode(body)
        except MalformedError as error:
            return web.Response(status=400, text=f"{error}\n")
        except CniError as error:
            return _failed(error, None, log)
        _describe(call)
        try:
            async with places:
                result = await verb(call)
        except CniError as error:
            return _failed(error, call, log)
        except Exception as error:
            log.exception("bug in a call", command=call.command, sandbox=call.sandbox_id, ifname=call.ifname)
            return _failed(CniError(cni.Code.INTERNAL, f"internal error: {error!r}"), call, log)
        if call.command is not cni.Command.ADD:
            return web.Response()
        return web.Response(body=msgspec.json.encode(multus.DelegateResponse(result)), content_type="text/plain")

    return handle


def _record(calls: Calls) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            record = calls.record(request.match_info["id"])
        except CniError as error:
            return web.Response(status=404, body=error.document(), content_type="application/json")
        return web.Response(body=msgspec.json.encode(record), content_type="application/json")

    return handle


def _describe(call: Call) -> None:
    span = trace.get_current_span()
    span.set_attribute("cni.command", call.command.value)
    span.set_attribute("cni.container_id", call.sandbox_id)
    span.set_attribute("cni.ifname", call.ifname)
    if call.pod is not None:
        span.set_attribute("k8s.namespace.name", call.pod.namespace)
        span.set_attribute("k8s.pod.name", call.pod.name)


def _failed(error: CniError, call: Call | None, log: FilteringBoundLogger) -> web.Response:
    span = trace.get_current_span()
    span.set_attribute("cni.error.code", error.code)
    span.set_status(Status(StatusCode.ERROR, error.msg))
    log.warning(
        "call failed",
        command=call.command.value if call else None,
        sandbox=call.sandbox_id if call else None,
        ifname=call.ifname if call else None,
        pod=str(call.pod) if call else None,
        code=error.code,
        error=error.msg,
    )
    return web.Response(status=400, body=error.document(), content_type="application/json")
