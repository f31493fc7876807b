"""The one HTTP session with the API server: keep-alive, credentials, deadlines, spans, classified errors.

Bytes in and out: objects and verbs are :mod:`services.common.kube.client`, addresses and credentials
:mod:`services.common.kube.auth`. Nothing is retried but once after a 401, with fresh credentials.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from opentelemetry.trace import Span, SpanKind, StatusCode
from yarl import URL

from services.common.kube.auth import ClusterAccess
from services.common.kube.errors import KubeError, PatchTestFailed, Unavailable, classify
from services.common.telemetry.propagation import HasTracer, inject

DEADLINE = 10.0
"""Seconds for a whole request, connection included."""
CONNECT_DEADLINE = 5.0
KEEP_ALIVE = 30.0
"""Seconds an idle connection is kept: less than any API server or load balancer keeps it on its side."""
MAX_CONNECTIONS = 100
JSON = "application/json"


class KubeResponse(msgspec.Struct, frozen=True):
    """A whole answer of less than 400; header names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """A session with one API server. Made by :meth:`open` in a running loop; :meth:`close` it.

    :ivar access: address and credentials.
    """

    def __init__(
        self, access: ClusterAccess, session: aiohttp.ClientSession, telemetry: HasTracer, user_agent: str
    ) -> None:
        self.access = access
        self._session = session
        self._tracer = telemetry.tracer
        self._user_agent = user_agent

    @classmethod
    def open(cls, access: ClusterAccess, telemetry: HasTracer, user_agent: str) -> "Transport":
        """Make the session; nothing is sent yet."""
        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE, socket_factory=_keep_alive_socket
        )
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return cls(access, session, telemetry, user_agent)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        span: str,
        guarded: bool = False,
    ) -> KubeResponse:
        """Send a request and read its whole answer.

        :param span: name of the CLIENT span. :param guarded: it is a JSON patch with ``test`` operations.
        :raises KubeError: an answer of 400 or more, or none.
        """
        attributes = {"http.request.method": method, "url.path": path, "server.address": self.access.server}
        with self._tracer.start_as_current_span(
            span, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as current:
            try:
                limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_DEADLINE))
                response = await self._exchange(current, method, path, query, body, content_type, headers, limits)
                if response.status >= 400:
                    raise classify(response.status, response.body, response.headers, guarded=guarded)
                return response
            except PatchTestFailed:
                # A guard that did its work: somebody else was first. The caller looks again, nothing has failed.
                current.set_attribute("hotnic.guard", "lost")
                raise
            except KubeError as error:
                current.set_attribute("error.type", error.reason)
                current.set_status(StatusCode.ERROR, error.message)
                raise

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], *, idle: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an answer that does not end soon, chunk by chunk. No span: it belongs to no request.

        :param idle: seconds of silence after which the connection counts as dead.
        :raises KubeError: as :meth:`request`; :class:`Unavailable` also while reading, when the connection breaks.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_DEADLINE, sock_read=idle)
        try:
            response = await self._send("GET", path, query, None, None, None, limits)
            async with response:
                if response.status >= 300:
                    raise classify(response.status, await response.read(), response.headers)
                yield response.content.iter_any()
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(error, f"GET {path}") from error

    async def _exchange(
        self,
        span: Span,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str | None,
        headers: Mapping[str, str] | None,
        limits: aiohttp.ClientTimeout,
    ) -> KubeResponse:
        try:
            async with await self._send(method, path, query, body, content_type, headers, limits) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(error, f"{method} {path}") from error
        span.set_attribute("http.response.status_code", response.status)
        return KubeResponse(response.status, response.headers, answer)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        content_type: str | None,
        headers: Mapping[str, str] | None,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        sent = {"Accept": JSON, "User-Agent": self._user_agent}
        if content_type is not None:
            sent["Content-Type"] = content_type
        inject(sent)
        if headers:
            sent |= headers
        url = URL(self.access.server + path + (f"?{urlencode(query)}" if query else ""), encoded=True)
        for last in (False, True):
            response = await self._session.request(
                method,
                url,
                data=body,
                headers=sent | await self.access.headers(),
                timeout=limits,
                ssl=self.access.ssl if self.access.ssl is not None else True,
                server_hostname=self.access.server_hostname,
                proxy=self.access.proxy,
                allow_redirects=False,
            )
            if response.status != 401 or last or not await self.access.refresh():
                break
            response.close()
        return response


def _unavailable(error: BaseException, what: str) -> Unavailable:
    if isinstance(error, TimeoutError):
        return Unavailable(f"{what}: no answer in time", reason="Timeout")
    return Unavailable(f"{what}: {error or type(error).__name__}", reason="Unreachable")


def _keep_alive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices within half a minute that the other side is gone, even on a silent watch."""
    family, kind, protocol = address[0], address[1], address[2]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made
