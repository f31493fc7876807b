"""Locks: the calls of a sandbox run one after the other, and a GC runs alone."""

import asyncio

import pytest

from services.multus.cni.errors import CniError
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
