"""Who may use a unix socket: processes of root, of this process' own user, and of users that a setting names.

The mode of a socket and of its directory is the first check. This one holds where a socket has been mounted elsewhere,
or its mode was changed. The kernel tells who connected (:mod:`services.common.node.unix_peers`).
Next: :mod:`services.common.http.deadlines`.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Iterable

from services.common.node.unix_peers import peer_of

_log = logging.getLogger("hotnic.http")


class AllowedPeers:
    """The users whose processes may use a server's unix sockets.

    :param users: user ids besides root's and this process' own.
    """

    def __init__(self, users: Iterable[int] = ()) -> None:
        self._users = frozenset({0, os.geteuid(), *users})

    def admit(self, transport: asyncio.BaseTransport) -> bool:
        """Return whether a connection may be served; one that is not on a unix socket always may."""
        connection = transport.get_extra_info("socket")
        if connection is None or connection.family != socket.AF_UNIX:
            return True
        peer = peer_of(connection)
        if peer.user in self._users:
            return True
        _log.warning("connection of another user refused: process %d of user %d", peer.process, peer.user)
        return False
