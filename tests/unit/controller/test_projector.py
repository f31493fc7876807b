"""The projector: the bucket follows objects and events, and failures of the bus cost nothing but times."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest
import structlog

from schemas.bus.encoding import PROJECTOR_CONSUMER as CONSUMER
from schemas.bus.encoding import StatusKey
from schemas.bus.events import Failed, GuestAttached, MultusAttached, ObjectRef, PodAnnotated, Requested
from schemas.bus.hotplug_status import BUCKET, InterfaceHotplugStatus
from schemas.names import interface_hash
from schemas.stages import Stage
from services.common.bus.protocol import BucketState, KeyValueEntry
from services.controller.status_bucket import CHECKS, MAX_MARKERS, RELOAD_INTERVAL, StatusBucket
from tests.support.bus.memory import Broker, MemoryBus, MemoryKeyValue
from tests.support.bus.projecting import PLUG, VM1, RunningProjector, other_operation, run_projector
from tests.support.observed import objects

pytestmark = pytest.mark.looptime

VMI = ObjectRef("default", "vm1", objects.VMI_UID)
POD = ObjectRef("default", "virt-launcher-vm1-abcde", objects.POD_UID)
KEY = str(StatusKey(*VM1, interface_hash("iface1")))
EVENTS = {
    Stage.REQUESTED: Requested(PLUG, VMI),
    Stage.POD_ANNOTATED: PodAnnotated(PLUG, VMI, POD),
    Stage.MULTUS_ATTACHED: MultusAttached(PLUG, VMI, POD),
    Stage.GUEST_ATTACHED: GuestAttached(PLUG, VMI, POD),
}


class Cluster:
    """A projector on a broker that a test can stop, empty and roll back."""

    def __init__(self, broker: Broker, running: RunningProjector) -> None:
        self.broker, self.running = broker, running

    @property
    def bucket(self) -> MemoryKeyValue:
        return self.broker.buckets[BUCKET]

    async def publish(self, *stages: Stage) -> None:
        for stage in stages:
            await self.running.bus.publish(EVENTS[stage])

    async def stage(self, stage: Stage, *, timed: bool = True) -> InterfaceHotplugStatus:
        found = await self.running.wait_status(
            lambda nic_status: nic_status is not None and nic_status.stage is stage and bool(nic_status.since) is timed
        )
        assert found is not None
        return found


@contextlib.asynccontextmanager
async def run_cluster() -> AsyncIterator[Cluster]:
    broker = Broker()
    async with run_projector(MemoryBus(broker, log=structlog.get_logger())) as running:
        await broker.until(lambda: CONSUMER in broker.consumers)
        yield Cluster(broker, running)


async def test_bucket_follows_a_plug_from_stage_to_stage() -> None:
    async with run_cluster() as cluster:
        for stage in EVENTS:
            await cluster.publish(stage)
            cluster.running.reach_stage(stage)
            nic_status = await cluster.stage(stage)
            assert (nic_status.operation, nic_status.interface) == ("op", "iface1")
        assert nic_status.complete
        cluster.running.remove_interface()
        await cluster.running.wait_status(lambda nic_status: nic_status is None)


async def test_a_vmi_without_a_pod_has_no_entries() -> None:
    """Anybody can create VMIs that never run, and all share the bucket."""
    async with run_cluster() as cluster:
        cluster.running.reach_stage(Stage.REQUESTED)
        await cluster.stage(Stage.REQUESTED)
        pod = cluster.running.pods.objects_by_key.popitem()[1]
        other = objects.vmi(objects.nic("iface2"))
        cluster.running.vmis.objects_by_key[VM1] = other
        cluster.running.projector.requeue(VM1)
        await cluster.running.wait_status(lambda nic_status: nic_status is None)
        assert await cluster.running.entry("iface2") is None
        cluster.running.set_objects(other, pod)
        async with asyncio.timeout(45):
            while await cluster.running.entry("iface2") is None:  # noqa: ASYNC110 (the bucket has no event for a test)
                await asyncio.sleep(0.01)


async def test_early_and_missing_events_do_not_change_the_stage() -> None:
    async with run_cluster() as cluster:
        await cluster.publish(Stage.GUEST_ATTACHED, Stage.MULTUS_ATTACHED)
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        await cluster.stage(Stage.POD_ANNOTATED, timed=False)
        cluster.running.reach_stage(Stage.MULTUS_ATTACHED)
        await cluster.stage(Stage.MULTUS_ATTACHED)


async def test_failure_is_stored_with_its_attempts() -> None:
    async with run_cluster() as cluster:
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        for attempt in (1, 2):
            failed = Failed(
                PLUG, VMI, POD, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message="no lease", attempt=attempt
            )
            await cluster.running.bus.publish(failed)
        nic_status = await cluster.running.wait_status(
            lambda nic_status: nic_status is not None and nic_status.attempts == 2
        )
        assert nic_status is not None
        assert (nic_status.reason, nic_status.message, nic_status.stage) == (
            "CniFailed",
            "no lease",
            Stage.POD_ANNOTATED,
        )
        assert nic_status.last_attempt


async def test_what_another_node_says_about_a_pod_is_not_stored() -> None:
    """Finding 11 of the security audit: a forged event put its text into `hotnic status`."""
    async with run_cluster() as cluster:
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        elsewhere, here = MemoryBus(cluster.broker, role="networks", node="node2"), "node1"
        for node, message in (("node2", "the forger's text"), (here, "no lease")):
            failed = Failed(PLUG, VMI, POD, node=node, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message=message)
            bus = elsewhere if node == "node2" else MemoryBus(cluster.broker, role="networks", node=here)
            await bus.publish(failed)
        await elsewhere.publish(MultusAttached(PLUG, VMI, POD, node="node2"))
        nic_status = await cluster.running.wait_status(
            lambda nic_status: nic_status is not None and nic_status.reason is not None
        )
        assert nic_status is not None
        assert (nic_status.message, nic_status.attempts) == ("no lease", 1)
        cluster.running.reach_stage(Stage.MULTUS_ATTACHED)
        await cluster.stage(Stage.MULTUS_ATTACHED, timed=False)


async def test_new_operation_replaces_the_entry() -> None:
    async with run_cluster() as cluster:
        await cluster.publish(Stage.REQUESTED, Stage.POD_ANNOTATED)
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        await cluster.stage(Stage.POD_ANNOTATED)
        cluster.running.reach_stage(Stage.POD_ANNOTATED, other_operation())
        nic_status = await cluster.stage(Stage.POD_ANNOTATED, timed=False)
        assert nic_status.operation == "op2"


async def test_only_times_are_lost_without_the_bus() -> None:
    async with run_cluster() as cluster:
        cluster.broker.stop()
        cluster.running.reach_stage(Stage.MULTUS_ATTACHED)
        await asyncio.sleep(5)
        assert b'hotnic_operations_in_flight{kind="plug",stage="multus-attached"} 1.0' in (
            cluster.running.telemetry.metrics_text()
        )
        cluster.broker.start()
        await cluster.stage(Stage.MULTUS_ATTACHED, timed=False)
        cluster.running.reach_stage(Stage.GUEST_ATTACHED)
        await cluster.stage(Stage.GUEST_ATTACHED, timed=False)
        assert b"hotnic_operations_in_flight{" not in cluster.running.telemetry.metrics_text()


@pytest.mark.parametrize("how", ["wiped", "older", "foreign", "swept"])
async def test_damaged_bucket_is_repaired(how: str) -> None:
    async with run_cluster() as cluster:
        await cluster.publish(Stage.POD_ANNOTATED)
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        await cluster.stage(Stage.POD_ANNOTATED)
        older = await cluster.bucket.get(KEY)
        assert older is not None
        assert older.value is not None
        await cluster.publish(Stage.MULTUS_ATTACHED)
        cluster.running.reach_stage(Stage.MULTUS_ATTACHED)
        wanted = await cluster.stage(Stage.MULTUS_ATTACHED)
        if how == "wiped":
            cluster.bucket.restore({})
        elif how == "older":
            cluster.bucket.restore({KEY: older.value, str(StatusKey("gone", "vm", "0" * 11)): b"{}"})
        elif how == "foreign":
            await cluster.bucket.put(KEY, b"not ours")
        else:
            await cluster.bucket.delete(KEY)
        await asyncio.sleep(RELOAD_INTERVAL / CHECKS + 5)
        assert await cluster.stage(Stage.MULTUS_ATTACHED) == wanted
        assert [entry.key for entry in cluster.bucket.entries()] == [KEY]


async def test_restarted_projector_keeps_times_and_removes_obsolete_entries() -> None:
    broker = Broker()
    bus = MemoryBus(broker, log=structlog.get_logger())
    async with run_projector(bus) as first:
        await broker.until(lambda: CONSUMER in broker.consumers)
        await bus.publish(EVENTS[Stage.POD_ANNOTATED])
        first.reach_stage(Stage.POD_ANNOTATED)
        before = await first.wait_status(lambda nic_status: nic_status is not None and nic_status.since is not None)
    await bus.kv(BUCKET).put(str(StatusKey("default", "vm9", "0" * 11)), b"{}")
    async with run_projector(bus) as second:
        second.reach_stage(Stage.POD_ANNOTATED)
        await asyncio.sleep(1)
        assert await second.wait_status(lambda nic_status: nic_status is not None) == before
        assert [entry.key for entry in broker.buckets[BUCKET].entries()] == [KEY]


async def test_two_writers_converge_to_the_objects() -> None:
    broker = Broker()
    async with contextlib.AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(run_projector(MemoryBus(broker, log=structlog.get_logger()))) for _ in "12"
        ]
        for stage in EVENTS:
            for running in both:
                running.reach_stage(stage)
            await both[0].wait_status(
                lambda nic_status, stage=stage: nic_status is not None and nic_status.stage is stage
            )  # type: ignore[misc]


async def test_unchanged_status_is_not_written() -> None:
    async with run_cluster() as cluster:
        cluster.running.reach_stage(Stage.POD_ANNOTATED)
        await cluster.stage(Stage.POD_ANNOTATED, timed=False)
        found: KeyValueEntry | None = await cluster.bucket.get(KEY)
        for _ in range(3):
            cluster.running.reach_stage(Stage.POD_ANNOTATED)
            await asyncio.sleep(1)
        await asyncio.sleep(2 * RELOAD_INTERVAL)
        assert await cluster.bucket.get(KEY) == found


class SlowPurge(MemoryKeyValue):
    """A bucket with more markers of deleted keys than can be purged between two loads."""

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        yield KeyValueEntry("deleted", None, 1)
        async with contextlib.aclosing(super().watch(keys)) as entries:
            async for entry in entries:
                yield entry

    async def purge(self, key: str) -> None:
        await asyncio.sleep(2 * RELOAD_INTERVAL)


async def test_a_load_reports_what_has_changed_while_deleted_keys_are_purged() -> None:
    slow, changes = SlowPurge(Broker()), asyncio.Queue[str | None]()
    await slow.put("a", b"1")
    task = asyncio.create_task(StatusBucket(slow, changes.put_nowait, log=structlog.get_logger()).run())
    async with asyncio.timeout(4 * RELOAD_INTERVAL):
        assert await changes.get() is None
        slow.restore({"a": b"2"})
        assert await changes.get() == "a"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class CountedWatches(MemoryKeyValue):
    """A bucket that counts how often it is read."""

    watches = 0
    markers = 0

    async def state(self) -> BucketState:
        state = await super().state()
        return msgspec.structs.replace(state, stored=state.stored + self.markers)

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        self.watches += 1
        async with contextlib.aclosing(super().watch(keys)) as entries:
            async for entry in entries:
                yield entry


async def test_a_bucket_with_many_markers_of_deleted_keys_is_read_again_which_removes_them() -> None:
    counted, changes = CountedWatches(Broker()), asyncio.Queue[str | None]()
    bucket = StatusBucket(counted, changes.put_nowait, log=structlog.get_logger())
    task = asyncio.create_task(bucket.run())
    assert await changes.get() is None
    counted.markers = MAX_MARKERS
    await asyncio.sleep(3 * RELOAD_INTERVAL / CHECKS)
    assert counted.watches == 1
    counted.markers += 1
    while counted.watches == 1:  # noqa: ASYNC110
        await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_bucket_is_read_again_only_if_its_state_differs() -> None:
    counted, changes = CountedWatches(Broker()), asyncio.Queue[str | None]()
    await counted.put("vm1.a", b"1")
    bucket = StatusBucket(counted, changes.put_nowait, log=structlog.get_logger())
    task = asyncio.create_task(bucket.run())
    minute = RELOAD_INTERVAL / CHECKS
    assert await changes.get() is None
    await bucket.put("vm1.b", b"2")
    await counted.put("vm1.a", b"changed by another writer")
    await asyncio.sleep(5 * minute)
    await bucket.remove("vm1.b")
    await asyncio.sleep(minute)
    assert (counted.watches, changes.get_nowait(), changes.empty()) == (1, "vm1.a", True)
    counted.restore({})
    await asyncio.sleep(2 * minute)
    assert (counted.watches, bucket.list_vmis()) == (2, [])
    await asyncio.sleep(RELOAD_INTERVAL + 1)
    assert counted.watches == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
