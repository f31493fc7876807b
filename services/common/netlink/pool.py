"""The network namespaces of a node by path, and which of them are being talked to.

Opened once for as long as they are used, found again by identity: a namespace that was made anew at the same path is
another one. Next: :mod:`services.common.netlink.netns`, what is done in one.
"""

import errno
import stat
from functools import partial
from pathlib import Path

from services.common.netlink.access import NetnsAccess, under
from services.common.netlink.errors import NetnsGone
from services.common.netlink.netns import Netns, NodeNetns
from services.common.netlink.taps import Labels


class NetnsPool:
    """The open namespaces of a node.

    :param host_root: where the node's file system is seen from here. :param timeout: seconds for one operation.
    :param idle: seconds after which an unused conversation is closed. :param labels: SELinux' of the node.
    """

    def __init__(
        self, host_root: str = "/", *, timeout: float = 2.0, idle: float = 30.0, labels: Labels | None = None
    ) -> None:
        self.root = Path(host_root)
        self._timeout = timeout
        self._idle = idle
        self.labels = labels or Labels(self.root)
        self._node = NodeNetns(self.labels)
        self._open: dict[tuple[int, int], tuple[NetnsAccess, Netns]] = {}

    async def open(self, path: str) -> Netns:
        """The namespace at a path, ready to be asked.

        :raises NetnsGone: nothing, or no network namespace, is there.
        """
        real, identity = self._find(path)
        access, netns = self._open.get(identity, (None, None))
        if access is None or netns is None or access.path != path:
            self.drop(path)
            self._forget(identity)
            access = NetnsAccess(
                path, real, identity, timeout=self._timeout, idle=self._idle, on_idle=partial(self._forget, identity)
            )
            netns = Netns(access, self._node)
            self._open[identity] = (access, netns)
        try:
            await access.connected()
        except NetnsGone:
            self.drop(path)
            raise
        return netns

    def identity(self, path: str) -> tuple[int, int]:
        """Which namespace stands at a path now; nothing is opened for that.

        :raises NetnsGone: nothing, or no network namespace, is there.
        """
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[Path, tuple[int, int]]:
        real = under(self.root, path)
        try:
            found = real.stat()
        except OSError as exc:
            self.drop(path)
            raise NetnsGone(exc.errno or errno.ENOENT, f"no network namespace at {path}: {exc.strerror}") from exc
        if not stat.S_ISREG(found.st_mode):
            raise NetnsGone(errno.EINVAL, f"{path} is no network namespace")
        return real, (found.st_dev, found.st_ino)

    def drop(self, path: str) -> None:
        """Forget the namespace that was opened by this path."""
        for identity, (access, _) in list(self._open.items()):
            if access.path == path:
                self._forget(identity)

    def close(self) -> None:
        """Forget all."""
        for identity in list(self._open):
            self._forget(identity)

    def _forget(self, identity: tuple[int, int]) -> None:
        access, _ = self._open.pop(identity, (None, None))
        if access is not None:
            access.close()
