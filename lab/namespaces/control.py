"""Client of a running lab's control socket: one JSON request, answered by one or more lines of JSON.

The supervisor listens on the socket (mode 0600) and serves it with `lab.supervisor.requests`. The client is
synchronous, because the command line must start at once and asyncio is slow to import. It opens the socket's folder
and connects through the descriptor, so that the path given to the kernel stays below 108 bytes in any directory.
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
    """The supervisor does not answer on the control socket."""


def connect(control_socket: Path, timeout: float) -> socket.socket:
    """Return a connection to the unix socket at `control_socket`.

    :param timeout: seconds that each operation on the connection may take.
    :raises UnreachableError: no process accepts.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(timeout)
    try:
        # /proc/self/fd/N is a short path to the same folder, however long its own path is.
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
    """Send `message` and yield the answers.

    :param timeout: seconds to wait for each answer.
    :raises UnreachableError: the supervisor does not answer, or the connection breaks between two answers.
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
    """Return the supervisor's process id in the caller's PID namespace.

    The kernel translates the process id in SO_PEERCRED for the reader.

    :raises UnreachableError: no supervisor listens.
    """
    with contextlib.closing(connect(control_socket, timeout)) as sock:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid
