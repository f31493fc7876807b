"""How one talks to a running lab: a unix socket in its directory, one JSON request and its JSON lines back.

The socket is the supervisor's (mode 0600), which serves it in `services.lab.requests`. This is the client half:
synchronous and without asyncio, because the command line has to answer at once. A long directory does not matter:
the client reaches the socket through a descriptor of its folder, so the path given to the kernel stays short.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class UnreachableError(Exception):
    """No supervisor answers in this directory."""


def connect(control_socket: Path, timeout: float) -> socket.socket:
    """Return a connection to the supervisor; raises UnreachableError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout)
    try:
        folder = os.open(control_socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{control_socket.name}")
        finally:
            os.close(folder)
    except OSError as error:
        sock.close()
        raise UnreachableError(f"{control_socket}: {error.strerror or error}") from error
    return sock


def request(control_socket: Path, message: Message, timeout: float = 10.0) -> Iterator[Message]:
    """Send `message` and yield the answers; `timeout` bounds the wait for each of them.

    Raises UnreachableError when nobody answers, also midway.
    """
    with contextlib.closing(connect(control_socket, timeout)) as sock:
        try:
            sock.sendall(json.dumps(message).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{control_socket}: {error}") from error


def peer_pid(control_socket: Path, timeout: float = 5.0) -> int:
    """Return the supervisor's process id as this process sees it; raises UnreachableError.

    The kernel translates the listener's credentials into the caller's PID namespace.
    """
    with contextlib.closing(connect(control_socket, timeout)) as sock:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid
