"""A guest's double does of its own what a guest does: it finds a card, lets go of it, and says so everywhere.

What it answers to the handler's commands is held to the same tests as QEMU, in
tests/integration/handler/test_qmp_guest.py.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.netlink.pool import NetnsPool
from services.handler.guest.agent import Agent, GuestNic
from services.handler.guest.port import Change, GuestEvent, NewCard
from services.handler.guest.qmp import QmpGuest
from services.lab.guest.console import ConsoleFollower, LinkEvent
from tests.support import netns as testbed
from tests.support.qemu import PRIMARY_MAC, double
from tests.support.spans import recording_telemetry

MAC = "02:00:00:00:00:09"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield Path(path)


@pytest.fixture
def netns(folder: Path) -> Iterator[Path]:
    with testbed.namespace(folder) as path:
        yield path


async def test_a_card_is_found_let_go_of_and_every_side_of_the_guest_says_so(folder: Path, netns: Path) -> None:
    pool = NetnsPool()
    namespace = await pool.open(str(netns))
    tap = await namespace.add_tap("tap1", owner=0)
    await namespace.set(tap.index, up=True)
    guest = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer)
    agent = Agent(str(folder / "agent.sock"))
    began = time.monotonic()
    async with double(folder / "qmp.sock", netns, release=0.05), ConsoleFollower(folder / "console.log") as console:
        await console.wait_ready(5)
        assert time.monotonic() - began < 5
        following = asyncio.create_task(_until(guest.events(), GuestEvent(Change.CARD_GONE, "ua-blue")))
        await guest.list()
        await guest.attach(NewCard("blue", MAC, "tap1", 1400), "rp3")
        seen = await console.wait_for_link(MAC, 5)
        assert (seen.name, seen.mtu, seen.up, seen.carrier) == ("eth1", 1400, True, True)
        await guest.set_link("blue", up=False)
        pulled = await console.wait_for_link(MAC, 5, "change")
        assert pulled.carrier is False
        assert await agent.interfaces(timeout=5) == (GuestNic("eth0", PRIMARY_MAC), GuestNic("eth1", MAC))
        carrier = await namespace.link("tap1")
        assert carrier is not None
        assert carrier.up

        await guest.detach("blue")
        heard = await asyncio.wait_for(following, 5)
        assert GuestEvent(Change.CARD_IN_USE, "ua-blue") in heard
        assert (await guest.list()).cards.keys() == {"ua-default"}
        await console.wait_for(lambda e: isinstance(e, LinkEvent) and (e.action, e.name) == ("remove", "eth1"), 5)
        assert await agent.interfaces(timeout=5) == (GuestNic("eth0", PRIMARY_MAC),)
        await guest.remove_backend("blue")
        await agent.close()
        await guest.close()
    pool.close()


async def _until(events: AsyncIterator[GuestEvent], last: GuestEvent) -> list[GuestEvent]:
    heard: list[GuestEvent] = []
    async for event in events:
        heard.append(event)
        if event == last:
            break
    return heard
