"""Run a projector over caches that a test fills, on any bus."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from schemas.bus.encoding import StatusKey
from schemas.bus.hotplug_status import BUCKET, InterfaceHotplugStatus, StatusEntry, decode_entry
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind, Stage, stage_path
from services.common.bus.protocol import Bus, BusUnavailable
from services.controller.projector import Projector
from services.controller.status_bucket import RELOAD_INTERVAL
from tests.support.contexts import role_context
from tests.support.observed import objects
from tests.support.telemetry.spans import recording_telemetry

Key = tuple[str, str]
T = TypeVar("T", Pod, VirtualMachine, VirtualMachineInstance)
VM1 = ("default", "vm1")
PLUG = Operation("op", OperationKind.PLUG, "iface1", requested_at="2026-01-01T00:00:00.000Z")


class FakeCache(Generic[T]):
    """A cache that a test fills, with the methods of a reflector."""

    def __init__(self, *items: T) -> None:
        self.objects_by_key = {(item.metadata.namespace, item.metadata.name): item for item in items}

    def get(self, namespace: str, name: str) -> T | None:
        """Return an object; ``None`` when it is missing."""
        return self.objects_by_key.get((namespace, name))

    def indexed(self, _value: str, _limit: int | None = None) -> Iterable[T]:
        """Return all objects, which are those of one VMI."""
        return list(self.objects_by_key.values())

    def keys(self) -> Iterable[Key]:
        """Return the keys of all objects."""
        return list(self.objects_by_key)


def at_stage(stage: Stage, operation: Operation = PLUG) -> tuple[VirtualMachineInstance, Pod]:
    """Return a VMI and its pod with one plug at a stage."""
    reached = stage_path(OperationKind.PLUG).index(stage)
    link, name = pod_interface(operation.interface), operation.interface
    annotations = {}
    if reached >= 1:
        annotations[NETWORKS] = encode_networks([NetworkSelectionElement("net1", "default", interface=link)])
    if reached >= 2:
        annotations[NETWORK_STATUS] = encode_network_status([NetworkStatus("default/net1", link)])
    status = [{"name": name, "infoSource": "domain, multus-status"}] if reached >= 3 else None
    operations = {operation_key(name): encode_annotation(operation)}
    return objects.vmi(objects.nic(name), status=status, annotations=operations), objects.pod(annotations)


class RunningProjector:
    """A running projector, its caches and its bucket."""

    def __init__(self, bus: Bus, reload: float) -> None:
        self.bus = bus
        self.vms: FakeCache[VirtualMachine] = FakeCache()
        self.vmis: FakeCache[VirtualMachineInstance] = FakeCache()
        self.pods: FakeCache[Pod] = FakeCache()
        self.telemetry, _ = recording_telemetry("controller")
        self.projector = Projector(
            role_context("controller", None, bus, self.telemetry), self.vms, self.vmis, self.pods, reload=reload
        )

    def set_objects(self, vmi: VirtualMachineInstance, pod: Pod) -> None:
        """Put the objects into the caches and queue the VM."""
        for cache, item in ((self.vmis, vmi), (self.pods, pod)):
            cache.objects_by_key[item.metadata.namespace, item.metadata.name] = item  # type: ignore[index]
        self.projector.requeue(VM1)

    def reach_stage(self, stage: Stage, operation: Operation = PLUG) -> None:
        """Set the objects to the state in which the only plug has reached a stage."""
        self.set_objects(*at_stage(stage, operation))

    def remove_interface(self) -> None:
        """Set the objects to the state without the interface."""
        self.set_objects(objects.vmi(), objects.pod())

    async def entry(self, interface: str = "iface1") -> StatusEntry | None:
        """Return the bucket's entry of an interface."""
        found = await self.bus.kv(BUCKET).get(str(StatusKey(*VM1, interface_hash(interface))))
        return decode_entry(found.value) if found is not None else None

    async def wait_status(
        self, condition: Callable[[InterfaceHotplugStatus | None], bool], timeout: float = 45.0
    ) -> InterfaceHotplugStatus | None:
        """Wait until the status in the bucket meets a condition, and return it."""
        nic_status: InterfaceHotplugStatus | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    with contextlib.suppress(BusUnavailable):
                        stored = await self.entry()
                        nic_status = stored.status if stored is not None else None
                        if condition(nic_status):
                            return nic_status
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"the status does not meet the condition: {nic_status}") from None


@contextlib.asynccontextmanager
async def run_projector(bus: Bus, *, reload: float = RELOAD_INTERVAL) -> AsyncIterator[RunningProjector]:
    """Run a projector while the context is open."""
    running = RunningProjector(bus, reload)
    task = asyncio.create_task(running.projector.run())
    try:
        yield running
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def other_operation(operation: Operation = PLUG) -> Operation:
    """Return another operation of the same interface."""
    return msgspec.structs.replace(operation, id="op2")
