"""Locks: the calls of a sandbox run one after the other, and a GC runs alone."""

import asyncio

import pytest

from services.multus.cni.errors import CniError
from services.multus.cni.executor import time_limit
from services.multus.records.locks import SandboxLocks


async def test_gc_waits_for_running_calls_and_blocks_new_ones() -> None:
    locks = SandboxLocks(5)
    order: list[str] = []
    entered, leave = asyncio.Event(), asyncio.Event()

    async def call(name: str, until: asyncio.Event | None = None) -> None:
        async with locks.hold(name):
            order.append(name)
            if until is not None:
                entered.set()
                await until.wait()

    async def collect() -> None:
        async with locks.hold_all():
            order.append("GC")
            await asyncio.sleep(0)
            order.append("GC ends")

    first = asyncio.create_task(call("a", leave))
    await entered.wait()
    gc = asyncio.create_task(collect())
    await asyncio.sleep(0)
    second = asyncio.create_task(call("b"))
    await asyncio.sleep(0)
    assert order == ["a"]
    leave.set()
    await asyncio.gather(first, gc, second)
    assert order == ["a", "GC", "GC ends", "b"]
    assert len(locks) == 0


async def test_gc_that_waits_for_a_slow_call_lets_new_ones_in() -> None:
    """The running call may take its whole deadline, and a new one must not wait as long."""
    locks = SandboxLocks(30, blocked=0.01)
    entered, leave, collected = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow_call() -> None:
        async with locks.hold("a"):
            entered.set()
            await leave.wait()

    async def collect() -> None:
        async with locks.hold_all():
            collected.set()

    slow = asyncio.create_task(slow_call())
    await entered.wait()
    gc = asyncio.create_task(collect())
    for _ in range(3):
        await asyncio.sleep(0)
        async with locks.hold("b"):
            assert not collected.is_set()
    leave.set()
    await asyncio.gather(slow, gc)
    assert collected.is_set()


async def test_no_lock_is_waited_for_longer_than_the_call_may_take() -> None:
    locks = SandboxLocks(30)
    async with locks.hold("a"):
        for waiting in (locks.hold("a"), locks.hold_all()):
            with pytest.raises(CniError, match=r"running for 0\.\d+ s"), time_limit(0.2):
                async with waiting:
                    raise AssertionError("two calls hold the lock")
    async with locks.hold_all():
        pass
    assert len(locks) == 0


async def test_a_wait_beyond_the_timeout_is_error_11() -> None:
    locks = SandboxLocks(0.02)
    async with locks.hold("a"):
        for waiting in (locks.hold("a"), locks.hold_all()):
            with pytest.raises(CniError) as caught:
                async with waiting:
                    raise AssertionError("two calls hold the lock")
            assert caught.value.code == 11
    async with locks.hold_all():
        with pytest.raises(CniError, match="a GC has been running"):
            async with locks.hold("a"):
                raise AssertionError("a call runs during a GC")
    async with locks.hold("a"):
        pass
    assert len(locks) == 0
