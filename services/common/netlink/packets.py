"""Packet sockets on one link: whole frames in and out, most of them kept away by a filter in the kernel.

What is listened to is a link of a pod, seen from the pod's side: :meth:`services.common.netlink.netns.Netns.packets`.
The filters are the classic BPF of linux/filter.h, as plain values.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Sequence

import msgspec

_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_BUFFER = 64 * 1024


class Instruction(msgspec.Struct, frozen=True):
    """One instruction of a filter: a jump goes on ``yes`` or ``no`` instructions further down."""

    code: int
    value: int
    yes: int = 0
    no: int = 0


def packet_socket(link: str, program: Sequence[Instruction]) -> socket.socket:
    """A non-blocking packet socket on a link of the calling thread's network namespace.

    On a bridge's port, too, it hears every frame that comes in, before the bridge has it.

    :raises OSError: there is no such link; or the filter is none.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(i.code, i.yes, i.no, i.value) for i in program))
        # Without a protocol nothing is heard yet, so nothing gets past the filter.
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), ctypes.addressof(code)))
        with contextlib.suppress(OSError):  # Linux 4.20; spares copies of frames that the filter would drop
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setblocking(False)
        sock.bind((link, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock
