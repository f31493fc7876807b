"""The hot-plug status bucket on a server that is restarted, wiped or rolled back: the projector restores it."""

import asyncio
import shutil
from pathlib import Path

import pytest

from schemas.bus.encoding import PROJECTOR_CONSUMER as CONSUMER
from schemas.bus.events import MultusAttached, ObjectRef, PodAnnotated
from schemas.stages import Stage
from tests.support.bus.jetstream import JetStreamHarness, jetstream
from tests.support.bus.nats import NatsServer
from tests.support.bus.projecting import PLUG, RunningProjector, run_projector
from tests.support.observed import objects

VMI = ObjectRef("default", "vm1", objects.VMI_UID)
POD = ObjectRef("default", "virt-launcher-vm1-abcde", objects.POD_UID)


async def reach(harness: JetStreamHarness, projector: RunningProjector, stage: Stage) -> None:
    """Bring the plug to a stage: publish the event of its role, then change the objects."""
    role, event = {
        Stage.POD_ANNOTATED: ("controller", PodAnnotated(PLUG, VMI, POD)),
        Stage.MULTUS_ATTACHED: ("networks", MultusAttached(PLUG, VMI, POD, node="node1")),
    }[stage]
    await (await harness.bus(role, "node1")).publish(event)
    projector.reach_stage(stage)
    await projector.wait_status(
        lambda nic_status: nic_status is not None and nic_status.stage is stage and nic_status.since is not None
    )


@pytest.mark.parametrize("how", ["killed", "wiped", "older"])
async def test_bucket_is_restored_after_the_server_restarts_with_any_data(
    server: NatsServer, tmp_path: Path, how: str
) -> None:
    copy = tmp_path / "copy"
    async with jetstream(server) as harness:
        bus = await harness.bus("controller", "_")
        async with run_projector(bus) as projector:
            await harness.wait_consumer(CONSUMER)
            # An event of a VMI that the projector does not know is left out.
            projector.reach_stage(Stage.REQUESTED)
            await reach(harness, projector, Stage.POD_ANNOTATED)
            await server.stop()
            shutil.copytree(server.directory, copy)
            await bus.wait_disconnected()
            await server.start()
            await bus.wait_connected()
            await harness.wait_consumer(CONSUMER)
            await reach(harness, projector, Stage.MULTUS_ATTACHED)
            before = await projector.entry()
            await server.stop()
            if how != "killed":
                server.wipe()
            if how == "older":
                shutil.copytree(copy, server.directory)
            await bus.wait_disconnected()
            await server.start()
            # Including its times: the projector has stored the events in memory.
            await projector.wait_status(
                lambda nic_status: before is not None and nic_status == before.status, timeout=60
            )
            projector.remove_interface()
            await projector.wait_status(lambda nic_status: nic_status is None)


async def test_deleted_bucket_is_created_again_by_the_projector(server: NatsServer) -> None:
    async with jetstream(server) as harness:
        bus = await harness.bus("controller", "_")
        async with run_projector(bus, reload=0.5) as projector:
            projector.reach_stage(Stage.POD_ANNOTATED)
            found = await projector.wait_status(lambda nic_status: nic_status is not None)
            await harness.js.delete_key_value("hotplug-status")
            async with asyncio.timeout(60):
                assert await projector.wait_status(lambda nic_status: nic_status is not None) == found
