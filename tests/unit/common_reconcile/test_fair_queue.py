"""Slots that tenants share: shares, turns, and slots that are given back."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("slots", "alone", "then"),
    [
        (1, "a", ""),
        (2, "a", "b"),
        (4, "aaa", "b"),
        (8, "a" * 6, "bc"),
        (16, "a" * 12, "bcd"),
        (32, "a" * 24, "bcdbcd"),
    ],
)
def test_a_tenant_that_waits_alone_gets_all_but_a_reserve(slots: int, alone: str, then: str) -> None:
    queue = queue_of(slots, [("a", n) for n in range(slots)])
    assert take_all(queue) == alone
    for n in range(slots):
        for tenant in "bcd":
            queue.append((tenant, n))
    assert take_all(queue) == then


def test_shares_are_equal_again_as_the_first_tenant_gives_slots_back() -> None:
    queue = queue_of(32, [("a", n) for n in range(64)])
    taken = [item for _ in range(24) if (item := queue.take()) is not None]
    for n in range(64):
        queue.append(("b", n))
    of_others = take_all(queue)
    for item in taken[:13]:
        queue.release(item)
        of_others += take_all(queue)
    # As if both had waited from the start: 11 each.
    assert of_others == 11 * "b"
    queue.release(taken[13])
    assert take_all(queue) == "a"


def test_of_tenants_that_wait_together_each_holds_fewer_than_are_free() -> None:
    queue = queue_of(32, [(tenant, n) for n in range(32) for tenant in "ab"])
    taken = take_all(queue)
    assert (taken.count("a"), taken.count("b")) == (11, 11)
    queue.append(("c", 0))
    assert take_all(queue) == "c"


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
    # The last two wait: one tenant gets three of four.
    for task in (holders[0], holders[1], holders[4], holders[3]):
        task.cancel()
    await asyncio.wait({holders[0], holders[1], holders[4], holders[3]})
    async with asyncio.timeout(30), slots.hold("b"):
        for task in holders:
            task.cancel()
        await asyncio.wait(holders)
    async with asyncio.timeout(30), slots.hold("a"), slots.hold("a"), slots.hold("b"):
        pass


Step = tuple[str, str, bool]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "release", "hasten"]), st.sampled_from("abcd"), st.booleans()),
    max_size=120,
)


@given(st.integers(1, 40), STEPS)
def test_slots_are_shared_whatever_happens(slots: int, steps: list[Step]) -> None:
    queue: FairQueue[Item] = FairQueue(slots)
    waiting: list[Item] = []
    held: list[Item] = []
    reserve = max(slots // 4, 1) if slots > 1 else 0
    for number, (kind, tenant, urgent) in enumerate(steps):
        if kind == "add":
            waiting.append((tenant, number))
            queue.append(waiting[-1], urgent=urgent)
        elif kind == "hasten" and waiting:
            queue.hasten(waiting[number % len(waiting)])
        elif kind == "release" and held:
            queue.release(held.pop(number % len(held)))
        while (item := queue.take()) is not None:
            others = {one for one, _ in waiting} - {item[0]}
            before = sum(one == item[0] for one, _ in held)
            free = slots - len(held)
            assert free > 0
            # A tenant gets more than its share only while it waits alone, and not from the reserve.
            assert before < free or (not others and free > reserve)
            waiting.remove(item)
            held.append(item)
        assert len(queue) == len(waiting)
        free = slots - len(held)
        # No slot is free that a tenant may have: one that holds none is never passed over.
        for name in {one for one, _ in waiting}:
            share = sum(one == name for one, _ in held)
            assert share >= free
            assert len({one for one, _ in waiting}) > 1 or free <= reserve
