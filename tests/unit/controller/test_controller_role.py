"""The controller as a role: its watches, patches and events, against a scripted Kubernetes API."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from structlog.testing import capture_logs

from schemas.bus.encoding import StatusKey
from schemas.bus.events import ChangedObject, MultusAttached, ObjectRef, Requested
from schemas.bus.hotplug_status import BUCKET, StatusEntry, decode_entry
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
    parse_networks,
)
from schemas.kubernetes.objects import CREATED_BY_LABEL, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, read_operation, unplug_key
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.kube.client import Kube
from services.common.runtime.installations import Installations
from services.controller.plan.observing import ORPHAN_AGE
from services.controller.role import Controller
from tests.support.bus.memory import MemoryBus
from tests.support.contexts import role_context
from tests.support.kube.node_kube import EVENTS, PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.kube.webhooks import MacPool, claim_addresses
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities
from tests.support.telemetry.spans import named, recording_telemetry

VMS, VMIS, KUBEVIRTS = "virtualmachines", "virtualmachineinstances", "kubevirts"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PLUG = Operation("plug", OperationKind.PLUG, "iface1", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")


class Webhook(FakeKube):
    """An API server whose webhook refuses interfaces with "refused" in their patch."""

    def _json_patched(self, key: Any, ops: list[Any], *, dry_run: bool) -> Any:
        if key[0] == VMIS and any("refused" in str(op.get("value")) for op in ops if op["op"] == "add"):
            raise Refused(403, "Forbidden", "refused by the webhook")
        return super()._json_patched(key, ops, dry_run=dry_run)


@dataclass
class Cluster:
    """The API server, the bus and the running role."""

    kube: FakeKube
    bus: MemoryBus
    spans: InMemorySpanExporter
    client: Kube
    role: Controller
    switches: dict[str, bool] = field(default_factory=lambda: {"owner": True, "enabled": True})
    beside: list[Capabilities] = field(default_factory=list)
    metrics_text: Callable[[], bytes] = bytes

    def put(self, plural: str, found: VirtualMachine | VirtualMachineInstance | Any) -> None:
        """Create or replace an object."""
        document = msgspec.to_builtins(found)
        meta = document["metadata"]
        self.kube.put(plural, meta["namespace"], meta["name"], **document)

    def vmi(self) -> VirtualMachineInstance:
        """Return the VMI."""
        return msgspec.convert(self.kube.objects[VMIS, "default", "vm1"], VirtualMachineInstance)

    def names(self) -> list[str]:
        """Return the names of the VMI's interfaces."""
        return [interface.name for interface in self.vmi().spec.interface_items()]

    def links(self) -> list[str | None]:
        """Return the pod interfaces that the pod's annotation lists."""
        text = self.kube.annotations(PODS, "default", "virt-launcher-vm1-abcde").get(NETWORKS)
        return [element.requested_interface for element in parse_networks(text)]

    async def idle(self) -> None:
        """Wait until the caches have all objects and the queue is empty."""
        for reflector, plural in ((self.role.vms, VMS), (self.role.vmis, VMIS), (self.role.pods, PODS)):
            for meta in [found["metadata"] for found in self.kube.of(plural)]:
                while reflector.version("default", meta["name"]) != meta["resourceVersion"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        while self.role.queue.in_flight or self.role.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def stages(self) -> list[tuple[Stage, str]]:
        """Return stage and interface of each published event."""
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
        switches = {"owner": True, "enabled": True}
        beside: list[Capabilities] = []
        role = Controller(
            role_context("controller", client, bus, telemetry),
            is_owner=lambda: switches["owner"],
            is_enabled=lambda: switches["enabled"],
            beside=lambda: beside[0] if beside else None,
        )
        work = (role.vms.run, role.vmis.run, role.pods.run, role.lead)
        tasks = [asyncio.create_task(job()) for job in work]
        for synced in (role.vms.synced, role.vmis.synced, role.pods.synced):
            await synced.wait()
        yield Cluster(kube, bus, spans, client, role, switches, beside, telemetry.metrics_text)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_template_interface_reaches_the_pod_in_the_trace_of_its_request(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True, annotations={"a": "b"}))
    cluster.put(VMS, objects.vm(objects.nic("iface1"), annotations={operation_key("iface1"): encode_annotation(PLUG)}))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    await cluster.idle()
    assert cluster.names() == ["default", "iface1"]
    assert cluster.stages() == [(Stage.REQUESTED, "iface1"), (Stage.POD_ANNOTATED, "iface1")]
    assert {event.operation for event in cluster.bus.published} == {PLUG}
    for name in ("controller request iface1", "controller annotate virt-launcher-vm1-abcde"):
        span = named(cluster.spans.get_finished_spans(), name)
        assert format(span.context.trace_id, "032x") == TRACE


def gets(cluster: Cluster) -> int:
    """Return how many objects were read one by one."""
    return sum(method == "GET" and bool(name) for method, _, name in cluster.kube.requests)


@pytest.mark.parametrize(
    ("publisher", "vmi", "pod", "reads"),
    [
        (objects.NODE, "vm1", "virt-launcher-vm1-abcde", 1),
        ("node2", "vm1", "virt-launcher-vm1-abcde", 0),
        (objects.NODE, "vm2", "virt-launcher-vm1-abcde", 0),
        ("node2", "vm1", "made-up", 0),
    ],
)
async def test_what_a_node_says_of_pods_of_others_costs_no_request(
    cluster: Cluster, publisher: str, vmi: str, pod: str, reads: int
) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm())
    await cluster.idle()
    before = gets(cluster)
    event = MultusAttached(
        operation=PLUG,
        vmi=ObjectRef("default", vmi, objects.VMI_UID),
        pod=ObjectRef("default", pod, objects.POD_UID),
        node=publisher,
        changed=ChangedObject("Pod", objects.POD_UID, "newer"),
    )
    await MemoryBus(cluster.bus.broker, role="networks", node=publisher).publish(event)
    await cluster.bus.broker.until(lambda: not cluster.bus.broker.consumers["controller"].waiting)
    await cluster.idle()
    assert gets(cluster) == before + reads


@pytest.mark.parametrize("made_up", ["VMI", "pod of another node"])
async def test_events_that_a_node_makes_up_queue_nothing(cluster: Cluster, made_up: str) -> None:
    """Thousands of events of one node for VMIs that do not exist kept the queues full for a minute."""
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm())
    await cluster.idle()
    projector = cluster.role.projector
    while projector.queue.in_flight or projector.queue.depth:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    added: list[tuple[str, str]] = []
    for queue in (cluster.role.queue, projector.queue):
        queue.add = lambda key, **_how: added.append(key)  # type: ignore[method-assign]
    requests, histories = len(cluster.kube.requests), len(projector._histories)
    forger = MemoryBus(cluster.bus.broker, role="networks", node="node2")
    for number in range(200):
        name = "vm1" if made_up == "pod of another node" else f"made-up-{number}"
        vmi = ObjectRef("default", name, objects.VMI_UID)
        pod = ObjectRef("default", "virt-launcher-vm1-abcde", objects.POD_UID)
        operation = msgspec.structs.replace(PLUG, id=f"op{number}")
        await forger.publish(MultusAttached(operation=operation, vmi=vmi, pod=pod, node="node2"))
        if made_up == "VMI":
            # So may the api's identity.
            await MemoryBus(cluster.bus.broker, role="api").publish(Requested(operation=operation, vmi=vmi))
    consumers = cluster.bus.broker.consumers.values()
    await cluster.bus.broker.until(lambda: not any(consumer.waiting for consumer in consumers))
    assert (added, len(projector._histories)) == ([], histories)
    assert len(cluster.kube.requests) == requests
    # An event of the node that has the pod is a cause.
    own = MemoryBus(cluster.bus.broker, role="networks", node=objects.NODE)
    vmi, pod = ObjectRef("default", "vm1", objects.VMI_UID), ObjectRef("default", pod.name, objects.POD_UID)
    await own.publish(MultusAttached(operation=PLUG, vmi=vmi, pod=pod, node=objects.NODE))
    await cluster.bus.broker.until(lambda: not any(consumer.waiting for consumer in consumers))
    assert added == [("default", "vm1")] * 2


@pytest.mark.parametrize(("pod", "trusted"), [(objects.pod().metadata.name, True), (None, False), ("unknown", False)])
async def test_a_node_puts_the_controllers_work_into_a_trace_only_for_its_pods(
    cluster: Cluster, pod: str | None, trusted: bool
) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm())
    await cluster.idle()
    contexts: list[object] = []
    cluster.role.queue.add = lambda _key, **how: contexts.append(how.get("context"))  # type: ignore[method-assign]
    own = MemoryBus(cluster.bus.broker, role="networks", node=objects.NODE)
    vmi = ObjectRef("default", "vm1", objects.VMI_UID)
    named_pod = ObjectRef("default", pod, objects.POD_UID) if pod else None
    await own.publish(MultusAttached(operation=PLUG, vmi=vmi, pod=named_pod, node=objects.NODE))
    await cluster.bus.broker.until(lambda: not cluster.bus.broker.consumers["controller"].waiting)
    [context] = contexts
    assert (context is not None) is trusted


async def test_edit_of_the_template_starts_a_trace_on_vm_vmi_and_pod(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    written = [
        read_operation(cluster.kube.annotations(plural, "default", name), "iface1")
        for plural, name in ((VMS, "vm1"), (VMIS, "vm1"), (PODS, "virt-launcher-vm1-abcde"))
    ]
    assert written[0] is not None
    assert written == [written[0]] * 3
    span = named(cluster.spans.get_finished_spans(), "controller request iface1")
    assert str(written[0].traceparent).startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert span.parent is None


@pytest.mark.parametrize("always", [False, True], ids=["in the template", "at the controller's patch of the VM"])
async def test_the_mac_of_a_webhook_is_the_one_of_template_vmi_and_pod(cluster: Cluster, always: bool) -> None:
    pool = MacPool(always=always)
    cluster.kube.mutate = pool
    mac = {"macAddress": "02:aa:aa:00:00:ff"}
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1", **({} if always else mac))))
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    await cluster.idle()
    (element,) = parse_networks(cluster.kube.annotations(PODS, "default", "virt-launcher-vm1-abcde")[NETWORKS])
    template = cluster.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]["domain"]["devices"]
    macs = [template["interfaces"][1]["macAddress"], cluster.vmi().spec.interface_items()[1].mac_address, element.mac]
    assert macs == [pool.assigned[-1] if always else mac["macAddress"]] * 3
    assert cluster.stages() == [(Stage.REQUESTED, "iface1"), (Stage.POD_ANNOTATED, "iface1")]


async def test_the_claims_that_a_webhook_names_at_the_patch_of_the_pod_stay_at_the_next_one(cluster: Cluster) -> None:
    cluster.kube.mutate = claim_addresses
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    for nics in ((objects.nic("iface1"),), (objects.nic("iface1"), objects.nic("iface2", "net2"))):
        cluster.put(VMS, objects.vm(*nics))
        await cluster.kube.until(lambda: len(cluster.links()) == len(nics))  # noqa: B023
    await cluster.idle()
    elements = parse_networks(cluster.kube.annotations(PODS, "default", "virt-launcher-vm1-abcde")[NETWORKS])
    assert [element.ipam_claim_reference for element in elements] == ["vm1.net1", "vm1.net2"]
    # One patch for each plug: what the webhook adds is no difference to correct.
    assert cluster.kube.counted("PATCH", PODS) == 2


