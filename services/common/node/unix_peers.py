"""The other end of a connected unix socket, as the kernel knows it (``SO_PEERCRED``, unix(7)).

It is the process that connected, or that listens, whoever uses the connection later.
:mod:`services.common.http.peers` decides by it who may use a server, :mod:`services.common.guest.sockets` which server.
"""

import socket
import struct
from typing import Any, NamedTuple

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: process, user and group."""


class UnixPeer(NamedTuple):
    """The process at the other end, and its user id."""

    process: int
    user: int


def peer_of(connection: Any) -> UnixPeer:
    """Return the other end of a connected unix socket, also of one that asyncio's transport lends."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _group = _CREDENTIALS.unpack(found)
    return UnixPeer(process, user)
