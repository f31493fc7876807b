"""The locks: calls of a sandbox one after the other, GC alone."""

import asyncio

import pytest

from services.multus.errors import CniError
from services.multus.locks import Locks


async def test_gc_waits_for_calls_and_holds_new_ones_back() -> None:
    locks = Locks(5)
    order: list[str] = []
    entered, leave = asyncio.Event(), asyncio.Event()

    async def call(name: str, until: asyncio.Event | None = None) -> None:
        async with locks.one(name):
            order.append(name)
            if until is not None:
                entered.set()
                await until.wait()

    async def collect() -> None:
        async with locks.all():
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


async def test_who_waits_too_long_is_told_to_try_again() -> None:
    locks = Locks(0.02)
    async with locks.one("a"):
        for waiting in (locks.one("a"), locks.all()):
            with pytest.raises(CniError) as caught:
                async with waiting:
                    raise AssertionError("two hold it")
            assert caught.value.code == 11
    async with locks.all():
        with pytest.raises(CniError, match="a GC has been running"):
            async with locks.one("a"):
                raise AssertionError("a call beside a GC")
    async with locks.one("a"):
        pass
    assert len(locks) == 0
