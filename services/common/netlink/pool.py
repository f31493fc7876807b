"""The pool of a node's open network namespaces, by path.

A namespace stays open as long as it is used, and is recognized by its identity: one created again at the same path is
another namespace. Next: :mod:`services.common.netlink.netns`, the operations in one.
"""

import errno
import stat
from functools import partial
from pathlib import Path

from services.common.netlink.access import NetnsAccess
from services.common.netlink.errors import NetnsGone, classify_path_error
from services.common.netlink.netns import Netns, NodeNetns
from services.common.netlink.taps import SelinuxLabels
from services.common.node.paths import resolve_under
from services.common.telemetry.stores import STORES


class NetnsPool:
    """The open network namespaces of a node.

    :param host_root: where this process sees the node's file system.
    :param timeout: seconds for one operation.
    :param idle: seconds after which an unused connection closes.
    :param labels: SELinux labels of the node's processes; by default those below ``host_root``.
    :ivar root: the same as ``host_root``.
    """

    def __init__(
        self, host_root: str = "/", *, timeout: float = 2.0, idle: float = 30.0, labels: SelinuxLabels | None = None
    ) -> None:
        self.root = Path(host_root)
        self._timeout = timeout
        self._idle = idle
        self.labels = labels or SelinuxLabels(self.root)
        self._node = NodeNetns(self.root / "proc" / "sys", self.labels)
        self._open: dict[tuple[int, int], tuple[NetnsAccess, Netns]] = {}
        STORES.watch("open-netns", self, lambda pool: len(pool._open))

    async def open(self, path: str) -> Netns:
        """Return the namespace at a path, connected.

        :raises NetnsGone: there is no network namespace at the path.
        """
        real, identity = self._find(path)
        access, netns = self._open.get(identity, (None, None))
        if access is None or netns is None or access.path != path:
            # The path may lead to another namespace by now, and the namespace may have been opened by another path.
            self.drop(path)
            self._drop(identity)
            access = NetnsAccess(
                path, real, identity, timeout=self._timeout, idle=self._idle, on_idle=partial(self._drop, identity)
            )
            netns = Netns(access, self._node)
            self._open[identity] = (access, netns)
        try:
            await access.connect()
        except NetnsGone:
            self.drop(path)
            raise
        return netns

    def identity(self, path: str) -> tuple[int, int]:
        """Return the identity (device and inode) of the namespace at a path, without opening it.

        :raises NetnsGone: there is no network namespace at the path.
        """
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[Path, tuple[int, int]]:
        try:
            real = resolve_under(self.root, path)
            found = real.stat()
        except OSError as exc:
            self.drop(path)
            raise classify_path_error(exc, f"no network namespace at {path}") from exc
        if not stat.S_ISREG(found.st_mode):
            raise NetnsGone(errno.EINVAL, f"not a network namespace: {path}")
        return real, (found.st_dev, found.st_ino)

    def drop(self, path: str) -> None:
        """Close the namespace that was opened by this path, if any."""
        for identity, (access, _) in list(self._open.items()):
            if access.path == path:
                self._drop(identity)

    def close(self) -> None:
        """Close all namespaces."""
        for identity in list(self._open):
            self._drop(identity)

    def _drop(self, identity: tuple[int, int]) -> None:
        access, _ = self._open.pop(identity, (None, None))
        if access is not None:
            access.close()
