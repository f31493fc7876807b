"""The HTTP server on the unix socket: routes, decoding of calls, and responses that upstream's shim understands.

Each connection carries one request. A successful ADD returns ``{"Result": …}``, any other command an empty body. A
failure is 400 with a CNI error document, or with a line of text if the body was not a request. ``GET /sandboxes/<id>``
returns a record. It is 404 if there is none, as for every path that upstream's daemon does not serve, and 500 if there
is one that cannot be read.
Next: :mod:`services.multus.call_handler`, which carries out a call.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry import trace
from opentelemetry.metrics import Counter

from schemas import cni, multus
from services.common.http.metrics_page import MetricsPage
from services.common.http.server import Handler, make_app
from services.common.runtime.fair_queue import FairSlots
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log
from services.common.telemetry.tracer import fail_span
from services.multus.call_handler import CallHandler
from services.multus.cni.call import CniCall, MalformedError, decode
from services.multus.cni.errors import CniError
from services.multus.cni.executor import seconds_left, time_limit

HandleCall = Callable[[CniCall], Awaitable[cni.CniResult | None]]
"""Carries out the calls of one path, ``/cni`` or ``/delegate``."""

DRAIN: Final = 8.0
"""Seconds that running calls may take when the daemon stops (the kubelet grants 10 in all)."""


def make_application(
    call_handler: CallHandler,
    *,
    telemetry: Telemetry,
    log: Log,
    stopping: Callable[[], bool],
    limit: int | None = None,
    call_timeout: float,
) -> web.Application:
    """Build the daemon's HTTP application.

    :param call_handler: carries out the calls.
    :param telemetry: the tracer and the meter.
    :param log: the daemon's log.
    :param stopping: returns whether the daemon is shutting down; ``/readyz`` fails then.
    :param limit: how many calls may run at once, half of them for the pods of one namespace while others wait, too;
        further calls wait. ``None``: no limit.
    :param call_timeout: seconds that a call may take, from its receipt.
    """
    sandbox_route = f"{multus.SANDBOXES_PATH}/{{id}}"
    app = make_app(
        telemetry=telemetry,
        max_body=multus.MAX_BODY_BYTES,
        errors="text",
        internal=(multus.DELEGATE_PATH, sandbox_route),
    )
    # Upstream limits connections (multus-cni#1346). Limiting calls lets health checks pass while calls wait.
    slots = FairSlots(limit) if limit else None

    def call_route(handle_call: HandleCall) -> Callable[[web.Request], Awaitable[web.Response]]:
        return _call_route(handle_call, log, slots, call_timeout)

    requests = telemetry.meter.create_counter("multus_server_request", description="requests by path and status")
    # Outermost, so that a response made from an error is counted with its status.
    app.middlewares.insert(0, _counting(requests))
    app.router.add_post(multus.CNI_PATH, call_route(call_handler.handle_cni))
    app.router.add_post(multus.DELEGATE_PATH, call_route(call_handler.handle_delegate))

    app.router.add_get(sandbox_route, _sandbox_route(call_handler, log))

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response()

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(status=500, text="stopping\n") if stopping() else web.Response()

    # Upstream's shim checks the health by POST, with the body `null`.
    for method in ("GET", "POST"):
        app.router.add_route(method, multus.HEALTH_PATH, healthz)
        app.router.add_route(method, multus.READY_PATH, readyz)
    return app


def metrics_app(telemetry: Telemetry) -> web.Application:
    """Build the application of ``metricsPort``, which serves ``/metrics``; the health endpoint serves it too."""
    app = make_app(telemetry=telemetry, max_body=1024, errors="text", traced=False)
    app.router.add_get("/metrics", MetricsPage(telemetry.metrics_text).get)
    return app


def _counting(requests: Counter) -> Any:
    """Count requests as upstream does (``multus_server_request_total``), and end each connection after its response."""

    @web.middleware
    async def counting(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        # As upstream, each connection carries one request: a client must not find one that a restart has closed.
        response.force_close()
        resource = request.match_info.route.resource
        # All sandboxes share one label value, and so do unknown paths: a client cannot create series without limit.
        path = resource.canonical if resource else "NotFound"
        requests.add(1, {"handler": path, "code": str(response.status), "method": request.method.lower()})
        return response

    return counting


def _call_route(
    handle_call: HandleCall, log: Log, slots: FairSlots | None, call_timeout: float
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            call = decode(body)
        except MalformedError as error:
            return web.Response(status=400, text=f"{error}\n")
        except CniError as error:
            return _error_response(error, None, log)
        _set_span_attributes(call)
        try:
            with time_limit(call_timeout):
                async with contextlib.AsyncExitStack() as stack:
                    if slots:
                        # By namespace: the plugins of one tenant's networks may all wait for their deadline.
                        await take_slot(stack, slots, call.pod.namespace if call.pod else None)
                    result = await handle_call(call)
        except CniError as error:
            return _error_response(error, call, log)
        except Exception as error:
            log.exception("unexpected call error", command=call.command, sandbox=call.sandbox_id, ifname=call.ifname)
            return _error_response(CniError(cni.CniErrorCode.INTERNAL, f"internal error: {error!r}"), call, log)
        if call.command is not cni.CniCommand.ADD:
            return web.Response()
        # The content type is upstream's.
        return web.Response(
            body=msgspec.json.encode(multus.DelegateResponse(result)), content_type="text/plain", charset="utf-8"
        )

    return handle


async def take_slot(stack: contextlib.AsyncExitStack, slots: FairSlots, namespace: str | None) -> None:
    """Wait for a slot, and hold it until the stack ends.

    :raises CniError: code 11, none was free as long as the runtime waits.
    """
    seconds = seconds_left()
    try:
        async with asyncio.timeout(seconds):
            await stack.enter_async_context(slots.hold(namespace))
    except TimeoutError:
        message = f"too many calls have been running for {seconds:.3g} s"
        raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from None


def _sandbox_route(call_handler: CallHandler, log: Log) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        sandbox_id = request.match_info["id"]
        try:
            record = call_handler.sandbox_record(sandbox_id)
        except CniError as error:
            # With 404 the client would go on as for a sandbox that has no record, and not ask again.
            unreadable = error.code == cni.CniErrorCode.IO_FAILURE
            if unreadable:
                log.warning("sandbox record not readable", sandbox=sandbox_id, error=error.msg)
            return web.Response(status=500 if unreadable else 404, body=error.encode(), content_type="application/json")
        return web.Response(body=msgspec.json.encode(record), content_type="application/json")

    return handle


def _set_span_attributes(call: CniCall) -> None:
    span = trace.get_current_span()
    span.set_attribute("cni.command", call.command.value)
    span.set_attribute("cni.container_id", call.sandbox_id)
    span.set_attribute("cni.ifname", call.ifname)
    if call.pod is not None:
        span.set_attribute("k8s.namespace.name", call.pod.namespace)
        span.set_attribute("k8s.pod.name", call.pod.name)


def _error_response(error: CniError, call: CniCall | None, log: Log) -> web.Response:
    span = trace.get_current_span()
    span.set_attribute("cni.error.code", error.code)
    fail_span(span, error.msg)
    log.warning(
        "call failed",
        command=call.command.value if call else None,
        sandbox=call.sandbox_id if call else None,
        ifname=call.ifname if call else None,
        pod=str(call.pod) if call else None,
        code=error.code,
        error=error.msg,
    )
    # As upstream: 400 for every failure, whatever its CNI code.
    return web.Response(status=400, body=error.encode(), content_type="application/json")
