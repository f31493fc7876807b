"""A guest's double reacts like a guest: it finds a NIC, completes an unplug, and reports both on every interface.

tests/integration/handler/test_qmp_guest.py runs one suite against the double and QEMU, for the QMP commands.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.guest.console import ConsoleFollower, LinkEvent
from services.common.guest.agent import GuestNic, QemuGuestAgent
from services.common.guest.port import GuestChange, GuestEvent, NetDeviceSpec
from services.common.guest.qmp import QmpGuest
from services.common.netlink.pool import NetnsPool
from tests.support.guest.qemu import PRIMARY_MAC, double
from tests.support.node import netns as testbed
from tests.support.telemetry.spans import recording_telemetry

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


async def test_double_reports_plug_and_unplug_on_all_interfaces(folder: Path, netns: Path) -> None:
    pool = NetnsPool()
    namespace = await pool.open(str(netns))
    tap = await namespace.add_tap("tap1", owner=0)
    await namespace.set(tap.index, up=True)
    guest = QmpGuest(str(folder / "qmp.sock"), recording_telemetry()[0].tracer)
    agent = QemuGuestAgent(str(folder / "agent.sock"))
    async with double(folder / "qmp.sock", netns, release=0.05), ConsoleFollower(folder / "console.log") as console:
        await console.wait_ready(45)
        following = asyncio.create_task(_until(guest.events(), GuestEvent(GuestChange.DEVICE_DELETED, "ua-blue")))
        await guest.list()
        await guest.attach(NetDeviceSpec("blue", MAC, "tap1", 1400), "rp3")
        seen = await console.wait_for_link(MAC, 45)
        assert (seen.name, seen.mtu, seen.up, seen.carrier) == ("eth1", 1400, True, True)
        await guest.set_link("blue", up=False)
        changed = await console.wait_for_link(MAC, 45, "change")
        assert changed.carrier is False
        assert await agent.interfaces(timeout=60) == (GuestNic("eth0", PRIMARY_MAC), GuestNic("eth1", MAC))
        carrier = await namespace.link("tap1")
        assert carrier is not None
        assert carrier.up

        await guest.request_unplug("blue")
        received = await asyncio.wait_for(following, 45)
        assert GuestEvent(GuestChange.DEVICE_IN_USE, "ua-blue") in received
        assert (await guest.list()).devices.keys() == {"ua-default"}
        await console.wait_for(lambda e: isinstance(e, LinkEvent) and (e.action, e.name) == ("remove", "eth1"), 45)
        assert await agent.interfaces(timeout=60) == (GuestNic("eth0", PRIMARY_MAC),)
        await guest.remove_backend("blue")
        await agent.close()
        await guest.close()
    pool.close()


async def _until(events: AsyncIterator[GuestEvent], last: GuestEvent) -> list[GuestEvent]:
    received: list[GuestEvent] = []
    async for event in events:
        received.append(event)
        if event == last:
            break
    return received
