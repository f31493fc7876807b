"""Time limits of an HTTP connection: for the head of a request, and for the number of those that send none.

aiohttp itself limits only how long a connection may idle between two requests. A client that sends half a head would
keep its connection, and its file descriptor, for an hour.
Connections of users that a unix socket does not admit are ended before anything of them is read.
Next: :mod:`services.common.http.server`, which also limits the time for a body.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from services.common.http.peers import AllowedPeers
from services.common.telemetry.stores import STORES

HEAD_DEADLINE = 10.0
"""Seconds for the head of a request, from the connection or from its first byte on."""
MAX_WAITING = 256
"""Connections without a request. One more ends the one that has waited longest."""


class Connections:
    """Makes the protocols of a server's connections, and ends those that wait too long for a head.

    :param make: returns the HTTP protocol of a new connection.
    :param peers: who may use a unix socket.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        *,
        deadline: float = HEAD_DEADLINE,
        limit: int = MAX_WAITING,
        peers: AllowedPeers | None = None,
    ) -> None:
        self._make = make
        self._peers = peers or AllowedPeers()
        self._deadline = deadline
        self._limit = limit
        # In the order in which they began to wait. One that idles after a request has no timer.
        self._waiting: dict[TimedConnection, asyncio.TimerHandle | None] = {}
        STORES.watch("idle-connections", self, lambda connections: len(connections._waiting), limit)

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return TimedConnection(self._make(), self)

    def admit(self, transport: asyncio.BaseTransport) -> bool:
        """Return whether a new connection may be served."""
        return self._peers.admit(transport)

    def wait(self, connection: "TimedConnection") -> None:
        """Give a connection time for the head of a request, unless it has some."""
        if self._waiting.get(connection) is None:
            self.idle(connection)
            self._waiting[connection] = asyncio.get_running_loop().call_later(self._deadline, connection.abort)

    def idle(self, connection: "TimedConnection") -> None:
        """Let a connection wait for a request without sending any of it."""
        self._waiting.pop(connection, None)
        if len(self._waiting) >= self._limit:
            next(iter(self._waiting)).abort()
        self._waiting[connection] = None

    def end_wait(self, connection: "TimedConnection") -> None:
        """Stop to wait: the head has arrived, or the connection has ended."""
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()


class TimedConnection(asyncio.Protocol):
    """The protocol of one connection: HTTP, within the limits of its :class:`Connections`."""

    def __init__(self, http: asyncio.Protocol, connections: Connections) -> None:
        self._http = http
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._requests = 0

    def begin_request(self) -> None:
        """Record that a request is being handled, however long that takes."""
        self._requests += 1
        self._connections.end_wait(self)

    def end_request(self) -> None:
        """Record that the request is handled."""
        self._requests -= 1
        if not self._requests and self._transport is not None:
            self._connections.idle(self)

    def abort(self) -> None:
        """End the connection at once."""
        self._connections.end_wait(self)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head, or end the connection of a user that is not admitted."""
        assert isinstance(transport, asyncio.Transport)
        if not self._connections.admit(transport):
            transport.abort()
            return
        self._transport = transport
        self._connections.wait(self)
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._transport is None:
            # It was not admitted, and HTTP does not know it.
            return
        self._transport = None
        self._connections.end_wait(self)
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on data; outside of a request it is the beginning of a head."""
        if self._transport is None:
            return
        if not self._requests:
            self._connections.wait(self)
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on the end of the client's data."""
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        self._http.resume_writing()


def connection_of(request: web.Request) -> TimedConnection | None:
    """Return the connection of a request; ``None`` if it is gone, or of a server without limits."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, TimedConnection) else None
