"""Slots that tenants share: shares, turns, and slots that are given back."""

import asyncio

import pytest

from services.common.runtime.fair_queue import MAX_URGENT, FairQueue, FairSlots

Item = tuple[str | None, int]


def queue_of(slots: int, items: list[Item]) -> FairQueue[Item]:
    """Return a queue with these items."""
    queue: FairQueue[Item] = FairQueue(slots)
    for item in items:
        queue.append(item)
    return queue


def take_all(queue: FairQueue[Item]) -> str:
    """Take what gets a slot; return the tenants in order."""
    taken = ""
    while (item := queue.take()) is not None:
        taken += item[0] or "-"
    return taken


def test_one_tenant_holds_half_of_the_slots_and_the_next_one_half_of_the_rest() -> None:
    queue = queue_of(8, [("a", n) for n in range(9)])
    assert take_all(queue) == "aaaa"
    for n in range(9):
        queue.append(("b", n))
    queue.append(("c", 0))
    assert take_all(queue) == "bcb"
    assert len(queue) == 5 + 7


def test_tenants_take_turns() -> None:
    queue = queue_of(64, [(tenant, n) for tenant in "abc" for n in range(3)])
    assert take_all(queue) == "abcabcabc"


def test_a_single_slot_is_used() -> None:
    queue = queue_of(1, [("a", 0), ("a", 1), ("b", 0)])
    assert take_all(queue) == "a"
    queue.release(("a", 0))
    assert take_all(queue) == "b"
    queue.release(("b", 0))
    queue.append((None, 0))
    assert take_all(queue) == "a"
    queue.release(("a", 1))
    assert take_all(queue) == "-"
    assert len(queue) == 0


def test_what_is_urgent_goes_first_also_that_of_another_tenant() -> None:
    queue: FairQueue[Item] = FairQueue(64)
    for item in [("a", 0), ("b", 0), ("b", 1)]:
        queue.append(item, urgent=False)
    queue.append(("c", 0))
    queue.hasten(("b", 1))
    queue.hasten(("c", 0))
    assert [queue.take() for _ in range(5)] == [("c", 0), ("b", 1), ("a", 0), ("b", 0), None]


def test_what_is_not_urgent_waits_for_some_turns_at_most() -> None:
    queue = queue_of(1, [("a", n) for n in range(3 * MAX_URGENT)])
    queue.append(("b", 0), urgent=False)
    for _ in range(MAX_URGENT):
        item = queue.take()
        assert item is not None
        queue.release(item)
    assert queue.take() == ("b", 0)


@pytest.mark.parametrize("urgent", [True, False])
def test_an_item_that_does_not_wait_is_not_hastened(urgent: bool) -> None:
    queue = queue_of(2, [])
    queue.append(("a", 0), urgent=urgent)
    assert queue.take() == ("a", 0)
    queue.hasten(("a", 0))
    assert len(queue) == 0


async def test_slots_are_given_back_however_their_holder_ends() -> None:
    slots, running = FairSlots(4), asyncio.Event()

    async def hold(tenant: str) -> None:
        async with slots.hold(tenant):
            running.set()
            await asyncio.Event().wait()

    holders = [asyncio.create_task(hold("a")) for _ in range(5)]
    await running.wait()
    # The last three wait: one tenant gets two of four.
    for task in (holders[0], holders[4], holders[3]):
        task.cancel()
    await asyncio.wait({holders[0], holders[4], holders[3]})
    async with asyncio.timeout(30), slots.hold("b"):
        for task in holders:
            task.cancel()
        await asyncio.wait(holders)
    async with asyncio.timeout(30), slots.hold("a"), slots.hold("a"), slots.hold("b"):
        pass