async def test_refused_operation_does_not_block_others(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1"), objects.nic("refused"), objects.nic("iface2")))
    await cluster.kube.until(lambda: len(cluster.links()) == 2)
    assert cluster.names() == ["default", "iface1", "iface2"]
    await cluster.kube.until(lambda: bool(cluster.kube.of(EVENTS)))
    (event,) = cluster.kube.of(EVENTS)
    assert event["involvedObject"]["kind"] == "VirtualMachine"
    assert "refused by the webhook" in event["message"]


async def test_a_patch_that_is_forbidden_to_the_controller_is_retried_and_warns_nobody(cluster: Cluster) -> None:
    """An API server that has just started forbids what its RBAC caches do not list yet."""
    left = 2

    def refuse(method: str, plural: str, _name: str) -> None:
        nonlocal left
        if (method, plural) == ("PATCH", VMIS) and left:
            left -= 1
            user = "system:serviceaccount:hotnic:hotnic-controller"
            raise Refused(403, "Forbidden", f'User "{user}" cannot patch resource "{VMIS}" in API group "kubevirt.io"')

    cluster.kube.before = refuse
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.kube.until(lambda: "iface1" in cluster.names())
    assert left == 0
    assert [event for event in cluster.kube.of(EVENTS) if event["type"] == "Warning"] == []


async def test_vms_that_share_a_mac_on_a_network_are_warned_once_each(cluster: Cluster) -> None:
    def with_mac(name: str, nad: str, **metadata: Any) -> VirtualMachine:
        item = objects.nic("iface1", nad, macAddress="02-00-00-00-00-01")
        return objects.vm(item, name=name, uid=f"uid-{name}", **metadata)

    cluster.put(VMS, with_mac("vm1", "net1"))
    cluster.put(VMS, with_mac("elsewhere", "net2"))
    cluster.put(VMS, with_mac("vm2", "default/net1"))
    await cluster.kube.until(lambda: len(cluster.kube.of(EVENTS)) == 2)
    cluster.put(VMS, with_mac("vm2", "net1", labels={"a": "b"}))
    # The last VM is warned of, so the change before it was looked at.
    cluster.put(VMS, with_mac("vm3", "net1"))
    await cluster.kube.until(lambda: len(cluster.kube.of(EVENTS)) == 3)
    messages = {event["involvedObject"]["name"]: event["message"] for event in cluster.kube.of(EVENTS)}
    assert sorted(messages) == ["vm1", "vm2", "vm3"]
    assert {event["reason"] for event in cluster.kube.of(EVENTS)} == {"SharedMacAddress"}
    assert cluster.kube.counted("POST", EVENTS) == 3
    assert "02:00:00:00:00:01 of interface 'iface1' of VM vm1 on the same" in messages["vm2"]


async def test_a_warning_of_a_shared_mac_that_could_not_be_recorded_is_tried_again(cluster: Cluster) -> None:
    refused: list[str] = []

    def refuse(method: str, plural: str, name: str) -> None:
        if (method, plural) == ("POST", EVENTS) and len(refused) < 2:
            refused.append(name)
            raise Refused(503, "ServiceUnavailable", "restarting")

    cluster.kube.before = refuse
    for name in ("vm1", "vm2"):
        item = objects.nic("iface1", macAddress="02:00:00:00:00:01")
        cluster.put(VMS, objects.vm(item, name=name, uid=f"uid-{name}"))
    await cluster.kube.until(lambda: len(cluster.kube.of(EVENTS)) == 2)
    assert len(refused) == 2


async def test_rejected_change_is_recorded_once_on_the_vm(cluster: Cluster) -> None:
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


async def test_unplug_removes_the_interface_from_pod_vmi_and_vm(cluster: Cluster) -> None:
    unplug = Operation("unplug", OperationKind.UNPLUG, "iface1", released=objects.POD_UID)
    absent, kept = objects.nic("iface1", state="absent"), objects.nic("iface2")
    annotations_of = {operation_key("iface1"): encode_annotation(unplug), "some": "thing"}
    cluster.put(VMS, objects.vm(absent, kept, annotations=annotations_of))
    cluster.put(PODS, objects.pod({"some": "thing"}))
    here = [{"name": "iface2", "infoSource": "domain, multus-status"}]
    cluster.put(VMIS, objects.vmi(absent, kept, owned=True, annotations=annotations_of, status=here))
    await cluster.kube.until(
        lambda: (
            cluster.names() == ["default", "iface2"]
            and not read_operation(cluster.kube.annotations(VMS, "default", "vm1"), "iface1")
        )
    )
    template = cluster.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert [item["name"] for item in template["networks"]] == ["default", "iface2"]
    assert operation_key("iface1") not in cluster.vmi().metadata.annotations


async def test_status_written_by_another_role_meanwhile_is_no_failed_span(cluster: Cluster) -> None:
    link = pod_interface("iface1")
    attached = {
        NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=link)]),
        NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", link)]),
    }
    operations = {operation_key("iface1"): encode_annotation(PLUG)}
    handlers = [{"name": "iface1", "infoSource": "domain"}]

    def write_first(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", VMIS) and not cluster.vmi().status.interfaces:
            cluster.put(VMIS, objects.vmi(objects.nic("iface1"), annotations=operations, status=handlers))

    cluster.kube.before = write_first
    cluster.put(PODS, objects.pod(attached))
    cluster.put(VMIS, objects.vmi(objects.nic("iface1"), annotations=operations))
    await cluster.kube.until(lambda: "multus-status" in str(cluster.vmi().status.interfaces))
    await cluster.idle()
    finished = cluster.spans.get_finished_spans()
    for name in ("kube patch virtualmachineinstances", "controller status vm1"):
        spans = [span for span in finished if span.name == name]
        assert [(span.attributes or {}).get("hotnic.conflict", False) for span in spans] == [True, False]
    assert all(span.status.status_code is StatusCode.UNSET and not span.events for span in finished)


def observing(cluster: Cluster) -> None:
    """Let KubeVirt own the VMs."""
    cluster.switches["owner"] = False
    cluster.beside.append(capabilities("1.9.0"))


def entry(cluster: Cluster) -> Operation | None:
    """Return the VMI's entry of a plug."""
    return read_operation(cluster.vmi().metadata.annotations, "iface1")


async def test_an_edit_that_kubevirt_follows_keeps_one_operation_from_first_sight(cluster: Cluster) -> None:
    observing(cluster)
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True, annotations={"a": "b"}))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.kube.until(lambda: entry(cluster) is not None)
    operation = entry(cluster)
    assert operation is not None
    await cluster.idle()
    assert (operation.kind, operation.vm) == (OperationKind.PLUG, objects.VM_UID)
    span = named(cluster.spans.get_finished_spans(), "controller request iface1")
    assert str(operation.traceparent).startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert cluster.stages() == [(Stage.REQUESTED, "iface1")]
    # KubeVirt follows; the entry is what it was, and there is one write.
    annotations = dict(cluster.vmi().metadata.annotations)
    reported = [{"name": "iface1", "infoSource": "domain, multus-status"}]
    for status in ([], reported):
        cluster.put(VMIS, objects.vmi(objects.nic("iface1"), owned=True, annotations=annotations, status=status))
        await cluster.idle()
    assert entry(cluster) == operation
    listed = encode_networks([NetworkSelectionElement("net1", "default", interface=pod_interface("iface1"))])
    for other in ("1", "2"):
        cluster.put(PODS, objects.pod({NETWORKS: listed, "other": other}))
        await cluster.idle()
    assert cluster.stages() == [(Stage.REQUESTED, "iface1"), (Stage.POD_ANNOTATED, "iface1")]
    annotated = named(cluster.spans.get_finished_spans(), "kubevirt annotate iface1")
    assert annotated.context.trace_id == span.context.trace_id
    assert cluster.kube.counted("PATCH", VMIS) == 1
    assert cluster.kube.counted("PATCH", VMS) == cluster.kube.counted("PATCH", PODS) == 0


async def test_what_the_guest_gets_and_releases_beside_kubevirt_is_published_once(cluster: Cluster) -> None:
    observing(cluster)
    plug = msgspec.structs.replace(PLUG, vm=objects.VM_UID, requested_at="2025-11-28T12:00:00Z")
    now = datetime.datetime.now(datetime.UTC).isoformat()
    unplug = msgspec.structs.replace(plug, id="unplug", kind=OperationKind.UNPLUG, requested_at=now)
    plugged = {operation_key("iface1"): encode_annotation(plug)}
    both = plugged | {unplug_key("iface1"): encode_annotation(unplug)}
    present, absent = objects.nic("iface1"), objects.nic("iface1", state="absent")
    attached, released = "domain, multus-status", "multus-status"
    status = encode_network_status([NetworkStatus("default/net1", pod_interface("iface1"))])

    async def show(*nics: Any, template: Any, token: str = "", **fields: Any) -> list[Stage]:
        entry = [{"name": "iface1", "infoSource": token, "mac": "02:00:00:00:00:02"}] if token else []
        cluster.put(VMS, objects.vm(*template))
        cluster.put(VMIS, objects.vmi(*nics, owned=True, status=entry, **fields))
        await cluster.idle()
        return [event.stage for event in cluster.bus.published]

    cluster.put(PODS, objects.pod({NETWORK_STATUS: status}))
    assert await show(present, template=[present], token=released, annotations=plugged) == []
    seen = [Stage.GUEST_ATTACHED]
    for _ in range(2):
        assert await show(present, template=[present], token=attached, annotations=plugged) == seen
    # The unplug's entry is written before the template says `absent`.
    assert await show(present, template=[present], token=attached, annotations=both) == seen
    assert await show(absent, template=[absent], token=attached, annotations=both) == seen
    # At the hand-over of a migration the status is incomplete.
    handing_over = {"annotations": both, "migrationState": {"completed": False}}
    assert await show(absent, template=[absent], token=released, **handing_over) == seen
    seen.append(Stage.GUEST_DETACHED)
    assert await show(absent, template=[absent], token=released, annotations=both) == seen
    assert await show(template=[], annotations=both) == seen
    assert cluster.kube.counted("PATCH", VMIS) == 1, "only the entries are removed, at the end"


