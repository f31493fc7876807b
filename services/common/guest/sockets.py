"""Open a unix socket below a folder that a user's pod can write, without following symbolic links.

A symbolic link could lead to a socket of a neighbour or of the node. What was opened is connected, even if its name
leads elsewhere by then. Next: :mod:`services.common.guest.launcher`, :mod:`services.common.guest.qmp_client` and
:mod:`services.common.guest.agent`, which connect to such sockets.
"""

import os
import socket
import stat
from pathlib import Path, PurePath

from services.common.node.capabilities import name_missing
from services.common.node.unix_peers import peer_of


def open_below(root: Path, path: PurePath) -> int:
    """Return a descriptor (``O_PATH``) of a socket.

    :param root: the folder from which on no symbolic link is followed.
    :raises OSError: there is no socket, or a symbolic link is in its path.
    """
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.parts:
            if part in ("/", ".."):
                raise ValueError(f"{path} leads out of {root}")
            above, at = at, os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(above)
        # O_PATH | O_NOFOLLOW opens a symbolic link itself.
        if not stat.S_ISSOCK(os.fstat(at).st_mode):
            raise FileNotFoundError(f"{path} is no socket")
    except BaseException:
        os.close(at)
        raise
    return at


def connect_below(root: Path, path: PurePath) -> socket.socket:
    """Connect to a socket as :func:`open_below` opens it.

    :raises OSError: there is no such socket, no process listens, or one of another user does.
    """
    try:
        return _connect_below(root, path)
    except PermissionError as error:
        lacking = name_missing(error.errno, "SYS_PTRACE", "DAC_OVERRIDE")
        if not lacking:
            raise
        raise PermissionError(error.errno, f"{error.strerror}{lacking}", str(root / path)) from error


def _connect_below(root: Path, path: PurePath) -> socket.socket:
    found = open_below(root, path)
    try:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            # Never in progress: a unix socket connects at once, or fails.
            connected.connect(f"/proc/self/fd/{found}")
            user = peer_of(connected).user
            if not may_listen(user, owner=os.fstat(found).st_uid):
                raise PermissionError(f"user {user} listens on {path}, a socket of another user")
        except BaseException:
            connected.close()
            raise
        return connected
    finally:
        os.close(found)


def may_listen(user: int, *, owner: int) -> bool:
    """Return whether a user may be the one that listens on a socket: its owner, or root, as libvirt does for QEMU."""
    return user in (0, owner)
