"""HTTP server whose errors are ``Status`` JSON, as of a Kubernetes API server, or plain text, as of Multus.

It provides an application with a body limit and SERVER spans, and listens on TCP, TLS, a unix socket or an inherited
descriptor. Roles add the routes. Next: :mod:`services.common.http.tls`, the certificates.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, Literal, TypeAlias

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from opentelemetry.trace import SpanKind, StatusCode

from schemas.inputs import is_text, printable
from schemas.kubernetes.objects import Status, StatusDetails
from schemas.kubernetes.status_reasons import STATUS_REASONS
from services.common.http.deadlines import HEAD_DEADLINE, WRITE_DEADLINE, Connections, connection_of
from services.common.http.listen import Listener, accept, bind
from services.common.http.peers import AllowedPeers
from services.common.http.tls import is_of_replaced_ca
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import TRACEPARENT, TraceEntry, context_of, trace_entry

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorFormat: TypeAlias = Literal["status", "text"]

BODY_DEADLINE = 20.0
"""Seconds for the body of a request."""
KEEPALIVE = 120.0
"""Seconds that a connection may idle between two requests; Go's client, the API server's, closes it after 90."""
MAX_QUOTED = 200
"""Characters of a library's message in an error."""
SHUTDOWN_DEADLINE = 4.0
"""Seconds for running requests to finish when the server stops."""

_log = logging.getLogger("hotnic.http")
_server_log = logging.getLogger("hotnic.http.server")
_encode = msgspec.json.Encoder().encode


def _is_own_fault(record: logging.LogRecord) -> bool:
    """Return whether a record of aiohttp's server is about this process, not about a malformed request of a client."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
        _log.debug("malformed request: %s", error)
        return False
    return True


_server_log.addFilter(_is_own_fault)


class StatusError(Exception):
    """Raised by a handler to respond with an error.

    :ivar code: HTTP status of 400 or more.
    :ivar reason: CamelCase; by default the usual one for the code.
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
        self.reason = reason or STATUS_REASONS.get(code, HTTPStatus(code).phrase.replace(" ", ""))
        self.message = message
        self.details = details
        self.headers = dict(headers or {})


class _BrokenBody(StatusError):
    """Raised if a body has no known end. What follows would be parsed as the next request."""


def error_response(error: StatusError, form: ErrorFormat = "status") -> web.Response:
    """Return the response for an error."""
    # A message that quotes what is no text must not become another error, which nobody would turn into a response.
    message = error.message.encode(errors="backslashreplace").decode()
    if form == "text":
        return web.Response(status=error.code, text=f"{message}\n", headers=error.headers)
    status = Status(status="Failure", message=message, reason=error.reason, details=error.details, code=error.code)
    # The struct omits its defaults, ``kind`` and ``apiVersion`` among them, but clients need them.
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, **msgspec.to_builtins(status)}
    return web.Response(status=error.code, body=_encode(body), content_type="application/json", headers=error.headers)


def make_app(
    *,
    telemetry: Telemetry,
    max_body: int,
    errors: ErrorFormat = "status",
    traced: bool = True,
    internal: Container[str] = (),
    body_deadline: float = BODY_DEADLINE,
) -> web.Application:
    """Return an application without routes.

    All errors have the same format: a :class:`StatusError` of a handler, no route (404), a wrong method (405 with
    ``Allow``), a body that is too large, chunked or not (413), and an unexpected exception (500, logged with its
    traceback).

    :param max_body: limit of request bodies in bytes.
    :param errors: format of errors.
    :param traced: create a SERVER span for each request, as a child of the request's ``traceparent``; one that is
        unsampled is linked instead (:func:`services.common.telemetry.propagation.trace_entry`).
    :param internal: routes that hotnic's own roles call. Their sampling decision is hotnic's and is obeyed.
    :param body_deadline: seconds for the body of a request.
    """
    middlewares = [_error_middleware(errors, max_body, body_deadline)]
    if traced:
        # Outermost, so that the span has the status of an error response.
        middlewares.insert(0, _span_middleware(telemetry, internal))
    return web.Application(client_max_size=max_body, middlewares=middlewares)


@asynccontextmanager
async def serve(
    app: web.Application,
    listen: str,
    *,
    ssl: SSLContext | None = None,
    shutdown: float = SHUTDOWN_DEADLINE,
    head: float = HEAD_DEADLINE,
    writing: float = WRITE_DEADLINE,
    peers: AllowedPeers | None = None,
) -> AsyncIterator[str]:
    """Serve while the context is open; yield the bound address (``host:port``, ``unix:/path``).

    :param listen: ``host:port`` (port 0: any free one), ``unix:/path`` (mode 0600) or ``fd:N`` (inherited).
    :param shutdown: seconds for running requests to finish when the context ends.
    :param head: seconds for the TLS handshake, and for the head of a request.
    :param writing: seconds for a client to read what waits for it.
    :param peers: who may use a unix socket; by default root and the process' own user.
    :raises OSError: the server cannot listen on the address.
    :raises ValueError: the address is malformed.
    """
    # The process frame handles signals, and the span middleware logs requests.
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_server_log,
        handle_signals=False,
        shutdown_timeout=shutdown,
        keepalive_timeout=KEEPALIVE,
    )
    await runner.setup()
    listener: Listener | None = None
    server: asyncio.Server | None = None
    try:
        assert runner.server is not None
        listener = bind(listen)
        runner.server.request_handler = _guard(runner.server.request_handler)
        connections = Connections(runner.server, tls=ssl, deadline=head, writing=writing, peers=peers)
        server = await accept(listener, connections)
        yield listener.address
    finally:
        # New clients stop finding the socket before the running requests are waited for.
        if listener is not None:
            listener.unlink()
        if server is not None:
            server.close()
        await runner.cleanup()
        if listener is not None:
            listener.socket.close()