async def test_a_warning_about_kubevirt_is_one_event_on_the_vm(cluster: Cluster) -> None:
    observing(cluster)
    status = encode_network_status([NetworkStatus("default/net1", pod_interface("iface1"))])
    cluster.put(PODS, objects.pod({NETWORK_STATUS: status}))
    cluster.put(VMS, objects.vm())
    in_guest = [{"name": "iface1", "infoSource": "domain, multus-status", "mac": "02:00:00:00:00:02"}]
    for note in ("1", "2"):
        # The template lost the interface, not as `absent`.
        dropped = objects.vmi(objects.nic("iface1"), owned=True, status=in_guest, annotations={"note": note})
        cluster.put(VMIS, dropped)
        await cluster.idle()
    await cluster.kube.until(lambda: bool(cluster.kube.of(EVENTS)))
    (event,) = cluster.kube.of(EVENTS)
    assert (event["involvedObject"]["kind"], event["reason"]) == ("VirtualMachine", "DroppedFromTemplate")
    assert b'hotnic_interface_reasons{reason="DroppedFromTemplate"} 1.0' in cluster.metrics_text()


async def test_an_entry_that_the_api_writes_at_the_same_moment_wins(cluster: Cluster) -> None:
    observing(cluster)
    api = msgspec.structs.replace(PLUG, vm=objects.VM_UID)

    def write_first(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", VMIS) and entry(cluster) is None:
            cluster.kube.annotate(VMIS, "default", "vm1", {operation_key("iface1"): encode_annotation(api)})

    cluster.kube.before = write_first
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True, annotations={"a": "b"}))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.kube.until(lambda: entry(cluster) is not None)
    await cluster.idle()
    assert entry(cluster) == api
    assert cluster.kube.counted("PATCH", VMIS) == 1
    assert cluster.stages() == []


async def test_an_entry_that_a_policy_refuses_is_reported_and_disturbs_nothing(cluster: Cluster) -> None:
    observing(cluster)

    def refuse(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", VMIS):
            raise Refused(422, "Invalid", "ValidatingAdmissionPolicy 'no-annotations' denied request")

    cluster.kube.before = refuse
    with capture_logs() as logs:
        cluster.put(PODS, objects.pod())
        cluster.put(VMIS, objects.vmi(owned=True, annotations={"a": "b"}))
        cluster.put(VMS, objects.vm(objects.nic("iface1")))
        await cluster.idle()
    assert cluster.kube.counted("PATCH", VMIS) > 0
    warnings = [line for line in logs if line["log_level"] not in ("debug", "info")]
    assert {(line["log_level"], line["event"], line["reason"]) for line in warnings} == {
        ("warning", "reconcile rejected", "EntryRefused")
    }
    assert cluster.bus.published == []


async def test_an_entry_whose_edit_never_came_is_removed_in_time(cluster: Cluster) -> None:
    observing(cluster)
    requested = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ORPHAN_AGE - 0.3)
    orphan = msgspec.structs.replace(PLUG, vm=objects.VM_UID, requested_at=requested.isoformat())
    cluster.put(VMS, objects.vm())
    cluster.put(VMIS, objects.vmi(owned=True, annotations={operation_key("iface1"): encode_annotation(orphan)}))
    await cluster.kube.until(lambda: entry(cluster) is None)
    assert datetime.datetime.now(datetime.UTC) >= requested + datetime.timedelta(seconds=ORPHAN_AGE)
    assert cluster.kube.counted("PATCH", VMIS) == 1


