"""Passes over cyclic garbage: what changes of a large cache leave does not wait for one pass, and no cycle stays."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from schemas.kubernetes.objects import VMIS
from services.common.runtime.garbage import FULL_INTERVAL, YOUNG_INTERVAL, collect_garbage
from tests.support.observed import objects

pytestmark = pytest.mark.looptime


class Cycle:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.me = self


@asynccontextmanager
async def collecting() -> AsyncIterator[None]:
    """Collect garbage while the block runs."""
    task = asyncio.create_task(collect_garbage())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert gc.get_freeze_count() == 0


async def test_replaced_objects_do_not_wait_for_one_pass() -> None:
    cache = {number: [[]] for number in range(2000)}
    async with collecting():
        await asyncio.sleep(1.5 * YOUNG_INTERVAL)
        # As many are freed as are created, so Python starts no pass.
        for number in cache:
            cache[number] = [[]]
        assert len(gc.get_objects(0)) > len(cache)
        await asyncio.sleep(YOUNG_INTERVAL)
        assert sum(len(gc.get_objects(generation)) for generation in range(3)) < len(cache)


async def test_a_cycle_that_was_frozen_is_collected_by_the_pass_over_everything() -> None:
    cycle = Cycle()
    gone = weakref.ref(cycle)
    async with collecting():
        await asyncio.sleep(2.5 * YOUNG_INTERVAL)
        del cycle
        await asyncio.sleep(10 * YOUNG_INTERVAL)
        assert gone() is not None
        await asyncio.sleep(FULL_INTERVAL)
        assert gone() is None


def test_passes_do_not_see_the_structs_of_objects() -> None:
    vmi = objects.vmi(objects.nic("iface1"))
    assert isinstance(vmi, VMIS.type)
    assert not any(map(gc.is_tracked, (vmi, vmi.metadata, vmi.spec, vmi.spec.domain.devices, vmi.status)))
