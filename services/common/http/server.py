"""Serve HTTP as a Kubernetes API server does (errors are ``Status`` JSON) or as Multus does (errors are text).

One application maker with body limit, error form and SERVER spans, and one way to listen: TCP, TLS, unix socket or an
inherited descriptor. What is served is the role's; certificates are :mod:`services.common.http.tls`.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Literal, TypeAlias

import msgspec
from aiohttp import web
from opentelemetry.trace import SpanKind, StatusCode

from schemas.kube import Status, StatusDetails
from services.common.http.listen import Listener, bind
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import TRACEPARENT, context_of

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorForm: TypeAlias = Literal["status", "text"]

SHUTDOWN_DEADLINE = 4.0
"""Seconds that requests under way may still take when the server stops."""

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    408: "Timeout",
    409: "Conflict",
    410: "Gone",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_log = logging.getLogger("hotnic.http")
_encode = msgspec.json.Encoder().encode


class StatusError(Exception):
    """Raised by a handler: the answer is an error.

    :ivar code: HTTP status of 400 or more. :ivar reason: CamelCase; the usual one of the code when ``None``.
    """

    def __init__(
        self,
        code: int,
        reason: str | None,
        message: str,
        details: StatusDetails | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or _REASONS.get(code, HTTPStatus(code).phrase.replace(" ", ""))
        self.message = message
        self.details = details
        self.headers = dict(headers or {})


def error_response(error: StatusError, form: ErrorForm = "status") -> web.Response:
    """The answer that an error becomes."""
    if form == "text":
        return web.Response(status=error.code, text=f"{error.message}\n", headers=error.headers)
    status = Status(
        status="Failure", message=error.message, reason=error.reason, details=error.details, code=error.code
    )
    # ``kind`` and ``apiVersion`` are the struct's defaults, which it does not write.
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, **msgspec.to_builtins(status)}
    return web.Response(status=error.code, body=_encode(body), content_type="application/json", headers=error.headers)


def make_app(
    *, telemetry: Telemetry, max_body: int, errors: ErrorForm = "status", traced: bool = True
) -> web.Application:
    """An application without routes.

    Every error has the asked form: what handlers raise (:class:`StatusError`), no route (404), wrong method (405 with
    ``Allow``), a body above ``max_body`` bytes, chunked or not (413), and a bug (500, logged with its trace).

    :param traced: make a SERVER span for each request, below the request's ``traceparent``.
    """
    middlewares = [_errors(errors, max_body)]
    if traced:
        middlewares.insert(0, _spans(telemetry))
    return web.Application(client_max_size=max_body, middlewares=middlewares)


@asynccontextmanager
async def serve(
    app: web.Application, listen: str, *, ssl: SSLContext | None = None, shutdown: float = SHUTDOWN_DEADLINE
) -> AsyncIterator[str]:
    """Serve while the context is open; gives the address bound to (``host:port``, ``unix:/path``).

    :param listen: ``host:port`` (port 0: any free one), ``unix:/path`` (mode 0600) or ``fd:N`` (inherited).
    :param shutdown: seconds that requests under way may take when the context ends.
    :raises OSError: it cannot listen there. :raises ValueError: not an address.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown)
    await runner.setup()
    listener: Listener | None = None
    try:
        listener = bind(listen)
        await web.SockSite(runner, listener.socket, ssl_context=ssl).start()
        yield listener.address
    finally:
        if listener is not None:
            listener.withdraw()
        await runner.cleanup()
        if listener is not None:
            listener.socket.close()


def route_of(request: web.Request) -> str | None:
    """The template of the route that matched (``/apis/{group}``); ``None`` when none did."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else None


def _errors(form: ErrorForm, max_body: int) -> Any:
    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.content_length is not None and request.content_length > max_body:
                raise web.HTTPRequestEntityTooLarge(max_body, request.content_length)
            return await handler(request)
        except StatusError as error:
            found = error
        except web.HTTPException as error:
            if error.status < 400:
                raise
            found = _of_http_exception(request, error, max_body)
        except Exception:
            _log.exception("bug in a handler: %s %s", request.method, request.path)
            found = StatusError(500, None, "internal error; the log has the details")
        response = error_response(found, form)
        if found.code == 413:
            # What is left of the body would be read as the next request.
            response.force_close()
        return response

    return errors


def _of_http_exception(request: web.Request, error: web.HTTPException, max_body: int) -> StatusError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        message = f"{request.method} is not allowed on {request.path}; allowed: {error.headers.get('Allow', '')}"
        return StatusError(405, None, message, headers={"Allow": error.headers.get("Allow", "")})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return StatusError(413, None, f"request body larger than {max_body} bytes")
    if error.status == 404:
        return StatusError(404, None, f"no such path: {request.path}")
    return StatusError(error.status, None, error.text or error.reason or HTTPStatus(error.status).phrase)


def _spans(telemetry: Telemetry) -> Any:
    tracer = telemetry.tracer

    @web.middleware
    async def spans(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        attributes = {"http.request.method": request.method, "url.path": request.path, "url.scheme": request.scheme}
        if route is not None:
            attributes["http.route"] = route
        with tracer.start_as_current_span(
            f"{request.method} {route}" if route else request.method,
            context=context_of(request.headers.get(TRACEPARENT)),
            kind=SpanKind.SERVER,
            attributes=attributes,
        ) as span:
            response = await handler(request)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                span.set_attribute("error.type", str(response.status))
                span.set_status(StatusCode.ERROR)
            _log.debug("%s %s %s", request.method, request.path_qs, response.status)
            return response

    return spans
