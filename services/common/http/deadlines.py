"""Limits of HTTP connections: the time for a head and for reading a response, and the number of those that wait.

aiohttp itself limits only how long a connection may idle between two requests. A client that sends half a head would
keep its connection, and its file descriptor, for an hour. A connection waits from TCP's handshake until a request has
its complete body, so one limit applies to all that a client can have without being identified. Connections with a
verified client certificate have a limit of their own: others do not end those of the aggregation layer.
Connections of users that a unix socket does not admit are ended before anything of them is read.
Next: :mod:`services.common.http.server`, which also limits the time for a body.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web_protocol import _ErrInfo

from schemas.inputs import printable
from services.common.http.peers import AllowedPeers
from services.common.http.tls_connection import TlsConnection, has_verified_certificate
from services.common.telemetry.stores import STORES

HEAD_DEADLINE = 10.0
"""Seconds for the head of a request, from the connection or from its first byte on."""
WRITE_DEADLINE = 20.0
"""Seconds for a client to read what it has requested, whenever more than ``WRITE_BUFFER`` bytes wait for it."""
WRITE_BUFFER = 64 * 1024
PIECE = 16 * 1024
"""Bytes that are parsed at once: the error about a malformed head quotes all of them twice."""
MAX_QUOTED = 200
"""Characters of such an error that are kept until it is answered."""
MAX_WAITING = 256
"""Connections without a complete request, and again as many with a verified client certificate. One more ends the one
of its kind that has waited longest."""


class Connections:
    """Makes the protocols of a server's connections, and ends those that wait too long for a head.

    :param make: returns the HTTP protocol of a new connection.
    :param tls: serve with TLS. The listening socket itself has to be served without, as each connection has its own.
    :param deadline: seconds for the TLS handshake, and again for the head of a request.
    :param writing: seconds for a client to read.
    :param peers: who may use a unix socket.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        *,
        tls: SSLContext | None = None,
        deadline: float = HEAD_DEADLINE,
        writing: float = WRITE_DEADLINE,
        limit: int = MAX_WAITING,
        peers: AllowedPeers | None = None,
    ) -> None:
        self._make = make
        self._peers = peers or AllowedPeers()
        self._tls = tls
        self._deadline = deadline
        self.writing = writing
        self._limit = limit
        # In the order in which they began to wait. One that idles after a request has no timer.
        self._waiting: dict[TimedConnection, asyncio.TimerHandle | None] = {}
        self._verified: dict[TimedConnection, asyncio.TimerHandle | None] = {}
        STORES.watch("idle-connections", self, lambda connections: len(connections._waiting), limit)
        STORES.watch("idle-verified-connections", self, lambda connections: len(connections._verified), limit)

    def __call__(self) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection."""
        connection = TimedConnection(self._make(), self)
        if self._tls is None:
            return connection
        return TlsConnection(
            connection,
            self._tls,
            deadline=self._deadline,
            accepted=connection.begin_handshake,
            ended=connection.end_handshake,
        )

    def admit(self, transport: asyncio.BaseTransport) -> bool:
        """Return whether a new connection may be served."""
        return self._peers.admit(transport)

    def wait(self, connection: "TimedConnection") -> None:
        """Give a connection time for the head of a request, unless it has some."""
        waiting = self._waiting_with(connection)
        if waiting.get(connection) is None:
            self.idle(connection)
            waiting[connection] = asyncio.get_running_loop().call_later(self._deadline, connection.abort)

    def idle(self, connection: "TimedConnection") -> None:
        """Let a connection wait for a request without sending any of it."""
        self.end_wait(connection)
        waiting = self._waiting_with(connection)
        if len(waiting) >= self._limit:
            next(iter(waiting)).abort()
        waiting[connection] = None

    def end_wait(self, connection: "TimedConnection") -> None:
        """Stop to wait: the head has arrived, or the connection has ended."""
        # A connection becomes verified while it waits.
        for waiting in (self._waiting, self._verified):
            timer = waiting.pop(connection, None)
            if timer is not None:
                timer.cancel()

    def _waiting_with(self, connection: "TimedConnection") -> "dict[TimedConnection, asyncio.TimerHandle | None]":
        return self._verified if connection.verified else self._waiting


class TimedConnection(asyncio.Protocol):
    """The protocol of one connection: HTTP, within the limits of its :class:`Connections`.

    :ivar verified: whether the client has presented a certificate in the handshake, which the server has verified.
    """

    def __init__(self, http: asyncio.Protocol, connections: Connections) -> None:
        self._http = http
        self._connections = connections
        self.verified = False
        # TCP's transport, until the handshake of TLS has made that of HTTP.
        self._tcp: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        self._requests = 0
        self._is_malformed = False
        self._unread: asyncio.TimerHandle | None = None

    def begin_handshake(self, tcp: asyncio.Transport) -> None:
        """Begin to wait before TLS does, which has a deadline of its own."""
        self._tcp = tcp
        self._connections.idle(self)

    def end_handshake(self) -> None:
        """Forget a connection that has ended, perhaps within the handshake."""
        self._tcp = None
        self._connections.end_wait(self)

    def begin_request(self) -> None:
        """Record that a request is being handled, however long that takes."""
        self._requests += 1
        self._connections.end_wait(self)

    @contextmanager
    def reading_body(self) -> Iterator[None]:
        """Count the connection among those that wait while the body of its request arrives."""
        self._connections.idle(self)
        try:
            yield
        finally:
            self._connections.end_wait(self)

    def end_request(self) -> None:
        """Record that the request is handled."""
        self._requests -= 1
        if not self._requests and self._transport is not None:
            self._connections.idle(self)

    def abort(self) -> None:
        """End the connection at once."""
        self._connections.end_wait(self)
        transport = self._transport or self._tcp
        if transport is not None:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head, or end the connection of a user that is not admitted."""
        assert isinstance(transport, asyncio.Transport)
        if not self._connections.admit(transport):
            transport.abort()
            return
        self._transport = transport
        self.verified = has_verified_certificate(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._connections.wait(self)
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._transport is None:
            # It was not admitted, and HTTP does not know it.
            return
        self._transport = None
        self._connections.end_wait(self)
        self._end_unread()
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on data; outside of a request it is the beginning of a head. Nothing follows a malformed one."""
        view = memoryview(data)
        while view and self._transport is not None and not self._is_malformed:
            if not self._requests:
                self._connections.wait(self)
            self._http.data_received(bytes(view[:PIECE]))
            view = view[PIECE:]
            self._is_malformed = _shorten_error(self._http)

    def eof_received(self) -> bool | None:
        """Pass on the end of the client's data."""
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly, and give it time to read; its next requests wait unread."""
        self._end_unread()
        if self._transport is not None:
            self._transport.pause_reading()
        self._unread = asyncio.get_running_loop().call_later(self._connections.writing, self.abort)
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._end_unread()
        if self._transport is not None:
            self._transport.resume_reading()
        self._http.resume_writing()

    def _end_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def _shorten_error(http: asyncio.Protocol) -> bool:
    """Return whether a malformed head ends a connection of aiohttp (3.14), and keep no more of its error than is used.

    The error has all that was parsed with it, and its traceback keeps the connection from being freed.
    """
    messages = getattr(http, "_messages", None)
    if not messages or not isinstance(messages[-1][0], _ErrInfo):
        return False
    found, payload = messages[-1]
    text = printable(found.message, MAX_QUOTED)
    messages[-1] = (_ErrInfo(found.status, BadHttpMessage(text), text), payload)
    return True


def connection_of(request: web.Request) -> TimedConnection | None:
    """Return the connection of a request; ``None`` if it is gone, or of a server without limits."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, TimedConnection) else None
