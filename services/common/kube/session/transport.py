"""HTTP session with the API server: keep-alive, credentials, deadlines, spans, classified errors.

It sends and receives bytes. A request is sent again only once, after a 401, with refreshed credentials. Address and
credentials are :mod:`services.common.kube.session.auth`.
Next: :mod:`services.common.kube.client`, which adds objects and verbs.
"""

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
from opentelemetry.trace import Span, SpanKind
from yarl import URL

from services.common.kube.errors import Conflict, KubeError, PatchTestFailed, ResponseTooLarge, Unavailable, classify
from services.common.kube.session.auth import ClusterAccess
from services.common.telemetry.propagation import HasTracer, inject
from services.common.telemetry.redact import redact_text
from services.common.telemetry.tracer import CONFLICT, fail_span

DEADLINE = 10.0
"""Seconds for a whole request, including the connection."""
CONNECT_DEADLINE = 5.0
ANSWER_DEADLINE = 30.0
"""Seconds until the first line of a long-running response. A watch is answered before its first event."""
PEER_DEADLINE = 30.0
"""Seconds until TCP counts a peer as gone that acknowledges nothing, such as a machine that lost its power."""
KEEP_ALIVE = 30.0
"""Seconds until an idle connection is closed: less than API servers and load balancers wait on their side."""
MAX_CONNECTIONS = 100
"""Connections for requests. A stream has one of its own for its whole time: HTTP/1.1 has one request per connection at
a time. Who opens streams limits their number; together with requests they would let these wait."""
MAX_RESPONSE = 16 * 1024 * 1024
"""Bytes of one response: a page of 500 objects of 32 KiB, or the largest object, of which etcd has at most 1.5 MiB and
JSON six times that. Whoever may create objects chooses their size."""
LARGE_RESPONSE = 256 * 1024
"""Bytes from which on a response is large."""
LARGE_AT_ONCE = 4
"""Large responses that are read at a time, so that their number does not matter. The others wait, unread. So do large
lines of streams: a change of one large object may be sent by each of a hundred watches."""
JSON = "application/json"
JSON_PATCH = "application/json-patch+json"


_WARNING = re.compile(r'\b299 \S+ "((?:[^"\\]|\\.)*)"')


