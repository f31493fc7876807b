"""The ladder's bucket on a real server that is restarted, emptied or set back: the projector makes it right again."""

import asyncio
import shutil
from pathlib import Path

import pytest

from schemas.events import MultusAttached, ObjectRef, PodAnnotated
from schemas.stages import Stage
from services.controller.projector import CONSUMER
from tests.support import objects
from tests.support.jetstream import JetStreamHarness, jetstream
from tests.support.nats import NatsServer
from tests.support.projecting import PLUG, Projecting, projecting

VMI = ObjectRef("default", "vm1", objects.VMI_UID)
POD = ObjectRef("default", "virt-launcher-vm1-abcde", objects.POD_UID)


async def reach(harness: JetStreamHarness, made: Projecting, stage: Stage) -> None:
    """The plug comes to a stage: an event of its own role, then the objects."""
    role, event = {
        Stage.POD_ANNOTATED: ("controller", PodAnnotated(PLUG, VMI, POD)),
        Stage.MULTUS_ATTACHED: ("networks", MultusAttached(PLUG, VMI, POD)),
    }[stage]
    await (await harness.bus(role, "node1")).publish(event)
    made.climb(stage)
    await made.nic_status(
        lambda nic_status: nic_status is not None and nic_status.stage is stage and nic_status.since is not None
    )


@pytest.mark.parametrize("how", ["killed", "wiped", "older"])
async def test_the_ladder_is_right_again_whatever_the_server_comes_back_with(
    server: NatsServer, tmp_path: Path, how: str
) -> None:
    copy = tmp_path / "copy"
    async with jetstream(server) as harness:
        bus = await harness.bus("controller", "_")
        async with projecting(bus) as made:
            await harness.stands(CONSUMER)
            await reach(harness, made, Stage.POD_ANNOTATED)
            await server.stop()
            shutil.copytree(server.directory, copy)
            await bus.wait_disconnected()
            await server.start()
            await bus.wait_connected()
            await harness.stands(CONSUMER)
            await reach(harness, made, Stage.MULTUS_ATTACHED)
            before = await made.entry()
            await server.stop()
            if how != "killed":
                server.wipe()
            if how == "older":
                shutil.copytree(copy, server.directory)
            await bus.wait_disconnected()
            await server.start()
            # Its times, too: what was heard is remembered.
            await made.nic_status(lambda nic_status: before is not None and nic_status == before.status, timeout=20)
            made.gone()
            await made.nic_status(lambda nic_status: nic_status is None)


async def test_a_bucket_that_is_deleted_under_the_projector_comes_back(server: NatsServer) -> None:
    async with jetstream(server) as harness:
        bus = await harness.bus("controller", "_")
        async with projecting(bus, reload=0.5) as made:
            made.climb(Stage.POD_ANNOTATED)
            found = await made.nic_status(lambda nic_status: nic_status is not None)
            await harness.js.delete_key_value("hotplug-status")
            async with asyncio.timeout(10):
                assert await made.nic_status(lambda nic_status: nic_status is not None) == found
