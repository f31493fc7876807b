"""Access to one network namespace: a cached rtnetlink connection, and functions run inside by a short-lived thread.

The connection opens on first use and closes when idle, because an open socket keeps a namespace alive after its pod is
gone. Next: :mod:`services.common.netlink.netns`, the operations that use it.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.common.netlink import netns_thread
from services.common.netlink.errors import NetlinkFailure, NetnsGone, classify_errno, classify_path_error
from services.common.netlink.rtnetlink.connection import ConnectionClosed, NetlinkConnection

T = TypeVar("T")


class NetnsAccess:
    """The means to reach one network namespace.

    :param path: path of the namespace on the node.
    :param real: the same path as this process sees it.
    :param identity: device and inode. A namespace created again at the same path has another identity.
    :param timeout: seconds for one operation.
    :param idle: seconds without an operation after which the connection closes and ``on_idle`` is called.
    """

    def __init__(
        self,
        path: str,
        real: Path,
        identity: tuple[int, int],
        *,
        timeout: float,
        idle: float,
        on_idle: Callable[[], None],
    ) -> None:
        self.path = path
        self.identity = identity
        self._real = real
        self._timeout = timeout
        self._idle = idle
        self._on_idle = on_idle
        self._connection: NetlinkConnection | None = None
        self._opening = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def request(
        self, message: object, type_: int, flags: int, action: str, read: Callable[[bytes], T] | None = None
    ) -> list[T]:
        """Send one rtnetlink request.

        See :meth:`services.common.netlink.rtnetlink.connection.NetlinkConnection.request`.
        """
        while True:
            connection = await self.connect()
            try:
                return await connection.request(message, type_, flags, f"{action} in {self.path}", read)
            except ConnectionClosed:
                # Nothing was sent: another request had broken this connection while this one waited for it.
                continue
            finally:
                if connection.broken and self._connection is connection:
                    self.close()

    async def connect(self) -> NetlinkConnection:
        """Return the connection, opened if there is none.

        :raises NetnsGone: the namespace does not exist any more.
        """
        async with self._opening:
            if self._connection is None:
                sock = await self.run_in_netns(netns_thread.open_route_socket, "open a netlink socket")
                self._connection = NetlinkConnection(sock, timeout=self._timeout)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle, self._close_idle)
        return self._connection

    async def run_in_netns(self, work: Callable[[], T], action: str) -> T:
        """Run a blocking function in a thread inside the namespace.

        :param action: what the function does as a verb phrase, for error messages.
        :raises NetnsGone: the namespace does not exist any more.
        :raises NetlinkFailure: the function raised an :class:`OSError` or took too long.
        """
        action = f"{action} in {self.path}"
        try:
            fd = os.open(self._real, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise classify_path_error(exc, f"cannot {action}: the network namespace cannot be opened") from exc
        try:
            # Checked on the open descriptor: the path may lead to another namespace in the next moment.
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self.identity:
                raise NetnsGone(errno.ESTALE, f"cannot {action}: the path is another network namespace now")
            return await netns_thread.run_in_netns(fd, work, timeout=self._timeout)
        except TimeoutError as exc:
            raise NetlinkFailure(errno.ETIMEDOUT, f"cannot {action}: not done within {self._timeout} s") from exc
        except OSError as exc:
            raise classify_errno(exc.errno or errno.EIO, action) from exc
        except OverflowError as exc:
            raise NetlinkFailure(errno.ERANGE, f"cannot {action}: a value cannot be encoded: {exc}") from exc
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the connection. The next operation opens a new one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _close_idle(self) -> None:
        self.close()
        self._on_idle()
