"""A libvirtd that sends more than any domain has is left alone for a while, and one that fails is no agent."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.guest.agent import AgentUnavailable
from services.common.guest.domain_xml import MAX_DESCRIPTION
from services.common.guest.libvirt import LibvirtAgent, LibvirtGuest
from services.common.guest.port import GuestFloods
from tests.support.guest.libvirtd import NAME, Libvirtd, domain_xml, running_libvirtd
from tests.support.node import netns as testbed
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture
def daemon() -> Iterator[Libvirtd]:
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        folder = Path(path)
        with testbed.namespace(folder, "pod"), running_libvirtd(folder, folder / "pod") as found:
            yield found


async def test_a_libvirtd_with_a_large_description_is_left_alone(daemon: Libvirtd) -> None:
    text = f"<description>{'x' * MAX_DESCRIPTION}</description><devices>"
    daemon.define(domain_xml(ports=2).replace("<devices>", text))
    guest = LibvirtGuest(NAME, daemon.socket, recording_telemetry()[0].tracer)
    with pytest.raises(GuestFloods, match="characters"):
        await guest.list()
    for _ in range(2):
        with pytest.raises(GuestFloods, match="not called for 30 s"):
            await guest.list()
    daemon.remove()
    daemon.define(domain_xml(ports=2))
    # The pause is over.
    guest.domain._flooded_until = 0.0
    assert len((await guest.list()).free_slots) == 1
    await guest.close()


async def test_a_libvirtd_that_sends_events_without_end_is_left_alone(daemon: Libvirtd) -> None:
    daemon.define(domain_xml(ports=2))
    guest = LibvirtGuest(NAME, daemon.socket, recording_telemetry()[0].tracer)
    assert len((await guest.list()).free_slots) == 1
    watch = asyncio.ensure_future(anext(guest.events()))
    while not guest.domain._subscribers:
        await guest.list()
    # What the gate of the connection calls. No real libvirtd sends so many.
    guest.domain._on_flood()
    with pytest.raises(StopAsyncIteration):
        await watch
    with pytest.raises(GuestFloods, match="not called for 30 s"):
        await guest.list()
    guest.domain._flooded_until = 0.0
    assert len((await guest.list()).free_slots) == 1
    daemon.remove()
    await guest.close()


async def test_the_agent_of_a_domain_that_has_ended_is_not_available(daemon: Libvirtd) -> None:
    daemon.define(domain_xml(ports=2))
    guest = LibvirtGuest(NAME, daemon.socket, recording_telemetry()[0].tracer)
    await guest.list()
    daemon.remove()
    with pytest.raises(AgentUnavailable):
        await LibvirtAgent(guest).interfaces(timeout=30)
    await guest.close()
