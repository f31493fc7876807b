"""A projector over caches that a test fills, on whatever bus."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

import msgspec
import structlog

from schemas.encoding import StatusKey
from schemas.hotplug_status import BUCKET, InterfaceHotplugStatus, StatusEntry, entry_of
from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash, pod_interface
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.operations import Operation, encode, operation_key
from schemas.stages import OperationKind, Stage, stage_path
from services.common.bus.protocol import Bus, BusUnavailable
from services.controller.projector import Projector
from tests.support import objects
from tests.support.spans import recording_telemetry

Key = tuple[str, str]
T = TypeVar("T", Pod, VirtualMachine, VirtualMachineInstance)
VM1 = ("default", "vm1")
PLUG = Operation("op", OperationKind.PLUG, "iface1", requested_at="2026-01-01T00:00:00.000Z")


class Store(Generic[T]):
    """Objects as a reflector has them."""

    def __init__(self, *found: T) -> None:
        self.found = {(one.metadata.namespace, one.metadata.name): one for one in found}

    def get(self, namespace: str, name: str) -> T | None:
        """One of them."""
        return self.found.get((namespace, name))

    def items(self) -> Iterable[T]:
        """All of them."""
        return list(self.found.values())

    def keys(self) -> Iterable[Key]:
        """Their keys."""
        return list(self.found)


def at_stage(stage: Stage, operation: Operation = PLUG) -> tuple[VirtualMachineInstance, Pod]:
    """A VMI and its pod where one plug has come to a stage."""
    reached = stage_path(OperationKind.PLUG).index(stage)
    link, name = pod_interface(operation.interface), operation.interface
    annotations = {}
    if reached >= 1:
        annotations[NETWORKS] = encode_networks([NetworkSelectionElement("net1", "default", interface=link)])
    if reached >= 2:
        annotations[NETWORK_STATUS] = encode_network_status([NetworkStatus("default/net1", link)])
    status = [{"name": name, "infoSource": "domain, multus-status"}] if reached >= 3 else None
    noted = {operation_key(name): encode(operation)}
    return objects.vmi(objects.nic(name), status=status, annotations=noted), objects.pod(annotations)


class Projecting:
    """A running projector, its caches and its bucket."""

    def __init__(self, bus: Bus, reload: float) -> None:
        self.bus = bus
        self.vms: Store[VirtualMachine] = Store()
        self.vmis: Store[VirtualMachineInstance] = Store()
        self.pods: Store[Pod] = Store()
        self.telemetry, _ = recording_telemetry("controller")
        self.projector = Projector(
            bus, self.vms, self.vmis, self.pods, self.telemetry, structlog.get_logger(), reload=reload
        )

    def see(self, vmi: VirtualMachineInstance, pod: Pod) -> None:
        """Objects have changed."""
        for store, found in ((self.vmis, vmi), (self.pods, pod)):
            store.found[found.metadata.namespace, found.metadata.name] = found  # type: ignore[index]
        self.projector.look(VM1)

    def climb(self, stage: Stage, operation: Operation = PLUG) -> None:
        """The one plug comes to a stage, as objects tell it."""
        self.see(*at_stage(stage, operation))

    def gone(self) -> None:
        """The interface has left the spec."""
        self.see(objects.vmi(), objects.pod())

    async def entry(self, interface: str = "iface1") -> StatusEntry | None:
        """What the bucket holds for an interface."""
        found = await self.bus.kv(BUCKET).get(str(StatusKey(*VM1, interface_hash(interface))))
        return entry_of(found.value) if found is not None else None

    async def nic_status(
        self, true: Callable[[InterfaceHotplugStatus | None], bool], timeout: float = 10.0
    ) -> InterfaceHotplugStatus | None:
        """The rung in the bucket, once it is as wanted."""
        found: InterfaceHotplugStatus | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    with contextlib.suppress(BusUnavailable):
                        held = await self.entry()
                        found = held.status if held is not None else None
                        if true(found):
                            return found
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"it did not come to pass; there is {found}") from None


@contextlib.asynccontextmanager
async def projecting(bus: Bus, *, reload: float = 60.0) -> AsyncIterator[Projecting]:
    """A projector while the context is open."""
    made = Projecting(bus, reload)
    task = asyncio.create_task(made.projector.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def other(operation: Operation = PLUG) -> Operation:
    """Another operation of the same interface."""
    return msgspec.structs.replace(operation, id="op2")
