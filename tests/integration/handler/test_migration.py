"""A live migration in the middle of a plug or an unplug: two nodes' handlers and the controller, one VMI.

KubeVirt moves the VMI; here the test does, by what its status then says. The networks role is played, too. Guests are
doubles, so a domain on the target begins without the cards of the source.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from schemas.events import GuestAttached, MultusAttached, ObjectRef
from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import pod_interface
from schemas.networks import NETWORKS, NetworkSelectionElement, encode_networks, parse_networks
from schemas.operations import operation_of
from schemas.stages import OperationKind
from services.common.domain.hotplug_status import fold
from services.common.domain.operations import acting_pod
from services.common.kube.client import Kube
from services.controller.role import Controller
from services.handler.pod_network import link_names
from tests.support.bus import MemoryBus
from tests.support.handler_node import IP, VMIS, Node, handler_node, operation
from tests.support.node_kube import PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.objects import NODE, POD_UID, VMI_UID, pod
from tests.support.qemu import double
from tests.support.spans import recording_telemetry

TARGET, TARGET_UID = "node2", "55555555-5555-4555-8555-555555555555"
KEY = ("default", "vm1")
NAMES = link_names(pod_interface("iface1"))
WIRED = {"lo", NAMES.nic, NAMES.bridged, NAMES.bridge, NAMES.tap}


@asynccontextmanager
async def guest(folder: Path) -> AsyncIterator[None]:
    """A guest that holds on to its cards."""
    async with double(folder / VMI_UID / "qmp.sock", folder / "pod", ports=2):
        yield


@dataclass
class Cluster:
    """Two nodes and a controller; the VMI runs on the source until it is moved."""

    kube: FakeKube
    source: Node
    target: Node
    controller: Controller

    def vmi(self) -> VirtualMachineInstance:
        """The VMI as it is."""
        return msgspec.convert(self.kube.objects[VMIS, *KEY], VirtualMachineInstance)

    def links(self, node: Node) -> list[str | None]:
        """What the annotation of a node's pod lists."""
        text = self.kube.annotations(PODS, "default", node.pod).get(NETWORKS)
        return [element.requested_interface for element in parse_networks(text)]

    def reason(self) -> str | None:
        """Why the NIC is where it is, as the user reads it."""
        vmi, pods = self.vmi(), [msgspec.convert(found, Pod) for found in self.kube.of(PODS)]
        (nic_status,) = fold(vmi, acting_pod(vmi, pods))
        return nic_status.reason

    def launch(self, node: Node, **annotations: str) -> None:
        """The launcher pod of a node."""
        document = msgspec.to_builtins(pod(annotations, name=node.pod, uid=node.pod_uid))
        document["spec"]["nodeName"] = node.name
        self.kube.put(PODS, "default", node.pod, **document)

    def begin(self, *, with_nic: bool = False) -> None:
        """The migration begins: the target's pod is there, and the status says so.

        :param with_nic: the pod was made while the spec still wanted the NIC, and its network is attached.
        """
        annotations = {}
        if with_nic:
            element = NetworkSelectionElement("net1", "default", interface=NAMES.nic)
            annotations[NETWORKS] = encode_networks([element])
        self.launch(self.target, **annotations)
        if with_nic:
            self.attach(self.target)
        state = {"migrationUid": "m", "targetNode": TARGET, "targetPod": self.target.pod}
        self.say(activePods={POD_UID: NODE, TARGET_UID: TARGET}, migrationState=state)

    def finish(self) -> None:
        """The guest runs on the target, and the source's pod is gone."""
        state = {**self.kube.objects[VMIS, *KEY]["status"]["migrationState"], "completed": True}
        self.say(nodeName=TARGET, activePods={TARGET_UID: TARGET}, migrationState=state)
        self.kube.delete(PODS, "default", self.source.pod)

    def attach(self, node: Node) -> None:
        """What CNI and the networks role do on a node."""
        node.attach_pod_nic("iface1", IP)
        node.show_network_status("iface1")

    async def settled(self) -> None:
        """Wait until controller and both handlers have seen everything and looked again."""
        for reflector, plural in ((self.controller.vmis, VMIS), (self.controller.pods, PODS)):
            for meta in [found["metadata"] for found in self.kube.of(plural)]:
                while reflector.version("default", meta["name"]) != meta["resourceVersion"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        self.controller.look_at_all()
        while self.controller.queue.in_flight or self.controller.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for node in (self.source, self.target):
            await node.settled()

    async def until_left(self) -> None:
        """Wait until the source's handler has let go of the guest."""
        async with asyncio.timeout(5):
            while self.source.role.sessions.has(KEY):
                await self.source.settled()

    def say(self, **changes: Any) -> None:
        """Change the VMI's status."""
        known = self.kube.objects[VMIS, *KEY]
        meta = {key: value for key, value in known["metadata"].items() if key not in ("name", "namespace")}
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
        role = Controller(client, MemoryBus(role="controller"), telemetry, structlog.get_logger())
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
async def test_a_plug_that_a_migration_overtakes_is_finished_on_the_target(cluster: Cluster, reached: str) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.wish()
    await source.settled()
    if reached == "requested":
        cluster.begin()
    source.wish("iface1", operations=(operation("iface1"),))
    if reached != "requested":
        await kube.until(lambda: cluster.links(source) == [NAMES.nic])
        if reached == "pod-annotated":
            cluster.begin()
        # Its own business, whatever happens to the VMI: it knows of pods only.
        cluster.attach(source)
    if reached == "guest-attached":
        await kube.until(lambda: "domain" in source.status("iface1").get("infoSource", ""))
        cluster.begin()
    before = source.links(), cluster.vmi().status.interfaces

    await cluster.settled()
    assert (source.links(), cluster.vmi().status.interfaces) == before
    assert cluster.links(target) == []
    assert not target.role.sessions.has(KEY), "a guest that is not here yet is nobody's to ask"
    assert cluster.reason() == (None if reached == "guest-attached" else "Migrating")

    cluster.finish()
    await kube.until(lambda: cluster.links(target) == [NAMES.nic])
    cluster.attach(target)
    await kube.until(lambda: "multus-status" in target.status("iface1").get("infoSource", ""))
    events = await target.until_published(lambda found: any(isinstance(event, GuestAttached) for event in found))
    assert {(event.operation.id, event.node) for event in events} == {("op-plug-iface1", TARGET)}
    assert target.links() == WIRED
    await cluster.until_left()
    assert source.links() == before[0], "what the pod takes with it is nobody's to undo"

    # A message of the source's time comes late.
    late = MultusAttached(
        operation=operation("iface1"),
        vmi=ObjectRef(*KEY, VMI_UID),
        pod=ObjectRef("default", source.pod, POD_UID),
        node=NODE,
        pod_interface=NAMES.nic,
    )
    looks = source.role.looks
    await MemoryBus(source.bus.broker, role="networks", node=NODE).publish(late)
    await source.until(lambda: source.role.looks > looks)
    assert not source.role.sessions.has(KEY)
    assert source.links() == before[0]


@pytest.mark.parametrize(
    ("released", "with_nic"),
    [(False, False), (False, True), (True, True)],
    ids=["the target's pod never had it", "the target's pod was made before", "released on the source only"],
)
async def test_an_unplug_that_a_migration_overtakes_is_finished_on_the_target(
    cluster: Cluster, released: bool, with_nic: bool
) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.wish("iface1", operations=(operation("iface1"),))
    await kube.until(lambda: cluster.links(source) == [NAMES.nic])
    cluster.attach(source)
    await kube.until(lambda: "domain" in source.status("iface1").get("infoSource", ""))
    unplug = operation("iface1", kind=OperationKind.UNPLUG)
    if released:
        # The source's handler had just said so when the migration began.
        cluster.begin(with_nic=with_nic)
        source.wish(absent=("iface1",), operations=(msgspec.structs.replace(unplug, released=POD_UID),))
    else:
        source.wish(absent=("iface1",), operations=(unplug,))
        await kube.until(lambda: "iface1" in source.role.sessions.of(VMI_UID, KEY, POD_UID).leaving)
        cluster.begin(with_nic=with_nic)
    listed = [NAMES.nic] if with_nic else []

    await cluster.settled()
    assert source.links() == WIRED
    assert cluster.links(source) == [NAMES.nic]
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
        target.show_network_status()
    await kube.until(lambda: [item.name for item in cluster.vmi().spec.interface_items()] == ["default"])
    assert operation_of(cluster.vmi().metadata.annotations, "iface1") is None
    assert not cluster.source.status("iface1")


async def test_a_migration_that_fails_goes_on_where_it_was(cluster: Cluster) -> None:
    kube, source, target = cluster.kube, cluster.source, cluster.target
    source.wish()
    await source.settled()
    cluster.begin()
    source.wish("iface1", operations=(operation("iface1"),))
    await cluster.settled()
    assert cluster.links(source) == []
    cluster.say(activePods={POD_UID: NODE}, migrationState={"completed": True, "failed": True})
    kube.delete(PODS, "default", target.pod)
    await kube.until(lambda: cluster.links(source) == [NAMES.nic])
    cluster.attach(source)
    await kube.until(lambda: "domain" in source.status("iface1").get("infoSource", ""))
    assert source.links() == WIRED
    assert target.links() == {"lo"}
