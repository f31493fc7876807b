"""An rtnetlink connection to one network namespace: requests with deadlines and classified errors, over pyroute2.

pyroute2 gets a socket that was opened inside the namespace, because its own ``netns=`` forks a process.
Next: :mod:`services.common.netlink.rtnetlink.requests`, the messages; :mod:`services.common.netlink.netns`, the
operations.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.nlsocket import NetlinkRequest

from services.common.netlink.errors import NetlinkFailure, classify_errno

T = TypeVar("T")

Attributes = list[tuple[str, Any]]
_HEADER = struct.Struct("=IHHI")
MAX_DUMP_ATTEMPTS = 8
"""Attempts at a dump that concurrent changes interrupt, such as several interfaces of a pod being set up at once."""

_NLMSG_MIN_TYPE = 16  # types below are errors, acknowledgements and ends of dumps


class ConnectionClosed(Exception):
    """The connection was closed before the request was sent. The caller may send it on a new connection."""


class NetlinkConnection:
    """An open rtnetlink connection that serves one request at a time.

    :ivar broken: whether the connection must be replaced.
    """

    def __init__(self, sock: socket.socket, *, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._netlink = AsyncIPRoute(use_socket=sock)
        self._lock = asyncio.Lock()
        self.broken = False

    async def request(
        self, message: Any, type_: int, flags: int, action: str, read: Callable[[bytes], T] | None = None
    ) -> list[T]:
        """Send one request and return its parsed replies.

        :param action: the operation as a verb phrase, for error messages.
        :param read: parses one reply; ``None`` if only success matters.
        :raises NetlinkFailure: the kernel refused the request, or did not reply in time (``ETIMEDOUT``: the outcome is
            unknown).
        :raises ConnectionClosed: nothing was sent.
        """
        async with self._lock:
            if self.broken:
                raise ConnectionClosed
            for attempts_left in range(MAX_DUMP_ATTEMPTS - 1, -1, -1):
                try:
                    return await self._send(message, type_, flags, read)
                except asyncio.CancelledError:
                    # The cancellation may hit pyroute2 while it sets up its transport, which then closes the socket.
                    self.broken = True
                    raise
                except NetlinkDumpInterrupted:
                    if not attempts_left:
                        text = f"cannot {action}: the kernel's tables changed during each of {MAX_DUMP_ATTEMPTS} dumps"
                        raise NetlinkFailure(errno.EINTR, text) from None
                except NetlinkError as exc:
                    raise classify_errno(exc.code, action) from exc
                except (struct.error, OverflowError) as exc:
                    raise NetlinkFailure(errno.ERANGE, f"cannot {action}: a value cannot be encoded: {exc}") from exc
                except ValueError as exc:
                    raise NetlinkFailure(errno.EBADMSG, f"cannot {action}: malformed reply: {exc}") from exc
                except TimeoutError as exc:
                    self.broken = True
                    raise NetlinkFailure(
                        errno.ETIMEDOUT, f"cannot {action}: no reply within {self._timeout} s"
                    ) from exc
                except OSError as exc:
                    self.broken = True
                    raise classify_errno(exc.errno or errno.EIO, action) from exc
        raise AssertionError("unreachable")

    async def _send(self, message: Any, type_: int, flags: int, read: Callable[[bytes], T] | None) -> list[T]:
        replies: list[T] = []

        def parse(data: bytes, offset: int, length: int) -> Any:
            # Called by pyroute2 for each message. Errors and ends of dumps are left to its own parser.
            _, kind, reply_flags, sequence = _HEADER.unpack_from(data, offset)
            if kind < _NLMSG_MIN_TYPE:
                marshal = self._netlink.marshal
                return marshal.parse_one_message(kind, reply_flags, sequence, data, offset, length)
            if reply_flags & NLM_F_DUMP_INTR:
                raise NetlinkDumpInterrupted()
            if read is not None:
                replies.append(read(bytes(data[offset : offset + length])))
            return {"header": {"type": kind, "flags": reply_flags, "sequence_number": sequence, "error": None}}

        async with asyncio.timeout(self._timeout):
            request = NetlinkRequest(self._netlink, message, msg_type=type_, msg_flags=flags, parser=parse)
            await request.send()
            async for _ in request.response():
                continue
        return replies

    def close(self) -> None:
        """Close the connection. May be called repeatedly."""
        self.broken = True
        self._netlink.close()
        self._sock.close()