def _guard(handle: Any) -> Any:
    """Return a request handler for what aiohttp (3.14) passes on and should not.

    A header that is no text is answered with 400, as the parser does for other characters. It keeps such bytes as
    surrogates, which cannot be sent, logged or put into a span, and fails itself to quote them of an ``Expect``.
    A connection ends with a request whose end aiohttp finds elsewhere than other servers do: the rest would become the
    next request, or headers of it, which may be another user's and which the aggregation layer has authenticated.
    """

    async def check(request: web.BaseRequest) -> web.StreamResponse:
        try:
            for name, value in request.headers.items():
                if not is_text(value):
                    raise web.HTTPBadRequest(text=f"header {name} is not UTF-8\n")
            response: web.StreamResponse = await handle(request)
        except web.HTTPException as error:
            if _is_last(request):
                error.force_close()
            raise
        if _is_last(request):
            response.force_close()
        return response

    return check


def _is_last(request: web.BaseRequest) -> bool:
    """Return whether the connection ends with a request.

    aiohttp takes the trailers behind chunks, and the body of ``CONNECT`` or behind ``Upgrade``, for what comes next.
    """
    return (
        hdrs.TRANSFER_ENCODING in request.headers
        or hdrs.UPGRADE in request.headers
        or request.method == hdrs.METH_CONNECT
        or is_of_replaced_ca(request)
    )


def route_of(request: web.Request) -> str | None:
    """Return the template of the matched route, such as ``/apis/{group}``; ``None`` if none matched."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else None


def _error_middleware(form: ErrorFormat, max_body: int, body_deadline: float) -> Any:
    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = connection_of(request)
        if connection is not None:
            connection.begin_request()
        try:
            if request.content_length is not None and request.content_length > max_body:
                raise web.HTTPRequestEntityTooLarge(max_body, request.content_length)
            if request.can_read_body:
                # The handlers then read it without waiting.
                with connection.reading_body() if connection is not None else nullcontext():
                    await _read_body(request, body_deadline)
            return await handler(request)
        except StatusError as error:
            failure = error
        except web.HTTPException as error:
            if error.status < 400:
                raise
            failure = _from_http_exception(request, error, max_body)
        except Exception:
            _log.exception("unexpected error in a request handler: %s %s", request.method, request.path)
            failure = StatusError(500, None, "internal error; see the log of this process")
        finally:
            if connection is not None:
                connection.end_request()
        response = error_response(failure, form)
        if failure.code == 413 or isinstance(failure, _BrokenBody):
            # The unread rest of the body would be parsed as the next request.
            response.force_close()
        return response

    return errors


async def _read_body(request: web.Request, deadline: float) -> None:
    try:
        async with asyncio.timeout(deadline):
            await request.read()
    except TimeoutError:
        raise _BrokenBody(408, None, f"no complete body within {deadline:g} s") from None
    except ConnectionError:
        # Nobody gets the response. The client's failure is none of this process.
        raise _BrokenBody(400, None, "the client has left within the body") from None
    except web.RequestPayloadError as error:
        raise _BrokenBody(400, None, f"the body cannot be read: {printable(str(error), MAX_QUOTED)}") from None


def _from_http_exception(request: web.Request, error: web.HTTPException, max_body: int) -> StatusError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        message = f"{request.method} is not allowed on {request.path}; allowed: {error.headers.get('Allow', '')}"
        return StatusError(405, None, message, headers={"Allow": error.headers.get("Allow", "")})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return StatusError(413, None, f"request body larger than {max_body} bytes")
    if error.status == 404:
        return StatusError(404, None, f"no such path: {request.path}")
    return StatusError(error.status, None, error.text or error.reason or HTTPStatus(error.status).phrase)


def _span_middleware(telemetry: Telemetry, internal: Container[str]) -> Any:
    tracer = telemetry.tracer

    @web.middleware
    async def spans(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        attributes = {"http.request.method": request.method, "url.path": request.path, "url.scheme": request.scheme}
        if route is not None:
            attributes["http.route"] = route
        caller = request.headers.get(TRACEPARENT)
        entry = TraceEntry(context_of(caller), []) if route in internal else trace_entry(caller)
        with tracer.start_as_current_span(
            f"{request.method} {route}" if route else request.method,
            context=entry.parent,
            links=entry.links,
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
