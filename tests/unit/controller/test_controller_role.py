"""The controller as a role: watches in, patches and events out, against a scripted Kubernetes API."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.encoding import StatusKey
from schemas.hotplug_status import BUCKET, StatusEntry, entry_of
from schemas.kube import VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.networks import NETWORKS, parse_networks
from schemas.operations import Operation, encode, operation_key, operation_of
from schemas.stages import OperationKind, Stage
from services.common.kube.client import Kube
from services.common.kube.installations import Installations
from services.controller.role import Controller
from tests.support import objects
from tests.support.bus import MemoryBus
from tests.support.node_kube import EVENTS, PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.spans import named, recording_telemetry

VMS, VMIS, KUBEVIRTS = "virtualmachines", "virtualmachineinstances", "kubevirts"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PLUG = Operation("plug", OperationKind.PLUG, "iface1", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")


class Webhook(FakeKube):
    """An API server with a webhook that refuses some interfaces."""

    def _json_patched(self, key: Any, ops: list[Any]) -> Any:
        if key[0] == VMIS and any("refused" in str(op.get("value")) for op in ops if op["op"] == "add"):
            raise Refused(403, "Forbidden", "the webhook says no")
        return super()._json_patched(key, ops)


@dataclass
class Cluster:
    """The API server and the running role."""

    kube: FakeKube
    bus: MemoryBus
    spans: InMemorySpanExporter
    client: Kube
    role: Controller
    switches: dict[str, bool] = field(default_factory=lambda: {"acting": True, "enabled": True})

    def put(self, plural: str, found: VirtualMachine | VirtualMachineInstance | Any) -> None:
        """Create or replace an object."""
        document = msgspec.to_builtins(found)
        meta = document["metadata"]
        self.kube.put(plural, meta["namespace"], meta["name"], **document)

    def vmi(self) -> VirtualMachineInstance:
        """The VMI as it is."""
        return msgspec.convert(self.kube.objects[VMIS, "default", "vm1"], VirtualMachineInstance)

    def names(self) -> list[str]:
        """The interfaces of the VMI."""
        return [interface.name for interface in self.vmi().spec.interface_items()]

    def links(self) -> list[str | None]:
        """What the pod's annotation lists."""
        text = self.kube.annotations(PODS, "default", "virt-launcher-vm1-abcde").get(NETWORKS)
        return [element.requested_interface for element in parse_networks(text)]

    async def idle(self) -> None:
        """Wait until everything was seen and looked at."""
        for reflector, plural in ((self.role.vms, VMS), (self.role.vmis, VMIS), (self.role.pods, PODS)):
            for meta in [found["metadata"] for found in self.kube.of(plural)]:
                while reflector.version("default", meta["name"]) != meta["resourceVersion"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        while self.role.queue.in_flight or self.role.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def stages(self) -> list[tuple[Stage, str]]:
        """What was published."""
        return [(event.stage, event.operation.interface) for event in self.bus.published]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    telemetry, spans = recording_telemetry("controller")
    log = structlog.get_logger()
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(serving_kube(Webhook()))
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        client = await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        await stack.enter_async_context(client)
        bus = MemoryBus(role="controller", node="_", telemetry=telemetry, log=log)
        switches = {"acting": True, "enabled": True}
        role = Controller(
            client,
            bus,
            telemetry,
            log,
            acting=lambda: switches["acting"],
            enabled=lambda: switches["enabled"],
        )
        work = (role.vms.run, role.vmis.run, role.pods.run, role.lead)
        tasks = [asyncio.create_task(job()) for job in work]
        for synced in (role.vms.synced, role.vmis.synced, role.pods.synced):
            await synced.wait()
        yield Cluster(kube, bus, spans, client, role, switches)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_wish_of_the_template_reaches_the_pod_in_the_trace_of_its_request(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True, annotations={"a": "b"}))
    cluster.put(VMS, objects.vm(objects.nic("iface1"), annotations={operation_key("iface1"): encode(PLUG)}))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    await cluster.idle()
    assert cluster.names() == ["default", "iface1"]
    assert cluster.stages() == [(Stage.REQUESTED, "iface1"), (Stage.POD_ANNOTATED, "iface1")]
    assert {event.operation for event in cluster.bus.published} == {PLUG}
    for name in ("controller request iface1", "controller annotate virt-launcher-vm1-abcde"):
        span = named(cluster.spans.get_finished_spans(), name)
        assert format(span.context.trace_id, "032x") == TRACE


async def test_an_edit_of_the_template_begins_a_trace_that_vm_vmi_and_pod_carry(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    written = [
        operation_of(cluster.kube.annotations(plural, "default", name), "iface1")
        for plural, name in ((VMS, "vm1"), (VMIS, "vm1"), (PODS, "virt-launcher-vm1-abcde"))
    ]
    assert written[0] is not None
    assert written == [written[0]] * 3
    span = named(cluster.spans.get_finished_spans(), "controller request iface1")
    assert str(written[0].traceparent).startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert span.parent is None


async def test_one_wish_that_is_refused_holds_up_no_other(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1"), objects.nic("refused"), objects.nic("iface2")))
    await cluster.kube.until(lambda: len(cluster.links()) == 2)
    assert cluster.names() == ["default", "iface1", "iface2"]
    await cluster.kube.until(lambda: bool(cluster.kube.of(EVENTS)))
    (event,) = cluster.kube.of(EVENTS)
    assert event["involvedObject"]["kind"] == "VirtualMachine"
    assert "the webhook says no" in event["message"]


async def test_what_cannot_be_done_is_said_once_on_the_vm(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1", model="e1000")))
    await cluster.kube.until(lambda: bool(cluster.kube.of(EVENTS)))
    cluster.put(VMS, objects.vm(objects.nic("iface1", model="e1000"), objects.nic("iface2")))
    await cluster.kube.until(lambda: "iface2" in cluster.names())
    (event,) = cluster.kube.of(EVENTS)
    assert (event["reason"], event["type"]) == ("InterfaceChangeRejected", "Warning")
    assert event["involvedObject"] == {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "namespace": "default",
        "name": "vm1",
        "uid": objects.VM_UID,
    }


async def test_an_unplug_leaves_pod_vmi_and_vm_as_if_the_nic_had_never_been(cluster: Cluster) -> None:
    unplug = Operation("unplug", OperationKind.UNPLUG, "iface1", released=objects.POD_UID)
    gone, kept = objects.nic("iface1", state="absent"), objects.nic("iface2")
    noted = {operation_key("iface1"): encode(unplug), "some": "thing"}
    cluster.put(VMS, objects.vm(gone, kept, annotations=noted))
    cluster.put(PODS, objects.pod({"some": "thing"}))
    here = [{"name": "iface2", "infoSource": "domain, multus-status"}]
    cluster.put(VMIS, objects.vmi(gone, kept, owned=True, annotations=noted, status=here))
    await cluster.kube.until(
        lambda: (
            cluster.names() == ["default", "iface2"]
            and not operation_of(cluster.kube.annotations(VMS, "default", "vm1"), "iface1")
        )
    )
    template = cluster.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert [item["name"] for item in template["networks"]] == ["default", "iface2"]
    assert operation_key("iface1") not in cluster.vmi().metadata.annotations


async def test_where_kubevirt_owns_the_vms_nothing_is_written_until_it_no_longer_does(cluster: Cluster) -> None:
    cluster.switches["acting"] = False
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.idle()
    assert cluster.kube.counted("PATCH", VMIS) == 0
    cluster.switches["acting"] = True
    cluster.role.look_at_all()
    await cluster.kube.until(lambda: "iface1" in cluster.names())


async def test_kubevirts_own_object_is_followed(cluster: Cluster) -> None:
    changes = asyncio.Semaphore(0)
    installations = Installations(cluster.client, structlog.get_logger(), changes.release)
    following = asyncio.create_task(installations.run())
    await installations.known.wait()
    assert installations.items() == []
    gates = {"configuration": {"developerConfiguration": {"featureGates": ["HotplugNICs"]}}}
    cluster.kube.put(KUBEVIRTS, "kubevirt", "kubevirt", spec=gates)
    await changes.acquire()
    (found,) = installations.items()
    assert found.spec.configuration is not None
    following.cancel()
    await asyncio.wait([following])


async def test_a_cluster_without_kubevirts_crd_has_no_installation(cluster: Cluster) -> None:
    def refuse(_method: str, plural: str, _name: str) -> None:
        if plural == KUBEVIRTS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    cluster.kube.before = refuse
    installations = Installations(cluster.client, structlog.get_logger())
    following = asyncio.create_task(installations.run())
    await installations.known.wait()
    assert installations.items() == []
    following.cancel()
    await asyncio.wait([following])


async def test_the_controller_that_leads_keeps_the_ladder(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode(PLUG)}))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    bucket = cluster.bus.kv(BUCKET)
    found: StatusEntry | None = None
    async with asyncio.timeout(5):
        while found is None or found.status.stage is not Stage.POD_ANNOTATED or found.status.since is None:
            held = await bucket.get(str(StatusKey("default", "vm1", interface_hash("iface1"))))
            found = entry_of(held.value) if held is not None else None
            await asyncio.sleep(0.005)
    assert (found.status.operation, found.status.trace_id) == ("plug", TRACE)
