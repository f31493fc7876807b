"""Doing one thing inside another network namespace: a thread of its own enters it, does it and ends.

A process' other threads stay where they are, and no pool keeps a thread that stands in the wrong namespace.
What only works from inside is done this way: opening sockets, making taps, sysctls.
Next: :mod:`services.common.netlink.netns`, which uses it.
"""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.common.netlink.errors import NetnsGone

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_BUFFER = 1 << 20


async def inside(fd: int, work: Callable[[], T], *, timeout: float) -> T:
    """Run ``work`` in the network namespace behind ``fd``.

    :param timeout: seconds; the thread itself cannot be stopped and ends on its own.
    :raises TimeoutError: it took longer. :raises NetnsGone: ``fd`` is no network namespace.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    # The thread's own: the caller may give up and close his before it is entered, and the number would be another's.
    own = os.dup(fd)

    def tell(setter: Callable[[], None], made: object = None) -> None:
        def once() -> None:
            if not done.done():
                setter()
            else:  # nobody waits for it any more
                _discard(made)

        try:
            loop.call_soon_threadsafe(once)
        except RuntimeError:  # the loop was closed while the thread worked
            _discard(made)

    def run() -> None:
        try:
            try:
                if _libc.setns(own, CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise NetnsGone(code, f"entering a network namespace: {os.strerror(code)}")
            finally:
                os.close(own)
            result = work()
        except Exception as exc:
            error = exc
            tell(lambda: done.set_exception(error))
        else:
            tell(lambda: done.set_result(result), result)

    threading.Thread(target=run, name="in-netns", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            return await done
    except BaseException:
        # Given up when the answer was there and on its way.
        if done.done() and not done.cancelled() and done.exception() is None:
            _discard(done.result())
        raise


def _discard(made: object) -> None:
    if isinstance(made, socket.socket):
        made.close()


def route_socket() -> socket.socket:
    """A non-blocking rtnetlink socket of the calling thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    sock.setblocking(False)
    return sock


def read_sysctl(key: str) -> str:
    """A per-namespace ``net.`` sysctl; the key as a path, ``net/ipv4/conf/all/arp_ignore``.

    :raises OSError: there is no such key.
    """
    return (Path("/proc/sys") / key).read_text().strip()


def write_sysctl(key: str, value: str) -> None:
    """Set a per-namespace ``net.`` sysctl.

    :raises OSError: there is no such key, or the value is refused.
    """
    (Path("/proc/sys") / key).write_text(value)
