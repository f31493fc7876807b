"""The handler beside KubeVirt: it publishes what the guests got and released, and writes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, unplug_key
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.cri.client import CriClient
from services.common.kube.client import Kube
from services.common.netlink.pool import NetnsPool
from services.handler.role import Handler
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.kube.node_kube import EVENTS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.telemetry.spans import recording_telemetry

VMIS = "virtualmachineinstances"
PLUG = Operation("plug", OperationKind.PLUG, "blue", requested_at="2025-11-28T12:00:00Z", vm=objects.VM_UID)
UNPLUG = msgspec.structs.replace(PLUG, id="unplug", kind=OperationKind.UNPLUG)
PLUGGED = {operation_key("blue"): encode_annotation(PLUG)}
ENTRIES = PLUGGED | {unplug_key("blue"): encode_annotation(UNPLUG)}
BLUE, ABSENT = objects.nic("blue"), objects.nic("blue", state="absent")
ATTACHED = [{"name": "blue", "infoSource": "multus-status"}]
IN_GUEST = [{"name": "blue", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}]
RELEASED = [{"name": "blue", "infoSource": "multus-status", "mac": "02:00:00:00:00:02"}]


def no_driver(*_args: Any) -> Any:
    raise AssertionError("the handler connects to no guest of KubeVirt")


@dataclass
class Node:
    """The API server, the bus and the handler."""

    kube: FakeKube
    bus: MemoryBus
    role: Handler

    async def show(self, *nics: Any, **fields: Any) -> None:
        """Let KubeVirt write the VMI, and wait until the handler has seen it."""
        document = msgspec.to_builtins(objects.vmi(*nics, owned=True, **fields))
        meta = self.kube.put(VMIS, "default", "vm1", **document)["metadata"]
        while self.role.vmis.version("default", "vm1") != meta["resourceVersion"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        while self.role.queue.in_flight or self.role.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def stages(self) -> list[tuple[Stage, str]]:
        """Return stage and operation of the published events."""
        return [(event.stage, event.operation.id) for event in self.bus.published]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    telemetry, _ = recording_telemetry("handler")
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(serving_kube(FakeKube()))
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        client = await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        await stack.enter_async_context(client)
        cri = CriClient(str(tmp_path / "cri.sock"), telemetry)
        stack.push_async_callback(cri.close)
        netns = NetnsPool()
        stack.callback(netns.close)
        bus = MemoryBus(role="handler", node=objects.NODE, telemetry=telemetry)
        role = Handler(
            role_context("handler", client, bus, telemetry, node=objects.NODE),
            cri=cri,
            netns=netns,
            make_driver=no_driver,
            tap_owner=0,
            is_owner=lambda: False,
            beside=lambda: capabilities("1.9.0"),
        )
        status = encode_network_status([NetworkStatus("default/net1", pod_interface("blue"))])
        pod = msgspec.to_builtins(objects.pod({NETWORK_STATUS: status}))
        kube.put(PODS, "default", pod["metadata"]["name"], **pod)
        tasks = [asyncio.create_task(work()) for work in (role.vmis.run, role.pods.run, role.queue.run)]
        await role.pods.synced.wait()
        await role.vmis.synced.wait()
        yield Node(kube, bus, role)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_the_guests_part_of_plug_and_unplug_is_published_once(node: Node) -> None:
    await node.show(BLUE, status=ATTACHED, annotations=PLUGGED)
    assert node.stages() == []
    for _ in range(2):
        await node.show(BLUE, status=IN_GUEST, annotations=PLUGGED)
    assert node.stages() == [(Stage.GUEST_ATTACHED, "plug")]
    # The unplug's entry is written before the template says `absent`.
    await node.show(BLUE, status=IN_GUEST, annotations=ENTRIES)
    await node.show(ABSENT, status=IN_GUEST, annotations=ENTRIES)
    # At the hand-over of a migration the status is incomplete.
    await node.show(ABSENT, status=RELEASED, annotations=ENTRIES, migrationState={"completed": False})
    assert node.stages() == [(Stage.GUEST_ATTACHED, "plug")]
    await node.show(ABSENT, status=RELEASED, annotations=ENTRIES)
    await node.show(annotations=ENTRIES)
    assert node.stages() == [(Stage.GUEST_ATTACHED, "plug"), (Stage.GUEST_DETACHED, "unplug")]


async def test_a_vm_at_rest_costs_a_handler_that_starts_nothing(node: Node) -> None:
    await node.show(BLUE, status=IN_GUEST, annotations=PLUGGED)
    assert (node.stages(), node.kube.counted("PATCH", VMIS), node.kube.of(EVENTS)) == ([], 0, [])
