"""Beside a hostile tenant all plugs succeed, and nothing of it stays; ``tests/bench`` measures the times."""

import asyncio

import pytest

from tests.support import sampled
from tests.support.hostile.beside import hostile_tenant
from tests.support.hostile.remains import nothing_left, take
from tests.support.lab.running import SAMPLE_VM, Lab
from tests.support.lab.timed_plugs import timed_plugs

pytestmark = pytest.mark.timeout(400)

SECONDS = 60.0 if sampled.LONG else 5.0


async def test_hostile_tenant_stops_no_plug_and_leaves_nothing(doubles: Lab) -> None:
    before = await take(doubles)
    async with (
        timed_plugs(doubles.layout.kubeconfig, SAMPLE_VM) as plugs,
        hostile_tenant(doubles, SECONDS, seed=str(sampled.SEED)) as tenant,
    ):
        attack = asyncio.create_task(tenant.attack())
        while not attack.done():
            await plugs.plug("beside")
            await plugs.unplug("beside")
        assert set((await attack).answers) > {200, 400}
        await tenant.leave()
    await nothing_left(doubles, before)
