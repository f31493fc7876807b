"""QEMU refuses a command, sends nonsense, or more events than anybody reads. The monitor is scripted."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lab.guest.double import Monitors
from lab.guest.double_machine import CommandError, DoubleMachine, Reply, TapBackend
from services.common.domain.nic import parse_nics
from services.common.guest.pending_events import MAX_PENDING_EVENTS
from services.common.guest.port import GuestNotReachable, GuestRefused, NetDeviceSpec
from services.common.guest.qmp import MAX_DEVICES, QmpGuest
from services.handler.plan.actions import SetLinkState
from services.handler.plan.link_state import plan_link_states
from tests.support.guest.monitor import served_guest
from tests.support.observed.objects import nic, pod, vmi

DEVICE = NetDeviceSpec("iface1", "02:00:00:00:00:09", "tap1", 1500, up=False)
ALIAS, BACKEND = "ua-iface1", "host-ua-iface1"


class ScriptedMachine(DoubleMachine):
    """The lab's double of a machine, without taps. It refuses commands as often as the test sets.

    :ivar refusals: how many more executions to refuse, by command.
    :ivar nonsense: the response to ``query-rx-filter``; ``None`` for a proper one.
    :ivar slow_disks: disks of which each takes a moment to be described.
    """

    def __init__(self, monitors: Monitors) -> None:
        super().__init__(
            ports=2,
            cpus=1,
            unplug_delay=60,
            bind_delay=60,
            emit_event=monitors.emit_event,
            print_line=lambda line: None,
        )
        self.monitors = monitors
        self.refusals: dict[str, int] = {}
        self.nonsense: Any = None
        self.slow_disks = 0

    def netdev_add(self, backend: str, kind: str, tap: str, queues: int) -> None:
        if backend in self.backends:
            raise CommandError(f"Duplicate ID '{backend}' for netdev")
        self.backends[backend] = TapBackend()

    def device_add(self, alias: str, driver: str, backend: str, bus: str, mac: str, mtu: int) -> None:
        self._refuse_if_set("device_add")
        super().device_add(alias, driver, backend, bus, mac, mtu)

    def qom_list(self, path: str) -> list[Reply]:
        disks = [{"name": f"disk{number}", "type": "child<virtio-blk-pci>"} for number in range(self.slow_disks)]
        return disks or super().qom_list(path)

    def qom_get(self, path: str, name: str) -> str:
        if not self.slow_disks:
            return super().qom_get(path, name)
        time.sleep(0.02)
        return "/machine"

    def rx_filters(self) -> Any:
        return super().rx_filters() if self.nonsense is None else self.nonsense

    def set_link(self, name: str, up: bool) -> None:
        self._refuse_if_set("set_link")
        super().set_link(name, up)

    def _refuse_if_set(self, command: str) -> None:
        if self.refusals.get(command):
            self.refusals[command] -= 1
            raise CommandError(f"{command} is out of order")


@pytest.fixture
async def machine() -> AsyncIterator[tuple[ScriptedMachine, QmpGuest]]:
    monitors = Monitors()
    scripted = monitors.machine = ScriptedMachine(monitors)
    async with served_guest(monitors.serve_client) as guest:
        yield scripted, guest


async def test_a_device_whose_link_state_was_not_set_keeps_its_backend(
    machine: tuple[ScriptedMachine, QmpGuest],
) -> None:
    qemu, guest = machine
    qemu.refusals["set_link"] = 1
    with pytest.raises(GuestRefused, match="set_link is out of order"):
        await guest.attach(DEVICE, (await guest.list()).free_slots[0])
    assert qemu.nics[ALIAS].backend == BACKEND
    assert BACKEND in qemu.backends


async def test_the_next_run_sets_the_link_state_that_was_not_set(machine: tuple[ScriptedMachine, QmpGuest]) -> None:
    qemu, guest = machine
    wanted = parse_nics(vmi(nic("iface1", state="down")), pod())
    qemu.refusals["set_link"] = 2
    with pytest.raises(GuestRefused):
        await guest.attach(DEVICE, (await guest.list()).free_slots[0])
    for refused in (True, False):
        assert qemu.nics[ALIAS].link_up
        # The link state is not known.
        (change,) = plan_link_states(wanted, await guest.list())
        assert change == SetLinkState("iface1", up=False, changes=False)
        with pytest.raises(GuestRefused) if refused else contextlib.nullcontext():
            await guest.set_link(change.interface, change.up)
    assert not qemu.nics[ALIAS].link_up
    assert plan_link_states(wanted, await guest.list()) == []


async def test_a_refused_device_leaves_no_backend(machine: tuple[ScriptedMachine, QmpGuest]) -> None:
    qemu, guest = machine
    qemu.refusals["device_add"] = 1
    slot = (await guest.list()).free_slots[0]
    with pytest.raises(GuestRefused, match="device_add is out of order"):
        await guest.attach(DEVICE, slot)
    assert (qemu.nics, qemu.backends) == ({}, {})
    await guest.attach(DEVICE, slot)
    assert (qemu.nics[ALIAS].backend, qemu.nics[ALIAS].link_up) == (BACKEND, False)


NONSENSE = [[None], ["name"], [[]], [{"promiscuous": False}], [{"name": [], "promiscuous": False}], 7, "x" * 100_000]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_a_domain_that_answers_nonsense_is_not_reachable(
    machine: tuple[ScriptedMachine, QmpGuest], nonsense: Any
) -> None:
    qemu, guest = machine
    qemu.nonsense = nonsense
    with pytest.raises(GuestNotReachable) as caught:
        await guest.list()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("disks", "why"), [(500, r"not listed within 0\.2 s"), (MAX_DEVICES, "more than 1024 devices")]
)
async def test_a_domain_with_many_slow_devices_is_not_reachable(
    machine: tuple[ScriptedMachine, QmpGuest], disks: int, why: str
) -> None:
    """It answers each command in time, so only a deadline for all of them ends the list."""
    qemu, guest = machine
    qemu.slow_disks, guest.list_deadline = disks, 0.2
    with pytest.raises(GuestNotReachable, match=why):
        await guest.list()


async def test_events_that_nobody_reads_are_not_kept(machine: tuple[ScriptedMachine, QmpGuest]) -> None:
    qemu, guest = machine
    await guest.list()
    events = guest.events()
    first = asyncio.ensure_future(anext(events))
    await guest.list()
    for _ in range(3 * MAX_PENDING_EVENTS):
        qemu.monitors.emit_event("NIC_RX_FILTER_CHANGED", {"name": ALIAS})
    await guest.list()
    await first
    library = guest.client._client
    assert library is not None
    assert [listener.history for listener in library._listeners] == [(), ()]
    # The reader is too slow. Its watch ends, so that it observes what it has missed.
    assert len([event async for event in events]) <= MAX_PENDING_EVENTS
