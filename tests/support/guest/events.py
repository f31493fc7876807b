"""A guest that sends only the events that the test puts into a queue, and refuses every other call.

Tests derive what else their guest does. Next: :mod:`tests.support.guest.monitor`.
"""

import asyncio
from collections.abc import AsyncIterator

from services.common.guest.port import GuestEvent, GuestNotReachable, GuestView, NetDeviceSpec


class ScriptedGuest:
    """A guest whose events the test puts into a queue; ``None`` ends the connection."""

    def __init__(self) -> None:
        self.event_queue: asyncio.Queue[GuestEvent | None] = asyncio.Queue()

    async def events(self) -> AsyncIterator[GuestEvent]:
        while (event := await self.event_queue.get()) is not None:
            yield event

    async def list(self) -> GuestView:
        raise GuestNotReachable("not in this test")

    async def attach(self, device: NetDeviceSpec, slot: str) -> None:
        raise GuestNotReachable("not in this test")

    async def request_unplug(self, interface: str) -> None:
        raise GuestNotReachable("not in this test")

    async def remove_backend(self, interface: str) -> None:
        raise GuestNotReachable("not in this test")

    async def set_link(self, interface: str, up: bool) -> None:
        raise GuestNotReachable("not in this test")

    async def close(self) -> None:
        self.event_queue.put_nowait(None)
