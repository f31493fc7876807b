"""What is left when QEMU refuses one of the commands that an attach is made of; its monitor is scripted here."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.handler.guest.port import GuestRefused, NewCard
from services.handler.guest.qmp import QmpGuest
from services.handler.link_state import SetLink, link_changes
from services.lab.guest.double import Monitors, listener, one_by_one
from services.lab.guest.double_machine import Backend, Machine, Refused
from tests.support.objects import nic, vmi
from tests.support.spans import recording_telemetry

CARD = NewCard("iface1", "02:00:00:00:00:09", "tap1", 1500, up=False)
ALIAS, BACKEND = "ua-iface1", "host-ua-iface1"


class Scripted(Machine):
    """The lab's double of a machine, without taps; it refuses what it is told to, as often as it is told to.

    :ivar refusals: by command, how many are to be refused yet.
    """

    def __init__(self, monitors: Monitors) -> None:
        super().__init__(ports=2, cpus=1, release=60, notice=60, say=monitors.say, report=lambda line: None)
        self.refusals: dict[str, int] = {}

    def netdev_add(self, backend: str, kind: str, tap: str, queues: int) -> None:
        if backend in self.backends:
            raise Refused(f"Duplicate ID '{backend}' for netdev")
        self.backends[backend] = Backend()

    def device_add(self, alias: str, driver: str, backend: str, bus: str, mac: str, mtu: int) -> None:
        self._may("device_add")
        super().device_add(alias, driver, backend, bus, mac, mtu)

    def set_link(self, name: str, up: bool) -> None:
        self._may("set_link")
        super().set_link(name, up)

    def _may(self, command: str) -> None:
        if self.refusals.get(command):
            self.refusals[command] -= 1
            raise Refused(f"{command} is out of order")


@pytest.fixture
async def machine() -> AsyncIterator[tuple[Scripted, QmpGuest]]:
    monitors = Monitors()
    scripted = monitors.machine = Scripted(monitors)
    # Short enough for a unix socket.
    with tempfile.TemporaryDirectory(prefix="hn-") as folder:
        path = str(Path(folder) / "qmp.sock")
        with listener(path) as listening:
            serving = asyncio.create_task(one_by_one(listening, monitors.talk))
            guest = QmpGuest(path, recording_telemetry()[0].tracer)
            yield scripted, guest
            await guest.close()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


async def test_a_card_whose_cable_could_not_be_pulled_keeps_its_backend(machine: tuple[Scripted, QmpGuest]) -> None:
    qemu, guest = machine
    qemu.refusals["set_link"] = 1
    with pytest.raises(GuestRefused, match="set_link is out of order"):
        await guest.attach(CARD, (await guest.list()).free_slots[0])
    assert qemu.cards[ALIAS].backend == BACKEND
    assert BACKEND in qemu.backends


async def test_the_next_look_pulls_the_cable_that_could_not_be_pulled(machine: tuple[Scripted, QmpGuest]) -> None:
    qemu, guest = machine
    wanted = vmi(nic("iface1", state="down"))
    qemu.refusals["set_link"] = 2
    with pytest.raises(GuestRefused):
        await guest.attach(CARD, (await guest.list()).free_slots[0])
    for refused in (True, False):
        assert qemu.cards[ALIAS].cable
        # Nobody may take it for pulled, nor for plugged.
        (change,) = link_changes(wanted, await guest.list())
        assert change == SetLink("iface1", up=False, changes=False)
        with pytest.raises(GuestRefused) if refused else contextlib.nullcontext():
            await guest.set_link(change.interface, change.up)
    assert not qemu.cards[ALIAS].cable
    assert link_changes(wanted, await guest.list()) == []


async def test_a_card_that_is_refused_leaves_no_backend_behind(machine: tuple[Scripted, QmpGuest]) -> None:
    qemu, guest = machine
    qemu.refusals["device_add"] = 1
    slot = (await guest.list()).free_slots[0]
    with pytest.raises(GuestRefused, match="device_add is out of order"):
        await guest.attach(CARD, slot)
    assert (qemu.cards, qemu.backends) == ({}, {})
    await guest.attach(CARD, slot)
    assert (qemu.cards[ALIAS].backend, qemu.cards[ALIAS].cable) == (BACKEND, False)
