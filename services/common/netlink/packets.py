"""Packet sockets on one link: whole frames, filtered in the kernel by a classic BPF program.

The program is given as plain values (linux/filter.h).
Next: :meth:`services.common.netlink.netns.Netns.open_packet_socket`, which opens such a socket in a pod.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Sequence

import msgspec

_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
# asm-generic/socket.h, linux/socket.h, linux/if_packet.h, linux/if_ether.h
_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
_BUFFER = 64 * 1024
"""Bytes of the receive buffer. The kernel drops what a guest sends beyond it."""


class Instruction(msgspec.Struct, frozen=True):
    """One instruction of a BPF program (``struct sock_filter``).

    :ivar code: opcode.
    :ivar value: the operand ``k``.
    :ivar yes: instructions that a jump skips if its condition is true (``jt``).
    :ivar no: instructions that a jump skips if it is false (``jf``).
    """

    code: int
    value: int
    yes: int = 0
    no: int = 0


def packet_socket(link: str, program: Sequence[Instruction]) -> socket.socket:
    """Open a non-blocking packet socket on a link of the calling thread's network namespace.

    On a bridge port it receives every incoming frame before the bridge does.

    :param program: the filter that a frame has to pass.
    :raises OSError: there is no such link, or the kernel refuses the filter.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(i.code, i.yes, i.no, i.value) for i in program))
        # A socket without a protocol receives nothing, so no frame arrives before the filter is attached.
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), ctypes.addressof(code)))
        # Since Linux 4.20. It saves copies of outgoing frames, which the filter would drop.
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setblocking(False)
        sock.bind((link, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock
