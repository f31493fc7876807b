"""A live migration during a plug or an unplug: two nodes' handlers and the controller, one VMI.

KubeVirt moves the VMI; here the test does, by changing its status, and it acts for the networks role too. Guests are
doubles, so the domain on the target starts without the devices of the source.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.bus.events import GuestAttached, MultusAttached, ObjectRef
from schemas.kubernetes.kubevirt import NODE_LABEL, TARGET_NODE_LABEL
from schemas.kubernetes.networks import NETWORKS, NetworkSelectionElement, encode_networks, parse_networks
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import read_operation
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.domain.nic import link_names, parse_nics
from services.common.domain.operations import find_acting_pod
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.kube.client import Kube
from services.controller.role import Controller
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.guest.qemu import double
from tests.support.kube.node_kube import PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node.handler_node import IP, VMIS, Node, handler_node, operation
from tests.support.observed.objects import NODE, POD_UID, VMI_UID, pod
from tests.support.telemetry.spans import recording_telemetry

TARGET, TARGET_UID = "node2", "55555555-5555-4555-8555-555555555555"
KEY = ("default", "vm1")
NAMES = link_names(pod_interface("iface1"))
SET_UP = {"lo", NAMES.pod_interface, NAMES.bridged, NAMES.bridge, NAMES.tap}


@asynccontextmanager
async def guest(folder: Path) -> AsyncIterator[None]:
    """Run a guest that does not complete an unplug."""
    async with double(folder / VMI_UID / "qmp.sock", folder / "pod", ports=2):
        yield


@dataclass
class Cluster:
    """Two nodes and a controller. The VMI runs on the source until it is moved."""

    kube: FakeKube
    source: Node
    target: Node
    controller: Controller

    def vmi(self) -> VirtualMachineInstance:
        """Return the VMI."""
        return msgspec.convert(self.kube.objects[VMIS, *KEY], VirtualMachineInstance)

    def links(self, node: Node) -> list[str | None]:
        """Return the pod interfaces in the annotation of a node's pod."""
        text = self.kube.annotations(PODS, "default", node.pod).get(NETWORKS)
        return [element.requested_interface for element in parse_networks(text)]

    def reason(self) -> str | None:
        """Return the reason in the NIC's hot-plug status."""
        vmi, pods = self.vmi(), [msgspec.convert(found, Pod) for found in self.kube.of(PODS)]
        (nic_status,) = derive_statuses(parse_nics(vmi, find_acting_pod(vmi, pods)))
        return nic_status.reason

    def launch(self, node: Node, **annotations: str) -> None:
        """Create the launcher pod of a node."""
        document = msgspec.to_builtins(pod(annotations, name=node.pod, uid=node.pod_uid))
        document["spec"]["nodeName"] = node.name
        self.kube.put(PODS, "default", node.pod, **document)

    def start(self, *, with_nic: bool = False) -> None:
        """Start the migration: create the target's pod and set the status.

        :param with_nic: the pod was created while the spec had the NIC, and its network is attached.
        """
        annotations = {}
        if with_nic:
            element = NetworkSelectionElement("net1", "default", interface=NAMES.pod_interface)
            annotations[NETWORKS] = encode_networks([element])
        self.launch(self.target, **annotations)
        if with_nic:
            self.attach(self.target)
        state = {"migrationUid": "m", "targetNode": TARGET, "targetPod": self.target.pod}
        self.set_status(
            {TARGET_NODE_LABEL: TARGET}, activePods={POD_UID: NODE, TARGET_UID: TARGET}, migrationState=state
        )

    def finish(self) -> None:
        """Finish the migration: the guest runs on the target, and the source's pod is gone."""
        state = {**self.kube.objects[VMIS, *KEY]["status"]["migrationState"], "completed": True}
        self.set_status({NODE_LABEL: TARGET}, nodeName=TARGET, activePods={TARGET_UID: TARGET}, migrationState=state)
        self.kube.delete(PODS, "default", self.source.pod)

    def attach(self, node: Node) -> None:
        """Attach the pod interface as CNI and the networks role do."""
        node.attach_pod_nic("iface1", IP)
        node.put_network_status("iface1")

    async def settled(self) -> None:
        """Wait until the controller and both handlers have seen every change and have run again."""
        for reflector, plural in ((self.controller.vmis, VMIS), (self.controller.pods, PODS)):
            for meta in [found["metadata"] for found in self.kube.of(plural)]:
                while reflector.version("default", meta["name"]) != meta["resourceVersion"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        self.controller.requeue_all()
        while self.controller.queue.in_flight or self.controller.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for node in (self.source, self.target):
            await node.settled()

    async def until_left(self) -> None:
        """Wait until the source's handler has closed its session of the guest."""
        async with asyncio.timeout(45):
            while self.source.role.sessions.has(KEY):
                await self.source.settled()

    def set_status(self, labels: dict[str, str] | None = None, **changes: Any) -> None:
        """Change the VMI's status and labels, as KubeVirt does in one write."""
        known = self.kube.objects[VMIS, *KEY]
        meta = {key: value for key, value in known["metadata"].items() if key not in ("name", "namespace")}
        meta["labels"] = {**meta.get("labels", {}), **(labels or {})}
        self.kube.put(VMIS, *KEY, metadata=meta, spec=known["spec"], status={**known["status"], **changes})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    telemetry, _ = recording_telemetry("controller")
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(serving_kube(FakeKube()))
        source = await stack.enter_async_context(handler_node(guest, scripted_agent=False, kube=kube))
        target = await stack.enter_async_context(
            handler_node(guest, scripted_agent=False, kube=kube, name=TARGET, pod_uid=TARGET_UID)
        )
        config = write_kubeconfig(source.folder / "controller", kube.url)
        client = await stack.enter_async_context(
            await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        )
        context = role_context("controller", client, MemoryBus(role="controller"), telemetry)
        role = Controller(context, is_owner=lambda: True, is_enabled=lambda: True)
        found = Cluster(kube, source, target, role)
        found.launch(source)
        async with running(role):
            yield found


@asynccontextmanager
async def running(role: Controller) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work()) for work in (role.vms.run, role.vmis.run, role.pods.run, role.queue.run)]
    for synced in (role.vms.synced, role.vmis.synced, role.pods.synced):
        await synced.wait()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("reached", ["requested", "pod-annotated", "guest-attached"])
async def test_a_plug_during_a_migration_is_finished_on_the_target(cluster: Cluster, reached: str) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.put_vmi()
    await source.settled()
    if reached == "requested":
        cluster.start()
    source.put_vmi("iface1", operations=(operation("iface1"),))
    if reached != "requested":
        await kube.until(lambda: cluster.links(source) == [NAMES.pod_interface])
        if reached == "pod-annotated":
            cluster.start()
        # The networks role handles pods only, whatever happens to the VMI.
        cluster.attach(source)
    if reached == "guest-attached":
        # The guest agent comes last; after it nothing of the status changes any more.
        await kube.until(lambda: "guest-agent" in source.status("iface1").get("infoSource", ""))
        cluster.start()
    before = source.links(), cluster.vmi().status.interfaces

    await cluster.settled()
    assert (source.links(), cluster.vmi().status.interfaces) == before
    assert cluster.links(target) == []
    assert not target.role.sessions.has(KEY), "the target does not connect to a guest that does not run there yet"
    assert cluster.reason() == (None if reached == "guest-attached" else "Migrating")

    cluster.finish()
    await kube.until(lambda: cluster.links(target) == [NAMES.pod_interface])
    cluster.attach(target)
    await kube.until(lambda: "multus-status" in target.status("iface1").get("infoSource", ""))
    events = await target.until_published(lambda found: any(isinstance(event, GuestAttached) for event in found))
    assert {(event.operation.id, event.node) for event in events} == {("op-plug-iface1", TARGET)}
    assert target.links() == SET_UP
    await cluster.until_left()
    assert source.links() == before[0], "the links of a pod that is gone are not torn down"

    # An event from before the migration arrives late.
    late = MultusAttached(
        operation=operation("iface1"),
        vmi=ObjectRef(*KEY, VMI_UID),
        pod=ObjectRef("default", source.pod, POD_UID),
        node=NODE,
        pod_interface=NAMES.pod_interface,
    )
    runs = source.role.runs
    await MemoryBus(source.bus.broker, role="networks", node=NODE).publish(late)
    await source.until(lambda: source.role.runs > runs)
    assert not source.role.sessions.has(KEY)
    assert source.links() == before[0]


@pytest.mark.parametrize(
    ("released", "with_nic"),
    [(False, False), (False, True), (True, True)],
    ids=["not attached on the target", "attached on the target", "released on the source only"],
)
async def test_an_unplug_during_a_migration_is_finished_on_the_target(
    cluster: Cluster, released: bool, with_nic: bool
) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.put_vmi("iface1", operations=(operation("iface1"),))
    await kube.until(lambda: cluster.links(source) == [NAMES.pod_interface])
    cluster.attach(source)
    await kube.until(lambda: "domain" in source.status("iface1").get("infoSource", ""))
    unplug = operation("iface1", kind=OperationKind.UNPLUG)
    if released:
        # The source's handler released it right before the migration started.
        cluster.start(with_nic=with_nic)
        source.put_vmi(absent=("iface1",), operations=(msgspec.structs.replace(unplug, released=POD_UID),))
    else:
        source.put_vmi(absent=("iface1",), operations=(unplug,))
        unplugs = source.role.sessions.open(VMI_UID, KEY, POD_UID).unplugs
        await kube.until(lambda: "iface1" in unplugs and unplugs["iface1"].unplug.requests is not None)
        cluster.start(with_nic=with_nic)
    listed = [NAMES.pod_interface] if with_nic else []

    await cluster.settled()
    assert source.links() == SET_UP
    assert cluster.links(source) == [NAMES.pod_interface]
    assert cluster.links(target) == listed
    assert not target.role.sessions.has(KEY)
    assert cluster.reason() == "Migrating"

    cluster.finish()
    if with_nic:
        found = await target.until_released("iface1")
        assert found.id == unplug.id
        await kube.until(lambda: cluster.links(target) == [])
        assert "lo" in target.links()
        assert not target.links() & {NAMES.bridge, NAMES.tap, NAMES.bridged}
        target.put_network_status()
    await kube.until(lambda: [item.name for item in cluster.vmi().spec.interface_items()] == ["default"])
    assert read_operation(cluster.vmi().metadata.annotations, "iface1") is None
    assert not cluster.source.status("iface1")


async def test_after_a_failed_migration_the_source_continues(cluster: Cluster) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.put_vmi()
    await source.settled()
    cluster.start()
    source.put_vmi("iface1", operations=(operation("iface1"),))
    await cluster.settled()
    assert cluster.links(source) == []
    cluster.set_status(activePods={POD_UID: NODE}, migrationState={"completed": True, "failed": True})
    kube.delete(PODS, "default", target.pod)
    await kube.until(lambda: cluster.links(source) == [NAMES.pod_interface])
    cluster.attach(source)
    await kube.until(lambda: "domain" in source.status("iface1").get("infoSource", ""))
    assert source.links() == SET_UP
    assert target.links() == {"lo"}
