"""Functions that run in another network namespace, in a thread of their own.

Only what needs to be inside runs this way: opening sockets, creating taps, sysctls. The process' other threads stay in
their namespace, and the thread ends afterwards, so no thread pool holds a thread in the wrong namespace.
Next: :mod:`services.common.netlink.netns`, which uses these functions.
"""

import asyncio
import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.common.netlink.errors import NetnsGone

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
"""linux/sched.h. With it, setns(2) refuses a descriptor of any other kind of namespace."""
_libc = ctypes.CDLL(None, use_errno=True)

# linux/netlink.h
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_BUFFER = 1 << 20


async def run_in_netns(fd: int, work: Callable[[], T], *, timeout: float) -> T:
    """Run a blocking function in the network namespace behind ``fd`` and return its result.

    A socket that nobody waits for any more is closed.

    :param timeout: seconds to wait. The thread cannot be stopped and ends on its own.
    :raises TimeoutError: ``work`` took longer.
    :raises NetnsGone: ``fd`` is no network namespace.
    :raises OSError: this process may not enter it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    # The thread needs a descriptor of its own: a cancelled caller closes ``fd`` before the thread enters the namespace,
    # and the number may then belong to another namespace.
    own = os.dup(fd)

    def finish(set_outcome: Callable[[], None], result: object = None) -> None:
        def finish_in_loop() -> None:
            if not done.done():
                set_outcome()
            else:  # the caller was cancelled
                _discard(result)

        try:
            loop.call_soon_threadsafe(finish_in_loop)
        except RuntimeError:  # the loop was closed while the thread ran
            _discard(result)

    def run() -> None:
        try:
            try:
                if _libc.setns(own, CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    # Refused (EPERM) is not gone: what belongs to a namespace that is gone is deleted.
                    if code != errno.EINVAL:
                        raise OSError(code, os.strerror(code))
                    raise NetnsGone(code, f"cannot enter a network namespace: {os.strerror(code)}")
            finally:
                os.close(own)
            result = work()
        except Exception as exc:
            error = exc
            finish(lambda: done.set_exception(error))
        else:
            finish(lambda: done.set_result(result), result)

    # A daemon: a function that hangs in the kernel must not delay the end of the process.
    threading.Thread(target=run, name="in-netns", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            return await done
    except BaseException:
        # The result had arrived, and the cancellation came before this coroutine resumed.
        if done.done() and not done.cancelled() and done.exception() is None:
            _discard(done.result())
        raise


def _discard(result: object) -> None:
    if isinstance(result, socket.socket):
        result.close()


def open_route_socket() -> socket.socket:
    """Open a non-blocking rtnetlink socket in the calling thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    sock.setblocking(False)
    return sock


def read_sysctl(path: Path) -> str:
    """Return a sysctl of the calling thread's network namespace, which any mounted procfs shows.

    :param path: below the ``sys`` of a procfs.
    :raises OSError: there is no such sysctl.
    """
    return path.read_text().strip()


def write_sysctl(path: Path, value: str) -> None:
    """Set a sysctl of the calling thread's network namespace.

    :param path: below the ``sys`` of a procfs.
    :raises OSError: there is no such sysctl, the value is refused, or the procfs is read-only.
    """
    path.write_text(value)
