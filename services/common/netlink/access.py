"""The way into one network namespace: an rtnetlink conversation kept for a while, and short visits by a thread.

A conversation is opened on first use and closed when idle, because an open socket keeps a namespace alive after its pod
is gone. What is said in it stands in :mod:`services.common.netlink.netns`.
"""

import asyncio
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.common.netlink import inside
from services.common.netlink.connection import ConnectionClosed, NetlinkConnection
from services.common.netlink.errors import NetlinkFailure, NetnsGone, classified

T = TypeVar("T")

_NAMESPACE_LINK = re.compile(r"\w+:\[\d+\]")
_MAX_LINKS = 40


class NetnsAccess:
    """A network namespace that can be reached.

    :param real: where its path is seen from this process. :param identity: device and inode: a namespace made anew at
        the same path has another. :param timeout: seconds for one operation.
    :param idle: seconds without one after which the conversation is closed and ``on_idle`` called.
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
        self._wire: NetlinkConnection | None = None
        self._opening = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def ask(
        self, message: object, type_: int, flags: int, doing: str, read: Callable[[bytes], T] | None = None
    ) -> list[T]:
        """One rtnetlink request (:meth:`services.common.netlink.connection.NetlinkConnection.ask`)."""
        while True:
            wire = await self.connected()
            try:
                return await wire.ask(message, type_, flags, f"{doing} in {self.path}", read)
            except ConnectionClosed:
                continue
            finally:
                if wire.broken and self._wire is wire:
                    self.close()

    async def connected(self) -> NetlinkConnection:
        """The conversation, opened if need be.

        :raises NetnsGone: the namespace is not there any more.
        """
        async with self._opening:
            if self._wire is None:
                sock = await self.inside(inside.route_socket, "opening netlink")
                self._wire = NetlinkConnection(sock, timeout=self._timeout)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle, self._rest)
        return self._wire

    async def inside(self, work: Callable[[], T], doing: str) -> T:
        """Do something inside the namespace.

        :raises NetnsGone: it is not there any more. :raises NetlinkFailure: it failed, or took too long.
        """
        doing = f"{doing} in {self.path}"
        try:
            fd = os.open(self._real, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise NetnsGone(exc.errno or errno.ENOENT, f"{doing}: the network namespace is gone") from exc
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self.identity:
                raise NetnsGone(errno.ESTALE, f"{doing}: another network namespace stands at the path")
            return await inside.inside(fd, work, timeout=self._timeout)
        except TimeoutError as exc:
            raise NetlinkFailure(errno.ETIMEDOUT, f"{doing}: not done within {self._timeout} s") from exc
        except OSError as exc:
            raise classified(exc.errno or errno.EIO, doing) from exc
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the conversation; the next operation opens a new one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _rest(self) -> None:
        self.close()
        self._on_idle()


def under(root: Path, path: str) -> Path:
    """The path as seen under another root, symbolic links resolved there (``/var/run`` is one on every node)."""
    if root == Path("/"):
        return Path(path)
    done, rest, hops = root, list(Path(path).parts[1:]), 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            done = done.parent if done != root else root
            continue
        step = done / part
        # A link of the form ``net:[4026531840]`` leads into the kernel, not to a path.
        if step.is_symlink() and not _NAMESPACE_LINK.fullmatch(target := os.readlink(step)):
            hops += 1
            if hops > _MAX_LINKS:
                raise NetnsGone(errno.ELOOP, f"too many symbolic links in {path}")
            parts = Path(target).parts
            if target.startswith("/"):
                done, parts = root, parts[1:]
            rest = [*parts, *rest]
        else:
            done = step
    return done
