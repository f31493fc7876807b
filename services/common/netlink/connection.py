"""One rtnetlink conversation with one namespace: requests, answers, deadlines and classified errors over pyroute2.

pyroute2's socket is handed one that was opened inside the namespace (its own ``netns=`` forks).
Next: :mod:`services.common.netlink.requests`, what is asked; :mod:`services.common.netlink.netns`, the operations.
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

from services.common.netlink.errors import NetlinkFailure, classified

T = TypeVar("T")

Attributes = list[tuple[str, Any]]
_HEADER = struct.Struct("=IHHI")
DUMP_TRIES = 8
"""How often a dump is begun again that changes have interrupted: others wire several NICs of a pod at once."""

_FIRST_ANSWER = 16  # NLMSG_MIN_TYPE: below are errors, acknowledgements and ends of dumps


class ConnectionClosed(Exception):
    """The conversation ended before this request was sent: it can be sent in another one."""


class NetlinkConnection:
    """An open conversation. One request at a time."""

    def __init__(self, sock: socket.socket, *, timeout: float) -> None:
        self._sock = sock
        self._timeout = timeout
        self._netlink = AsyncIPRoute(use_socket=sock)
        self._lock = asyncio.Lock()
        self.broken = False

    async def ask(
        self, message: Any, type_: int, flags: int, doing: str, read: Callable[[bytes], T] | None = None
    ) -> list[T]:
        """Send one request and collect its answers.

        :param read: reads one answer from its bytes; ``None`` where only success matters.
        :raises NetlinkFailure: the kernel refused or did not answer in time (``ETIMEDOUT``: outcome unknown).
        :raises ConnectionClosed: nothing was sent.
        """
        async with self._lock:
            if self.broken:
                raise ConnectionClosed
            for tries_left in range(DUMP_TRIES - 1, -1, -1):
                try:
                    return await self._once(message, type_, flags, read)
                except asyncio.CancelledError:
                    # In the middle of whatever, perhaps of making the transport, which then closes the socket.
                    self.broken = True
                    raise
                except NetlinkDumpInterrupted:
                    if not tries_left:
                        raise NetlinkFailure(errno.EINTR, f"{doing}: the kernel's tables kept changing") from None
                except NetlinkError as exc:
                    raise classified(exc.code, doing) from exc
                except ValueError as exc:
                    raise NetlinkFailure(errno.EBADMSG, f"{doing}: an answer that cannot be read: {exc}") from exc
                except TimeoutError as exc:
                    self.broken = True
                    raise NetlinkFailure(errno.ETIMEDOUT, f"{doing}: no answer within {self._timeout} s") from exc
                except OSError as exc:
                    self.broken = True
                    raise classified(exc.errno or errno.EIO, doing) from exc
        raise AssertionError("unreachable")

    async def _once(self, message: Any, type_: int, flags: int, read: Callable[[bytes], T] | None) -> list[T]:
        answers: list[T] = []

        def parse(data: bytes, offset: int, length: int) -> Any:
            """In place of pyroute2's own decoding, for the answers; errors and ends stay with it."""
            _, kind, answer_flags, sequence = _HEADER.unpack_from(data, offset)
            if kind < _FIRST_ANSWER:
                marshal = self._netlink.marshal
                return marshal.parse_one_message(kind, answer_flags, sequence, data, offset, length)
            if answer_flags & NLM_F_DUMP_INTR:
                raise NetlinkDumpInterrupted()
            if read is not None:
                answers.append(read(bytes(data[offset : offset + length])))
            return {"header": {"type": kind, "flags": answer_flags, "sequence_number": sequence, "error": None}}

        async with asyncio.timeout(self._timeout):
            request = NetlinkRequest(self._netlink, message, msg_type=type_, msg_flags=flags, parser=parse)
            await request.send()
            async for _ in request.response():
                continue
        return answers

    def close(self) -> None:
        """End the conversation; harmless when repeated."""
        self.broken = True
        self._netlink.close()
        self._sock.close()