class KubeResponse(msgspec.Struct, frozen=True):
    """A complete response with a status below 300; header names are case-insensitive.

    :ivar warnings: the texts of its ``Warning`` headers (RFC 7234 section 5.5).
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    warnings: tuple[str, ...] = ()


class Transport:
    """A session with one API server. Create it by :meth:`open` in a running loop, and :meth:`close` it.

    :ivar access: address and credentials of the cluster.
    """

    def __init__(
        self,
        access: ClusterAccess,
        session: aiohttp.ClientSession,
        streams: aiohttp.ClientSession,
        telemetry: HasTracer,
        user_agent: str,
    ) -> None:
        self.access = access
        self._session = session
        self._streams = streams
        self._tracer = telemetry.tracer
        self._user_agent = user_agent
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._large_lines = asyncio.Semaphore(LARGE_AT_ONCE)

    @classmethod
    def open(
        cls, access: ClusterAccess, telemetry: HasTracer, user_agent: str, *, peer_deadline: float = PEER_DEADLINE
    ) -> "Transport":
        """Create the session without sending anything.

        :param peer_deadline: seconds until a peer that acknowledges nothing counts as gone; at least 2.
        """
        session, streams = _create_session(MAX_CONNECTIONS, peer_deadline), _create_session(0, peer_deadline)
        return cls(access, session, streams, telemetry, user_agent)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._streams.close()

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
        """Send a request and read the complete response.

        :param timeout: seconds.
        :param span: name of the CLIENT span.
        :param guarded: whether the request applies to a certain state of the object only.
        :raises KubeError: the status is 300 or more, or there is no response.
        """
        attributes = {"http.request.method": method, "url.path": path, **_server_attributes(self.access.server)}
        with self._tracer.start_as_current_span(
            span, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as current:
            try:
                limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_DEADLINE))
                response = await self._exchange(current, method, path, query, body, content_type, headers, limits)
                if response.status >= 300:
                    tested = guarded and content_type == JSON_PATCH
                    raise classify(response.status, response.body, response.headers, guarded=tested)
                return response
            except KubeError as error:
                error.conflict = guarded and isinstance(error, (PatchTestFailed, Conflict))
                if error.conflict:
                    # Another writer was first, which is what the guard is for. The caller reads and plans again.
                    current.set_attribute(CONFLICT, True)
                else:
                    current.set_attribute("error.type", error.reason)
                    fail_span(current, error.message)
                raise

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], *, timeout: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the chunks of a long-running response, such as a watch.

        It has no span, because it outlives the operation that opened it. It may deliver nothing for its whole time:
        whether the peer is still there is watched by TCP.

        :param timeout: seconds for the whole response, which the server ends before.
        :raises KubeError: as :meth:`request`; :class:`Unavailable` also while reading, if the connection breaks.
        """
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_DEADLINE)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE):
                response = await self._send(self._streams, "GET", path, query, None, None, None, limits)
            async with response:
                if response.status >= 300:
                    raise classify(response.status, await self._read(response, f"GET {path}"), response.headers)
                async with aclosing(self._read_in_turn(response.content)) as chunks:
                    yield chunks
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
            sent = self._send(self._session, method, path, query, body, content_type, headers, limits)
            async with await sent as response:
                content = await self._read(response, f"{method} {path}")
        except (aiohttp.ClientError, OSError) as error:
            raise _unavailable(error, f"{method} {path}") from error
        span.set_attribute("http.response.status_code", response.status)
        return KubeResponse(
            response.status, response.headers, content, _warnings(response.headers.getall("Warning", ()))
        )

    async def _read(self, response: aiohttp.ClientResponse, request: str) -> bytes:
        """Return the body of a response.

        :raises ResponseTooLarge: it has more than ``MAX_RESPONSE`` bytes; the rest is not read.
        """
        chunks: list[bytes] = []
        size = 0
        async with AsyncExitStack() as turn:
            async for chunk in response.content.iter_any():
                if size <= LARGE_RESPONSE < size + len(chunk):
                    await turn.enter_async_context(self._large)
                size += len(chunk)
                if size > MAX_RESPONSE:
                    response.close()
                    message = f"{request}: the response has more than {MAX_RESPONSE} bytes"
                    raise ResponseTooLarge(message, status=response.status)
                chunks.append(chunk)
            return b"".join(chunks)

    async def _read_in_turn(self, content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a stream of lines; of large lines, a few at a time are read."""
        size, in_turn = 0, False
        try:
            while True:
                # A turn is for a line that is on its way.
                async with asyncio.timeout(ANSWER_DEADLINE if in_turn else None):
                    chunk = await content.readany()
                if not chunk:
                    return
                yield chunk
                end = chunk.rfind(b"\n")
                size = size + len(chunk) if end < 0 else len(chunk) - end - 1
                if size > LARGE_RESPONSE and not in_turn:
                    in_turn = await self._large_lines.acquire()
                elif size <= LARGE_RESPONSE and in_turn:
                    self._large_lines.release()
                    in_turn = False
        finally:
            if in_turn:
                self._large_lines.release()

    async def _send(
        self,
        session: aiohttp.ClientSession,
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
        # Path and query are encoded already; yarl would otherwise requote them.
        url = URL(self.access.server + path + (f"?{urlencode(query)}" if query else ""), encoded=True)
        for last in (False, True):
            response = await session.request(
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
            # A rotated token or an expired exec credential: read the configuration again and repeat the request once.
            if response.status != 401 or last or not await self.access.refresh():
                break
            response.close()
        return response


@lru_cache(maxsize=8)
def _server_attributes(server: str) -> dict[str, str | int]:
    """Return the span attributes of a base URL: OpenTelemetry wants host and port without the scheme."""
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or server, "server.port": port}


def _warnings(headers: Iterable[str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\\(.)", r"\1", text) for header in headers for text in _WARNING.findall(header))


def _unavailable(error: BaseException, request: str) -> Unavailable:
    if isinstance(error, TimeoutError):
        return Unavailable(f"{request}: no response in time", reason="Timeout")
    # The text may have the address of a proxy, with its password; others show it to users.
    return Unavailable(f"{request}: {redact_text(str(error)) or type(error).__name__}", reason="Unreachable")


def _create_session(limit: int, peer_deadline: float) -> aiohttp.ClientSession:
    """Create a session without connections; it has at most so many of them, or any number with a limit of 0."""
    connector = aiohttp.TCPConnector(
        limit=limit, keepalive_timeout=KEEP_ALIVE, socket_factory=partial(_create_socket, peer_deadline=peer_deadline)
    )
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _create_socket(address: tuple[Any, ...], *, peer_deadline: float) -> socket.socket:
    """Create a socket whose connection breaks when the peer is gone, even if no data is due in either direction."""
    family, kind, protocol = address[0], address[1], address[2]
    sock = socket.socket(family=family, type=kind, proto=protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Half of the time without data, then probes in the other half.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(peer_deadline / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(peer_deadline / 6)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(peer_deadline * 1000))
    return sock
