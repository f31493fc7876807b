"""Find out which multus daemon serves a socket: hotnic's, another one, or none.

Synchronous and without a role's HTTP client. Next: :mod:`services.common.node.mounts`.
"""

import http.client
import socket
from enum import StrEnum
from pathlib import Path
from typing import Final

from schemas.cni import decode_error
from schemas.multus import SANDBOXES_PATH

TIMEOUT: Final = 2.0
"""Seconds for the response of a daemon."""


class DaemonKind(StrEnum):
    """Who serves a socket."""

    NONE = "none"
    HOTNIC = "hotnic"
    OTHER = "other"
    SILENT = "silent"
    """Something listens and does not answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def probe_daemon(path: Path) -> DaemonKind:
    """Return who serves the socket of a multus daemon.

    Only hotnic's daemon knows the path ``/sandboxes/<id>``. It answers with a CNI error, others with a line of text.
    """
    connection = _UnixConnection(path)
    try:
        connection.connect()
    except (BlockingIOError, TimeoutError):
        # The queue of connections is full, so there is a listener.
        connection.close()
        return DaemonKind.SILENT
    except OSError:
        connection.close()
        return DaemonKind.NONE
    try:
        connection.request("GET", f"{SANDBOXES_PATH}/none")
        response = connection.getresponse().read(65536)
        return DaemonKind.HOTNIC if decode_error(response) is not None else DaemonKind.OTHER
    except (OSError, http.client.HTTPException):
        return DaemonKind.SILENT
    finally:
        connection.close()
