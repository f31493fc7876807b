"""The TLS of one connection of a server, with little memory, and known to the limits from its first packet on.

A client without any certificate may hold a handshake open, so what that takes is what it can take from everybody.
Next: :mod:`services.common.http.deadlines`, the limits.
"""

import asyncio
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from ssl import SSLContext, SSLObject

READ_BUFFER = 16 * 1024
"""Bytes of a connection's buffer, as many as a TLS record has. asyncio's own has 256 KiB, for each connection."""


class TlsConnection(SSLProtocol):
    """The protocol between TCP and HTTP.

    :param http: the protocol above, which learns of the connection after the handshake.
    :param deadline: seconds for the handshake.
    :param accepted: is called with TCP's transport before the handshake.
    :param ended: is called when the connection has ended, whether or not there was a handshake.
    """

    # Read by asyncio; tests/unit/common_http/test_http_limits.py notices if it no longer is.
    max_size = READ_BUFFER

    def __init__(
        self,
        http: asyncio.Protocol,
        context: SSLContext,
        *,
        deadline: float,
        accepted: Callable[[asyncio.Transport], None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            http,
            context,
            None,  # type: ignore[arg-type]
            server_side=True,
            ssl_handshake_timeout=deadline,  # type: ignore[arg-type]
        )
        self._accepted = accepted
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._accepted(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Pass on the end to HTTP, if it knows the connection."""
        super().connection_lost(exc)
        self._ended()


def has_verified_certificate(transport: asyncio.BaseTransport) -> bool:
    """Return whether the handshake of a connection has verified a certificate of the client.

    One that resumes a session does not verify it again.
    """
    connection: SSLObject | None = transport.get_extra_info("ssl_object")
    return connection is not None and not connection.session_reused and bool(connection.getpeercert())
