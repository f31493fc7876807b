"""Listening sockets for ``host:port``, ``unix:/path`` or ``fd:N``.

Next: :mod:`services.common.http.server`, which serves on them.
"""

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from services.common.node.files import move_aside

BACKLOG = 1024
"""Connections that wait to be accepted. A connect to a unix socket with a full queue does not wait but fails, and
asyncio then reports an established connection. After a reboot, all pods of a node connect at once."""
ACCEPTED_AT_ONCE = 16
"""Connections that are accepted before those that are open are read again. A burst of as many as may wait for a request
(:data:`services.common.http.deadlines.MAX_WAITING`) would end all the others at once, also one whose request is there.
"""
_MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path (``sun_path`` of Linux, less its final NUL)."""
_SUFFIX: Final = ".sock"
"""Of the sockets of all roles. A path without it may be a wrong setting, such as ``/etc``, and nothing is renamed."""


class Listener(NamedTuple):
    """A listening socket.

    :ivar address: bound address in the form of the setting, with the real port.
    :ivar path: file of a unix socket.
    :ivar inode: inode of that file, so that :meth:`unlink` does not remove a successor's file.
    """

    socket: socket.socket
    address: str
    path: Path | None = None
    inode: int = 0

    def unlink(self) -> None:
        """Remove the file of a unix socket, unless another process has replaced it."""
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self.inode:
                    self.path.unlink()


def bind(listen: str) -> Listener:
    """Listen on an address.

    :param listen: ``host:port``, ``unix:/path`` or ``fd:N`` for an inherited socket.
    :raises ValueError: the address is malformed.
    :raises OSError: the address cannot be bound.
    """
    if listen.startswith("unix:"):
        return _bind_unix(Path(listen.removeprefix("unix:")))
    if listen.startswith("fd:"):
        return Listener(_start_listening(socket.socket(fileno=int(listen.removeprefix("fd:")))), listen)
    return _bind_tcp(listen)


def _bind_tcp(listen: str) -> Listener:
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit():
        raise ValueError(f"cannot listen on {listen!r}: use host:port, unix:/path or fd:N")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # A restarted process can bind while old connections are in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        _start_listening(sock)
    except BaseException:
        sock.close()
        raise
    bound = sock.getsockname()
    return Listener(sock, f"[{bound[0]}]:{bound[1]}" if family == socket.AF_INET6 else f"{bound[0]}:{bound[1]}")


def _bind_unix(path: Path) -> Listener:
    """Bind a unix socket beside the path and rename it over the path.

    During a restart there is always a socket at the path, and never one with a wider mode than 0600.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            _make_room(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The directory has mode 0700, so no other user can connect before the socket has its own mode.
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            temporary = Path(private) / "s"
            for candidate in (path, temporary):
                if len(os.fsencode(candidate)) > _MAX_UNIX_PATH:
                    raise OSError(f"cannot listen on {candidate}: the path is longer than {_MAX_UNIX_PATH} bytes")
            sock.bind(str(temporary))
            temporary.chmod(0o600)
            _start_listening(sock)
            inode = temporary.stat().st_ino
            temporary.rename(path)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, f"unix:{path}", path, inode)


async def accept(listener: Listener, make: Callable[[], asyncio.BaseProtocol]) -> asyncio.Server:
    """Accept the connections of a listening socket, a few at a time.

    :param make: returns the protocol of a new connection.
    """
    # asyncio's backlog is two things: the length of the kernel's queue, and how many it accepts at once.
    server = await asyncio.get_running_loop().create_server(make, sock=listener.socket, backlog=ACCEPTED_AT_ONCE)
    listener.socket.listen(BACKLOG)
    return server


def _make_room(path: Path) -> None:
    """Move aside what is no socket at a socket's path. A CNI plugin makes directories at paths that a network names.

    :raises FileExistsError: the path is none of a role's socket, or other users may write to its directory.
    """
    folder = path.parent.stat()
    own = folder.st_uid in (0, os.geteuid()) and not folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if path.suffix != _SUFFIX or not own:
        raise FileExistsError(f"cannot listen on {path}: the file exists and is no socket; remove it")
    move_aside(path)


def _start_listening(sock: socket.socket) -> socket.socket:
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
