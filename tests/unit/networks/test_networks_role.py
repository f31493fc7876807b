"""The whole role, with a scripted API server, container runtime and multus daemon around it."""

import asyncio
import json
from collections import Counter
from typing import Any

from schemas.events import Changed, Failed, MultusAttached, MultusDetached, ObjectRef, PodAnnotated
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS
from schemas.operations import Operation, encode, hotplug_mark_key, operation_key, pod_nic_key, pod_nic_of
from schemas.stages import OperationKind, Stage
from services.common.telemetry.propagation import traceparent_of
from tests.support.bus import MemoryBus
from tests.support.fake_multus import Call, cni_error
from tests.support.networks_node import CONFIG, NODE, Node
from tests.support.node_kube import EVENTS, NADS, PODS, Refused
from tests.support.spans import named, one_trace, recording_telemetry, tree

BLUE = pod_interface("blue")
OWNER = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1", "uid": "vmi-uid"}


def element(interface: str | None, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, **({"interface": interface} if interface else {}), **fields}


async def test_a_plain_pod_gets_a_network(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.status()[1] == {
        "name": "default/blue",
        "interface": "ens58",
        "ips": ["10.1.0.5"],
        "mac": "02:00:00:00:00:0A",
        "mtu": 1450,
        "dns": {},
    }
    (event,) = await node.until_event()
    assert (event["type"], event["reason"]) == ("Normal", "AddedInterface")
    assert event["message"] == "pod [default/p1]: added interface ens58 to network: blue"
    assert event["involvedObject"]["uid"] == "uid-p1"
    (call,) = node.multus.calls
    assert call.env == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "sandbox-p1",
        "CNI_NETNS": "/var/run/netns/sandbox-p1",
        "CNI_IFNAME": "ens58",
        "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1;K8S_POD_UID=uid-p1",
    }
    assert call.config == CONFIG.encode()
    assert call.attributes is None
    (published,) = node.bus.published
    assert isinstance(published, MultusAttached)
    assert published.vmi is None
    assert published.pod == ObjectRef("default", "p1", "uid-p1")


async def test_a_guests_nic_joins_its_operation_and_trace(node: Node) -> None:
    telemetry, requests = recording_telemetry("api")
    controller = MemoryBus(node.bus.broker, role="controller", node="_", telemetry=telemetry)
    node.nad()
    node.pod(metadata={"ownerReferences": [OWNER]})
    await node.idle()
    node.spans.clear()
    with telemetry.tracer.start_as_current_span("PUT addinterface"):
        operation = Operation(id="op1", kind=OperationKind.PLUG, interface="blue", traceparent=traceparent_of())
        node.want([element(BLUE)], **{operation_key("blue"): encode(operation)})
        meta = node.kube.objects[PODS, "default", "p1"]["metadata"]
        await controller.publish(
            PodAnnotated(
                operation=operation,
                vmi=ObjectRef("default", "vm1", "vmi-uid"),
                pod=ObjectRef("default", "p1", "uid-p1"),
                node=NODE,
                changed=Changed("Pod", "uid-p1", meta["resourceVersion"]),
                pod_interface=BLUE,
            )
        )
    await node.until_links("eth0", BLUE)
    await node.until_event()
    await node.idle()

    (event,) = node.bus.published
    assert isinstance(event, MultusAttached)
    assert event.operation == operation
    assert event.vmi == ObjectRef("default", "vm1", "vmi-uid")
    assert (event.sandbox_id, event.node, event.pod_interface) == ("sandbox-p1", NODE, BLUE)
    assert (event.mac, event.ips) == ("02:00:00:00:00:0A", ("10.1.0.5",))
    pod = node.kube.objects[PODS, "default", "p1"]["metadata"]
    assert event.changed == Changed("Pod", "uid-p1", pod["resourceVersion"])

    record = pod_nic_of(pod["annotations"], pod_nic_key("blue"))
    assert record is not None
    assert (record.pod_uid, record.sandbox_id, record.mac) == ("uid-p1", "sandbox-p1", "02:00:00:00:00:0a")
    assert (record.mtu, record.ips) == (1450, ("10.1.0.5/24",))

    spans = [*node.spans.get_finished_spans(), *requests.get_finished_spans()]
    assert one_trace(spans)
    attach = named(spans, f"networks attach p1/{BLUE}")
    below = [name for name, _ in tree(s for s in spans if s.parent and s.parent.span_id == attach.context.span_id)]
    assert sorted(below[:2]) == ["cri ListPodSandbox", "kube get network-attachment-definitions"]
    assert [name for name in below if name.startswith(("POST", "kube patch", "send"))] == [
        "POST /delegate",
        "kube patch pods",
        "send hotplug.multus-attached",
    ]
    assert node.multus.calls[0].traceparent is not None
    # The message that asked for it is the parent, and below the request.
    parent = next(s for s in spans if s.context.span_id == attach.parent.span_id)
    assert parent.name.startswith("process ")


async def test_attributes_are_sent_when_there_are_some(node: Node) -> None:
    node.nad()
    node.pod()
    node.want(
        [element("ens58", mac="02:03:04:05:06:07", ips=["10.10.10.111/24"], **{"cni-args": {"b": 1, "a": [True]}})]
    )
    await node.until_links("eth0", "ens58")
    assert node.multus.calls[0].attributes == {
        "mac": "02:03:04:05:06:07",
        "ips": ["10.10.10.111/24"],
        "cni-args": {"b": 1, "a": [True]},
    }
    (event,) = await node.until_event()
    assert event["message"].endswith(
        "blue(ips: [10.10.10.111/24], mac: 02:03:04:05:06:07, cni-args: &map[a:[true] b:1])"
    )


async def test_a_conflict_costs_a_read_and_no_second_add(node: Node) -> None:
    node.nad()
    node.pod()

    def meanwhile(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS):
            node.kube.before = lambda *_: None
            other = [*node.status(), {"name": "default/other", "interface": "x1", "dns": {}}]
            node.kube.annotate(PODS, "default", "p1", {NETWORK_STATUS: json.dumps(other)})

    node.kube.before = meanwhile
    node.want([element("ens58")])
    await node.until_links("eth0", "x1", "ens58")
    assert node.multus.verbs == ["ADD ens58"]


async def test_a_status_that_cannot_be_written_is_written_later(node: Node) -> None:
    node.nad()
    node.pod()
    refusals = iter(range(2))

    def busy(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS) and next(refusals, None) is not None:
            raise Refused(503, "ServiceUnavailable", "try later")

    node.kube.before = busy
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58"]
    published = await node.until_published(lambda events: isinstance(events[-1], MultusAttached))
    assert [getattr(event, "reason", None) for event in published] == ["KubeUnavailable", "KubeUnavailable", None]


async def test_a_failed_add_is_told_and_tried_again(node: Node) -> None:
    node.nad()
    node.pod()
    node.multus.script = [
        cni_error(11, "still in use by a guest", "pod7e"),
        (400, 'ContainerID:"x" ERRORED: no veth\n'),
    ]
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    events = await node.until_event(3)
    first, second, done = await node.until_published(lambda events: len(events) == 3)
    assert isinstance(first, Failed)
    assert (first.at, first.reason, first.attempt) == (Stage.MULTUS_ATTACHED, "TryAgainLater", 1)
    assert first.retry_after == 0.1
    assert isinstance(second, Failed)
    assert (second.reason, second.attempt) == ("CniFailed", 2)
    assert second.message == 'CNI ADD (status 400): ContainerID:"x" ERRORED: no veth'
    assert isinstance(done, MultusAttached)
    assert done.attempt == 3
    assert [event["reason"] for event in events] == ["FailedAddingInterface", "FailedAddingInterface", "AddedInterface"]
    assert events[0]["message"] == (
        "pod [default/p1]: failed adding interface ens58 to network: blue: "
        "CNI ADD (code 11): still in use by a guest (pod7e)"
    )
    # A failed ADD may mean another sandbox, so the runtime is asked anew; nothing is deleted.
    assert node.cri.asked["PodSandboxStatus"] == 3
    assert node.multus.verbs == ["ADD ens58"] * 3


async def test_one_cause_is_one_event_however_often_it_is_tried(node: Node) -> None:
    node.nad()
    node.pod()
    node.multus.script = [cni_error(11, "busy")] * 3
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    events = await node.until_event(2)
    assert [event["reason"] for event in events] == ["FailedAddingInterface", "AddedInterface"]


async def test_a_bad_element_does_not_hold_up_the_next(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("x1", "missing"), element("ens58"), element("x2", "broken")])
    node.nad("broken", "{")
    await node.until_links("eth0", "ens58")
    events = await node.until_published(lambda events: len({getattr(e, "reason", "") for e in events}) == 3)
    assert {"NetworkNotFound", "InvalidNetwork"} <= {getattr(event, "reason", "") for event in events}
    node.nad("missing")
    await node.until_links("eth0", "ens58", "x1")


async def test_answer_without_a_result(node: Node) -> None:
    node.nad()
    node.pod()
    no_address = {"Result": {"cniVersion": "1.1.0", "ips": [{"address": "here"}]}}
    node.multus.script = [(200, None), (200, "not json"), (200, no_address)]
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    published = await node.until_published(lambda events: len(events) == 4)
    assert [getattr(event, "reason", None) for event in published] == ["MultusUnavailable"] * 3 + [None]


async def test_a_pod_without_a_sandbox_waits_for_one(node: Node) -> None:
    node.nad()
    node.pod()
    node.cri.sandboxes[0].ready = False
    node.want([element("ens58")])
    (failed,) = await node.until_published(lambda events: len(events) == 1)
    assert isinstance(failed, Failed)
    assert failed.reason == "SandboxMissing"
    node.cri.sandboxes[0].ready = True
    await node.until_links("eth0", "ens58")


async def test_the_sandbox_is_asked_for_once(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    node.want([element("ens58"), element("ens59"), element("ens60")])
    await node.until_links("eth0", "ens58", "ens59", "ens60")
    assert node.cri.asked == Counter({"ListPodSandbox": 1, "PodSandboxStatus": 1})


async def test_what_was_attached_is_detached(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    assert hotplug_mark_key("ens58") in node.kube.annotations(PODS, "default", "p1")
    node.want([element("ens59")])
    await node.until_links("eth0", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59", "DEL ens58"]
    assert node.multus.calls[-1].config == CONFIG.encode()
    assert hotplug_mark_key("ens58") not in node.kube.annotations(PODS, "default", "p1")
    events = await node.until_event(3)
    assert events[-1]["message"] == "pod [default/p1]: removed interface ens58 from network: blue"
    published = await node.until_published(lambda events: len(events) == 3)
    assert isinstance(published[-1], MultusDetached)
    assert published[-1].operation.kind == OperationKind.UNPLUG


async def test_one_edit_that_adds_and_removes(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.want([element("eth321")])
    await node.until_links("eth0", "eth321")
    assert node.multus.verbs == ["ADD ens58", "ADD eth321", "DEL ens58"]


async def test_detaching_from_a_network_that_is_gone(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.kube.delete(NADS, "default", "blue")
    node.want([])
    await node.until_links("eth0")
    assert node.multus.calls[-1].config == b""


async def test_a_del_that_fails_leaves_the_status(node: Node) -> None:
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.multus.script = [cni_error(11, "still in use by a guest")]
    node.want([])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    assert node.links() == ["eth0", "ens58"]
    await node.until_links("eth0")
    events = await node.until_event(3)
    assert [e["reason"] for e in events] == ["AddedInterface", "FailedRemovingInterface", "RemovedInterface"]


async def test_a_host_network_pod_is_refused_once(node: Node) -> None:
    node.pod(spec={"hostNetwork": True})
    for count in range(3):
        node.want([element(f"ens{count}")])
        await node.idle()
    (event,) = await node.until_event()
    assert event["message"] == "pod [default/p1]: will not add interface to host networked pod"
    assert node.multus.calls == []


async def test_a_pod_that_goes_away_while_it_is_attached(node: Node) -> None:
    node.nad()
    node.pod()
    attached = asyncio.Event()

    async def gone(_call: Call) -> None:
        node.kube.delete(PODS, "default", "p1")
        attached.set()

    node.multus.during = gone
    node.want([element("ens58")])
    await attached.wait()
    await node.idle()
    assert node.bus.published == []
    assert node.kube.of(EVENTS) == []


async def test_without_a_bus_the_watch_is_enough(node: Node) -> None:
    node.bus.broker.stop()
    node.nad()
    node.pod()
    node.want([element("ens58")])
    await node.until_links("eth0", "ens58")


async def test_looking_at_what_is_as_desired_costs_nothing(node: Node) -> None:
    node.nad()
    node.pod(networks=[element("net1")], status=[{"name": "default/blue", "interface": "net1", "dns": {}}])
    await node.idle()
    # Once: who made what is there, and from which wishes.
    assert node.cri.asked == Counter({"ListPodSandbox": 1, "PodSandboxStatus": 1})
    node.cri.asked.clear()
    node.spans.clear()
    node.kube.asked.clear()
    node.kube.annotate(PODS, "default", "p1", {"unrelated": "change"})
    await node.idle()
    assert node.spans.get_finished_spans() == ()
    assert node.kube.asked == []
    assert not node.cri.asked


async def test_an_event_about_a_pod_of_another_node_is_dropped(node: Node) -> None:
    """A message is late, or a migration was quicker: the node in its subject is not the pod's any more."""
    telemetry, _ = recording_telemetry("controller")
    controller = MemoryBus(node.bus.broker, role="controller", node="_", telemetry=telemetry)
    node.nad()
    node.pod(networks=[element("ens58")], spec={"nodeName": "node2"})
    meta = node.kube.objects[PODS, "default", "p1"]["metadata"]
    await controller.publish(
        PodAnnotated(
            operation=Operation(id="op1", kind=OperationKind.PLUG, interface="blue"),
            vmi=ObjectRef("default", "vm1", "vmi-uid"),
            pod=ObjectRef("default", "p1", "uid-p1"),
            node=NODE,
            changed=Changed("Pod", "uid-p1", meta["resourceVersion"]),
            pod_interface="ens58",
        )
    )
    # The version that it names is read live, for no watch of this node will bring it.
    async with asyncio.timeout(5):
        while ("GET", PODS, "p1") not in node.kube.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    while node.role.queue.in_flight or node.role.queue.depth:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert node.multus.calls == []
    assert node.links() == ["eth0"]
    assert node.bus.published == []
