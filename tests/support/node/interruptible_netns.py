"""A network namespace that simulates a crash after any netlink call: the call takes effect, then an error is raised."""

from collections.abc import Callable
from typing import Any, TypeVar

from services.common.netlink.access import NetnsAccess
from services.common.netlink.netns import Netns, NodeNetns
from services.common.netlink.pool import NetnsPool

T = TypeVar("T")


class NetlinkInterrupted(Exception):
    """The simulated crash."""


class _InterruptibleAccess:
    """A NetnsAccess that raises :class:`NetlinkInterrupted` after a number of changing calls.

    :ivar remaining: number of changing calls until the crash; ``None`` for no crash.
    :ivar changes: number of changing calls so far.
    """

    def __init__(self, access: NetnsAccess) -> None:
        self._access = access
        self.remaining: int | None = None
        self.changes = 0

    @property
    def path(self) -> str:
        return self._access.path

    async def request(self, message: Any, type_: int, flags: int, action: str, read: Any = None) -> Any:
        answer = await self._access.request(message, type_, flags, action, read)
        # Only calls that query the kernel have a reader for the reply.
        self._count(read is None)
        return answer

    async def run_in_netns(self, work: Callable[[], T], action: str) -> T:
        result = await self._access.run_in_netns(work, action)
        self._count(not action.startswith("read "))
        return result

    def _count(self, changed: bool) -> None:
        if not changed:
            return
        self.changes += 1
        if self.remaining is not None and self.changes >= self.remaining:
            raise NetlinkInterrupted


class InterruptibleNetns(Netns):
    """A network namespace with a simulated crash."""

    def __init__(self, access: NetnsAccess, node: NodeNetns) -> None:
        self.interruptible = _InterruptibleAccess(access)
        super().__init__(self.interruptible, node)  # type: ignore[arg-type]

    def interrupt_after(self, calls: int | None) -> None:
        """Crash after this many changing calls from now; ``None`` for never."""
        self.interruptible.remaining, self.interruptible.changes = calls, 0


async def open_interruptible(pool: NetnsPool, path: str) -> InterruptibleNetns:
    """Open the network namespace at a path."""
    opened = await pool.open(path)
    return InterruptibleNetns(opened._access, opened._node)
