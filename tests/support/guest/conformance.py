"""What every guest driver must do, as one suite: subclass :class:`GuestConformance` and add the fixture ``machine``.

The machine has no guest in it: no unplug is ever completed, and everything responds at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from schemas.names import device_alias
from services.common.guest.port import (
    DeviceMissing,
    GuestDriver,
    GuestNotReachable,
    GuestRefused,
    NetDevice,
    NetDeviceSpec,
)
from services.common.netlink.pool import NetnsPool
from services.common.telemetry import Telemetry
from tests.support.telemetry.spans import recording_telemetry

PRIMARY_MAC = "52:54:00:00:00:01"
MAC = "02:00:00:00:00:09"
DEVICE = NetDeviceSpec("Net_1", MAC, "tap1", 1400)
PORTS, CPUS = 3, 2


class Machine(Protocol):
    """A machine with the NIC ``default``, :data:`PORTS` free slots and :data:`CPUS` CPUs, and its driver."""

    def guest(self, telemetry: Telemetry | None = None, *, deadline: float = 5.0) -> GuestDriver:
        """Return a driver for it."""
        ...

    def hanging(self) -> contextlib.AbstractContextManager[None]:
        """Suspend the process that serves the driver for the duration of the context."""
        ...

    def end(self) -> None:
        """Kill the machine."""
        ...

    async def restart(self) -> None:
        """Start the machine again after it was killed."""
        ...


@asynccontextmanager
async def taps(netns: Path, *, owner: int = 0) -> AsyncIterator[None]:
    """Create two taps in a namespace: ``tap1``, and ``tap2`` with two queues."""
    pool = NetnsPool()
    namespace = await pool.open(str(netns))
    made = [await namespace.add_tap("tap1", owner=owner), await namespace.add_tap("tap2", owner=owner, queues=2)]
    try:
        yield
    finally:
        await namespace.delete_together([tap.index for tap in made])
        pool.close()


async def reachable(guest: GuestDriver) -> bool:
    """Return whether the machine responds."""
    try:
        await guest.list()
    except GuestNotReachable:
        return False
    return True


async def drained(guest: GuestDriver) -> None:
    """Consume events until there are no more."""
    async for _ in guest.events():
        continue


class GuestConformance:
    """The tests that every guest driver passes."""

    @pytest.fixture
    async def guest(self, machine: Machine) -> AsyncIterator[GuestDriver]:
        found = machine.guest()
        yield found
        await found.close()

    async def test_devices_slots_and_cpus_are_listed(self, guest: GuestDriver) -> None:
        view = await guest.list()
        assert {alias: device.mac for alias, device in view.devices.items()} == {"ua-default": PRIMARY_MAC}
        assert (len(view.free_slots), view.cpus) == (PORTS, CPUS)

    async def test_a_device_takes_its_slot_and_its_alias_has_the_case_of_the_name(self, guest: GuestDriver) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(msgspec.structs.replace(DEVICE, acpi_index=101), free[1])
        view = await guest.list()
        # There is no guest, so no driver is active.
        assert view.devices["ua-Net_1"] == NetDevice("ua-Net_1", MAC, up=True, driver_active=False)
        assert view.free_slots == (free[0], free[2])

    async def test_a_device_with_several_queues_is_attached(self, guest: GuestDriver) -> None:
        await guest.attach(NetDeviceSpec("net2", MAC, "tap2", 1500, queues=2), (await guest.list()).free_slots[0])
        assert "ua-net2" in (await guest.list()).devices

    async def test_the_link_is_set_down_and_up_and_repeating_it_has_no_effect(self, guest: GuestDriver) -> None:
        await guest.attach(DEVICE, (await guest.list()).free_slots[0])
        for up in (False, False, True, True):
            await guest.set_link("Net_1", up)
            assert (await guest.list()).devices["ua-Net_1"].up is up
        with pytest.raises(DeviceMissing):
            await guest.set_link("net_1", up=False)

    async def test_a_device_can_be_attached_with_its_link_down(self, guest: GuestDriver) -> None:
        await guest.attach(NetDeviceSpec("net1", MAC, "tap1", 1500, up=False), (await guest.list()).free_slots[0])
        assert (await guest.list()).devices["ua-net1"].up is False

    async def test_a_second_attach_does_not_change_the_device(self, guest: GuestDriver) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(DEVICE, free[0])
        with pytest.raises(GuestRefused):
            await guest.attach(DEVICE, free[1])
        view = await guest.list()
        assert view.free_slots == free[1:]
        device = view.devices["ua-Net_1"]
        assert (device.mac, device.up) == (MAC, True)

    async def test_a_refused_attach_leaves_nothing(self, guest: GuestDriver) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(DEVICE, free[0])
        other = NetDeviceSpec("net2", "02:00:00:00:00:0a", "tap2", 1500, queues=2)
        with pytest.raises(GuestRefused):
            await guest.attach(other, "nosuchport")
        with pytest.raises(GuestRefused):
            await guest.attach(other, free[0])
        with pytest.raises(GuestRefused):
            await guest.attach(NetDeviceSpec("net2", MAC, "lo", 1500), free[1])
        assert (await guest.list()).free_slots == free[1:]
        await guest.attach(other, free[1])
        assert (await guest.list()).free_slots == free[2:]

    async def test_an_unplug_request_does_not_remove_the_device(self, guest: GuestDriver) -> None:
        await guest.attach(DEVICE, (await guest.list()).free_slots[0])
        await guest.request_unplug("Net_1")
        assert "ua-Net_1" in (await guest.list()).devices
        with pytest.raises(GuestRefused, match="already in the process of unplug"):
            await guest.request_unplug("Net_1")
        with pytest.raises(DeviceMissing):
            await guest.request_unplug("net_1")

    async def test_removing_a_missing_backend_is_no_error(self, guest: GuestDriver) -> None:
        await guest.remove_backend("net1")
        await guest.remove_backend("net1")

    async def test_each_call_that_changes_something_has_a_span_with_its_interface(self, machine: Machine) -> None:
        telemetry, spans = recording_telemetry()
        guest = machine.guest(telemetry)
        slot = (await guest.list()).free_slots[0]
        spans.clear()
        await guest.attach(DEVICE, slot)
        await guest.set_link("Net_1", up=False)
        await guest.request_unplug("Net_1")
        await guest.close()
        finished = spans.get_finished_spans()
        assert len(finished) >= 3
        assert {(span.attributes or {})["hotnic.interface"] for span in finished} == {"Net_1"}
        assert slot in [(span.attributes or {}).get("hotnic.slot") for span in finished]

    async def test_a_machine_that_ended_is_not_reachable_and_its_successor_is(
        self, machine: Machine, guest: GuestDriver
    ) -> None:
        await guest.list()
        machine.end()
        async with asyncio.timeout(45):
            # The end may be detected a moment later.
            while await reachable(guest):
                continue
        await machine.restart()
        assert (await guest.list()).devices.keys() == {device_alias("default")}

    async def test_a_hanging_machine_delays_a_call_only_until_the_deadline(self, machine: Machine) -> None:
        guest = machine.guest(deadline=0.3)
        async with asyncio.timeout(45):
            # On a busy host more than one attempt may be needed.
            while not await reachable(guest):
                continue
        with machine.hanging():
            for _ in range(2):
                with pytest.raises(GuestNotReachable, match="within 0"):
                    await guest.list()
        await guest.close()
        patient = machine.guest()
        assert device_alias("default") in (await patient.list()).devices
        await patient.close()

    async def test_the_events_end_with_the_machine(self, machine: Machine, guest: GuestDriver) -> None:
        await guest.list()
        following = asyncio.create_task(drained(guest))
        await guest.list()
        machine.end()
        await asyncio.wait_for(following, 45)

    async def test_a_closed_driver_connects_again(self, guest: GuestDriver) -> None:
        await guest.list()
        await guest.close()
        await guest.close()
        assert (await guest.list()).devices
