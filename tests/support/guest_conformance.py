"""What every guest driver must do, as one suite: subclass :class:`GuestConformance`, give it the fixture ``machine``.

The machine has no guest in it: nobody in it lets go of a card, and nothing is slow.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from schemas.names import device_alias
from services.common.netlink.pool import NetnsPool
from services.common.telemetry import Telemetry
from services.handler.guest.port import Card, CardMissing, Guest, GuestNotReachable, GuestRefused, NewCard
from tests.support.spans import recording_telemetry

PRIMARY_MAC = "52:54:00:00:00:01"
MAC = "02:00:00:00:00:09"
CARD = NewCard("Net_1", MAC, "tap1", 1400)
PORTS, CPUS = 3, 2


class Machine(Protocol):
    """A machine with the NIC ``default``, :data:`PORTS` free slots and :data:`CPUS` processors, and its driver."""

    def guest(self, telemetry: Telemetry | None = None, *, deadline: float = 5.0) -> Guest:
        """A driver for it."""
        ...

    def hanging(self) -> contextlib.AbstractContextManager[None]:
        """Whoever serves the driver answers nothing."""
        ...

    def end(self) -> None:
        """Kill the machine."""
        ...

    async def again(self) -> None:
        """Start it anew, after it was killed."""
        ...


@asynccontextmanager
async def taps(netns: Path, *, owner: int = 0) -> AsyncIterator[None]:
    """Two taps in a namespace: ``tap1``, and ``tap2`` of two queues."""
    pool = NetnsPool()
    namespace = await pool.open(str(netns))
    made = [await namespace.add_tap("tap1", owner=owner), await namespace.add_tap("tap2", owner=owner, queues=2)]
    try:
        yield
    finally:
        await namespace.delete_together([tap.index for tap in made])
        pool.close()


async def reachable(guest: Guest) -> bool:
    """Whether the machine answers."""
    try:
        await guest.list()
    except GuestNotReachable:
        return False
    return True


async def drained(guest: Guest) -> None:
    """Hear of everything until there is no more."""
    async for _ in guest.events():
        continue


class GuestConformance:
    """The suite."""

    @pytest.fixture
    async def guest(self, machine: Machine) -> AsyncIterator[Guest]:
        found = machine.guest()
        yield found
        await found.close()

    async def test_cards_slots_and_cpus_are_seen(self, guest: Guest) -> None:
        view = await guest.list()
        assert {alias: card.mac for alias, card in view.cards.items()} == {"ua-default": PRIMARY_MAC}
        assert (len(view.free_slots), view.cpus) == (PORTS, CPUS)

    async def test_a_card_takes_its_slot_and_keeps_the_case_of_its_name(self, guest: Guest) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(CARD, free[1])
        view = await guest.list()
        # Nobody in the machine has found it yet.
        assert view.cards["ua-Net_1"] == Card("ua-Net_1", MAC, up=True, driven=False)
        assert view.free_slots == (free[0], free[2])

    async def test_a_card_of_several_queues_is_attached(self, guest: Guest) -> None:
        await guest.attach(NewCard("net2", MAC, "tap2", 1500, queues=2), (await guest.list()).free_slots[0])
        assert "ua-net2" in (await guest.list()).cards

    async def test_a_cable_is_pulled_and_plugged_and_repeating_it_is_harmless(self, guest: Guest) -> None:
        await guest.attach(CARD, (await guest.list()).free_slots[0])
        for up in (False, False, True, True):
            await guest.set_link("Net_1", up)
            assert (await guest.list()).cards["ua-Net_1"].up is up
        with pytest.raises(CardMissing):
            await guest.set_link("net_1", up=False)

    async def test_a_card_may_come_without_its_cable(self, guest: Guest) -> None:
        await guest.attach(NewCard("net1", MAC, "tap1", 1500, up=False), (await guest.list()).free_slots[0])
        assert (await guest.list()).cards["ua-net1"].up is False

    async def test_a_card_that_is_there_is_not_touched_by_a_second_attach(self, guest: Guest) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(CARD, free[0])
        with pytest.raises(GuestRefused):
            await guest.attach(CARD, free[1])
        view = await guest.list()
        assert view.free_slots == free[1:]
        card = view.cards["ua-Net_1"]
        assert (card.mac, card.up) == (MAC, True)

    async def test_what_is_refused_leaves_nothing(self, guest: Guest) -> None:
        free = (await guest.list()).free_slots
        await guest.attach(CARD, free[0])
        other = NewCard("net2", "02:00:00:00:00:0a", "tap2", 1500, queues=2)
        with pytest.raises(GuestRefused):
            await guest.attach(other, "nosuchport")
        with pytest.raises(GuestRefused):
            await guest.attach(other, free[0])
        with pytest.raises(GuestRefused):
            await guest.attach(NewCard("net2", MAC, "lo", 1500), free[1])
        assert (await guest.list()).free_slots == free[1:]
        await guest.attach(other, free[1])
        assert (await guest.list()).free_slots == free[2:]

    async def test_asking_to_let_go_is_only_asking(self, guest: Guest) -> None:
        await guest.attach(CARD, (await guest.list()).free_slots[0])
        await guest.detach("Net_1")
        assert "ua-Net_1" in (await guest.list()).cards
        with pytest.raises(GuestRefused, match="already in the process of unplug"):
            await guest.detach("Net_1")
        with pytest.raises(CardMissing):
            await guest.detach("net_1")

    async def test_a_backend_that_is_gone_is_no_failure(self, guest: Guest) -> None:
        await guest.remove_backend("net1")
        await guest.remove_backend("net1")

    async def test_each_call_that_changes_something_is_a_span_with_its_interface(self, machine: Machine) -> None:
        telemetry, spans = recording_telemetry()
        guest = machine.guest(telemetry)
        slot = (await guest.list()).free_slots[0]
        spans.clear()
        await guest.attach(CARD, slot)
        await guest.set_link("Net_1", up=False)
        await guest.detach("Net_1")
        await guest.close()
        finished = spans.get_finished_spans()
        assert len(finished) >= 3
        assert {(span.attributes or {})["hotnic.interface"] for span in finished} == {"Net_1"}
        assert slot in [(span.attributes or {}).get("hotnic.slot") for span in finished]

    async def test_a_machine_that_ends_is_not_reachable_and_a_new_one_is_found(
        self, machine: Machine, guest: Guest
    ) -> None:
        await guest.list()
        machine.end()
        async with asyncio.timeout(10):
            # Its end may be noticed a moment later.
            while await reachable(guest):
                continue
        await machine.again()
        assert (await guest.list()).cards.keys() == {device_alias("default")}

    async def test_who_hangs_costs_the_deadline_and_no_more(self, machine: Machine) -> None:
        guest = machine.guest(deadline=0.3)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            # A busy machine may need more than one attempt.
            while not await reachable(guest):
                continue
        with machine.hanging():
            for _ in range(2):
                began = loop.time()
                with pytest.raises(GuestNotReachable, match="within 0"):
                    await guest.list()
                assert loop.time() - began < 2
        await guest.close()
        patient = machine.guest()
        assert device_alias("default") in (await patient.list()).cards
        await patient.close()

    async def test_its_events_end_with_the_machine(self, machine: Machine, guest: Guest) -> None:
        await guest.list()
        following = asyncio.create_task(drained(guest))
        await guest.list()
        machine.end()
        await asyncio.wait_for(following, 10)

    async def test_a_driver_that_was_closed_begins_anew(self, guest: Guest) -> None:
        await guest.list()
        await guest.close()
        await guest.close()
        assert (await guest.list()).cards
