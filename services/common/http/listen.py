"""Where a server listens: ``host:port``, ``unix:/path`` or ``fd:N``. Sockets only; what is served is not known here."""

import contextlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

BACKLOG = 128
_MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path (``sun_path`` of Linux, less its final NUL)."""


class Listener(NamedTuple):
    """A listening socket.

    :ivar address: what it is bound to, in the form it was asked for.
    :ivar inode: of a unix socket's file, so that only our own is removed.
    """

    socket: socket.socket
    address: str
    path: Path | None = None
    inode: int = 0

    def withdraw(self) -> None:
        """Remove a unix socket's file, unless a successor has put its own there."""
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self.inode:
                    self.path.unlink()


def bind(listen: str) -> Listener:
    """Listen at an address.

    :raises ValueError: not an address. :raises OSError: it cannot be bound.
    """
    if listen.startswith("unix:"):
        return _bind_unix(Path(listen.removeprefix("unix:")))
    if listen.startswith("fd:"):
        return Listener(_listening(socket.socket(fileno=int(listen.removeprefix("fd:")))), listen)
    return _bind_tcp(listen)


def _bind_tcp(listen: str) -> Listener:
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit():
        raise ValueError(f"not an address to listen on: {listen!r} (host:port, unix:/path or fd:N)")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        _listening(made)
    except BaseException:
        made.close()
        raise
    bound = made.getsockname()
    return Listener(made, f"[{bound[0]}]:{bound[1]}" if family == socket.AF_INET6 else f"{bound[0]}:{bound[1]}")


def _bind_unix(path: Path) -> Listener:
    """Bind beside the path and rename over it: no moment without a socket at a restart, none with a wider mode."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is not a socket")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The directory has mode 0700, so nobody connects before the socket's own mode is set.
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as private:
            temporary = Path(private) / "s"
            for candidate in (path, temporary):
                if len(os.fsencode(candidate)) > _MAX_UNIX_PATH:
                    raise OSError(f"path of a unix socket is longer than {_MAX_UNIX_PATH} bytes: {candidate}")
            made.bind(str(temporary))
            temporary.chmod(0o600)
            _listening(made)
            inode = temporary.stat().st_ino
            temporary.rename(path)
    except BaseException:
        made.close()
        raise
    return Listener(made, f"unix:{path}", path, inode)


def _listening(made: socket.socket) -> socket.socket:
    made.listen(BACKLOG)
    made.setblocking(False)
    return made
