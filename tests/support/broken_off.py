"""A network namespace whose user dies after any netlink call: that has had its effect, and nothing follows."""

from collections.abc import Callable
from typing import Any, TypeVar

from services.common.netlink.access import NetnsAccess
from services.common.netlink.netns import Netns, NodeNetns
from services.common.netlink.pool import NetnsPool

T = TypeVar("T")


class BrokenOffError(Exception):
    """The process ended here."""


class _Mortal:
    """NetnsAccess to a namespace that ends after so many calls that change something.

    :ivar left: calls until then; ``None`` for ever. :ivar done: calls made.
    """

    def __init__(self, access: NetnsAccess) -> None:
        self._access = access
        self.left: int | None = None
        self.done = 0

    @property
    def path(self) -> str:
        return self._access.path

    async def ask(self, message: Any, type_: int, flags: int, doing: str, read: Any = None) -> Any:
        answer = await self._access.ask(message, type_, flags, doing, read)
        # What only looks has a reader for what it gets.
        self._count(read is None)
        return answer

    async def inside(self, work: Callable[[], T], doing: str) -> T:
        result = await self._access.inside(work, doing)
        self._count(not doing.startswith("reading"))
        return result

    def _count(self, changed: bool) -> None:
        if not changed:
            return
        self.done += 1
        if self.left is not None and self.done >= self.left:
            raise BrokenOffError


class MortalNetns(Netns):
    """A namespace that can be told when to end."""

    def __init__(self, access: NetnsAccess, node: NodeNetns) -> None:
        self.mortal = _Mortal(access)
        super().__init__(self.mortal, node)  # type: ignore[arg-type]

    def die_after(self, calls: int | None) -> None:
        """End after that many calls that change something, counted from now; ``None``: never."""
        self.mortal.left, self.mortal.done = calls, 0


async def mortal(pool: NetnsPool, path: str) -> MortalNetns:
    """The namespace at a path, mortal."""
    opened = await pool.open(path)
    return MortalNetns(opened._access, opened._node)