async def test_vms_at_rest_beside_kubevirt_cost_no_write_and_no_warning(cluster: Cluster) -> None:
    observing(cluster)
    plug = msgspec.structs.replace(PLUG, vm=objects.VM_UID, requested_at="2025-11-28T12:00:00Z")
    plugged = {operation_key("iface1"): encode_annotation(plug)}
    nics = objects.nic("iface1"), objects.nic("from-the-start")
    status = [
        {"name": name, "infoSource": "domain, multus-status", "mac": mac}
        for name, mac in (("iface1", "02:00:00:00:00:01"), ("from-the-start", "02:00:00:00:00:02"))
    ]
    links = [pod_interface("iface1"), pod_interface("from-the-start")]
    attached = {
        NETWORKS: encode_networks([NetworkSelectionElement("net1", "default", interface=link) for link in links]),
        NETWORK_STATUS: encode_network_status([NetworkStatus("default/net1", link) for link in links]),
    }
    with capture_logs() as logs:
        cluster.put(PODS, objects.pod(attached))
        cluster.put(VMS, objects.vm(*nics))
        cluster.put(VMIS, objects.vmi(*nics, owned=True, annotations=plugged, status=status))
        await cluster.idle()
        for _ in range(3):
            cluster.role.requeue_all()
            await cluster.idle()
    assert {method for method, _, _ in cluster.kube.requests} == {"GET", "WATCH"}
    assert cluster.bus.published == []
    assert [line for line in logs if line["log_level"] not in ("debug", "info")] == []
    assert [line["event"] for line in logs].count("observing") == 1


async def test_a_change_that_is_no_hot_plug_causes_no_run(cluster: Cluster) -> None:
    def runs() -> list[str]:
        return [line for line in cluster.metrics_text().decode().splitlines() if "reconcile_seconds_count" in line]

    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi())
    await cluster.idle()
    while cluster.role.projector.queue.in_flight or cluster.role.projector.queue.depth:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    before = runs()
    cluster.put(PODS, objects.pod(labels={CREATED_BY_LABEL: objects.VMI_UID, "team": "a"}))
    vmi = msgspec.to_builtins(objects.vmi())
    cluster.put(VMIS, vmi | {"status": vmi["status"] | {"guestOSInfo": {"id": "debian"}}})
    await cluster.idle()
    assert runs() == before
    cluster.put(VMIS, objects.vmi(annotations={"a": "b"}))
    await cluster.idle()
    changed = runs()
    assert changed != before
    cluster.kube.delete(PODS, "default", "virt-launcher-vm1-abcde")
    while runs() == changed:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_nothing_is_written_while_kubevirts_controllers_run_beside_the_owner(cluster: Cluster) -> None:
    cluster.switches["owner"] = False
    cluster.put(PODS, objects.pod())
    cluster.put(VMIS, objects.vmi(owned=True))
    cluster.put(VMS, objects.vm(objects.nic("iface1")))
    await cluster.idle()
    assert cluster.kube.counted("PATCH", VMIS) == 0
    cluster.switches["owner"] = True
    cluster.role.requeue_all()
    await cluster.kube.until(lambda: "iface1" in cluster.names())


async def test_kubevirt_object_is_watched(cluster: Cluster) -> None:
    changes = asyncio.Semaphore(0)
    installations = Installations(cluster.client, structlog.get_logger(), changes.release)
    following = asyncio.create_task(installations.run())
    await installations.synced.wait()
    assert installations.items() == []
    gates = {"configuration": {"developerConfiguration": {"featureGates": ["HotplugNICs"]}}}
    cluster.kube.put(KUBEVIRTS, "kubevirt", "kubevirt", spec=gates)
    await changes.acquire()
    (found,) = installations.items()
    assert found.spec.configuration is not None
    following.cancel()
    await asyncio.wait([following])


async def test_cluster_without_the_kubevirt_crd_has_no_installation(cluster: Cluster) -> None:
    def refuse(_method: str, plural: str, _name: str) -> None:
        if plural == KUBEVIRTS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    cluster.kube.before = refuse
    installations = Installations(cluster.client, structlog.get_logger())
    following = asyncio.create_task(installations.run())
    await installations.synced.wait()
    assert installations.items() == []
    following.cancel()
    await asyncio.wait([following])


async def test_leading_controller_writes_the_hotplug_status(cluster: Cluster) -> None:
    cluster.put(PODS, objects.pod())
    cluster.put(
        VMIS, objects.vmi(objects.nic("iface1"), annotations={operation_key("iface1"): encode_annotation(PLUG)})
    )
    await cluster.kube.until(lambda: len(cluster.links()) == 1)
    bucket = cluster.bus.kv(BUCKET)
    found: StatusEntry | None = None
    async with asyncio.timeout(5):
        while found is None or found.status.stage is not Stage.POD_ANNOTATED or found.status.since is None:
            held = await bucket.get(str(StatusKey("default", "vm1", interface_hash("iface1"))))
            found = decode_entry(held.value) if held is not None else None
            await asyncio.sleep(0.005)
    assert (found.status.operation, found.status.trace_id) == ("plug", TRACE)
