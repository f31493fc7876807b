"""The whole role with a fake API server, container runtime and multus daemon."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from schemas.bus.events import ChangedObject, Failed, MultusAttached, MultusDetached, ObjectRef, PodAnnotated
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.kubernetes.operations import (
    Operation,
    encode_annotation,
    hotplug_mark_key,
    operation_key,
    pod_nic_key,
    read_pod_nic,
)
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.cri.sandbox import Sandbox
from services.common.http.client import UnixHttpClient
from services.common.telemetry.propagation import traceparent_of
from services.networks.multus_client import AttachmentFailure, MultusClient
from tests.support.bus.memory import MemoryBus
from tests.support.kube.node_kube import EVENTS, NADS, PODS, Refused
from tests.support.node.fake_multus import Call, FakeMultus, cni_error, recorded, serving_multus
from tests.support.node.networks_node import CONFIG, ETH0, NODE, Node
from tests.support.telemetry.spans import named, one_trace, recording_telemetry, tree

BLUE = pod_interface("blue")
OWNER = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1", "uid": "vmi-uid"}


def element(interface: str | None, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, **({"interface": interface} if interface else {}), **fields}


async def test_ordinary_pod_gets_a_network(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
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


async def test_attach_joins_the_operation_and_its_trace(node: Node) -> None:
    telemetry, requests = recording_telemetry("api")
    controller = MemoryBus(node.bus.broker, role="controller", node="_", telemetry=telemetry)
    node.nad()
    node.pod(metadata={"ownerReferences": [OWNER]})
    await node.idle()
    node.spans.clear()
    with telemetry.tracer.start_as_current_span("PUT addinterface"):
        operation = Operation(id="op1", kind=OperationKind.PLUG, interface="blue", traceparent=traceparent_of())
        node.set_networks([element(BLUE)], **{operation_key("blue"): encode_annotation(operation)})
        meta = node.kube.objects[PODS, "default", "p1"]["metadata"]
        await controller.publish(
            PodAnnotated(
                operation=operation,
                vmi=ObjectRef("default", "vm1", "vmi-uid"),
                pod=ObjectRef("default", "p1", "uid-p1"),
                node=NODE,
                changed=ChangedObject("Pod", "uid-p1", meta["resourceVersion"]),
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
    assert event.changed == ChangedObject("Pod", "uid-p1", pod["resourceVersion"])

    record = read_pod_nic(pod["annotations"], pod_nic_key("blue"))
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
        "kube patch pods/status",
        "send hotplug.multus-attached",
    ]
    assert node.multus.calls[0].traceparent is not None
    # The parent is the span of the message that triggered the run; it is below the request's span.
    parent = next(s for s in spans if s.context.span_id == attach.parent.span_id)
    assert parent.name.startswith("process ")


async def test_interface_attributes_are_sent(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks(
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


async def test_conflict_does_not_repeat_add(node: Node) -> None:
    node.nad()
    node.pod()

    def edit_once(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS):
            node.kube.before = lambda *_: None
            other = [*node.status(), {"name": "default/other", "interface": "x1", "dns": {}}]
            node.kube.annotate(PODS, "default", "p1", {NETWORK_STATUS: json.dumps(other)})

    node.kube.before = edit_once
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "x1", "ens58")
    assert node.multus.verbs == ["ADD ens58"]


async def test_failed_status_write_is_retried_without_a_second_add(node: Node) -> None:
    node.nad()
    node.pod()
    refusals = iter(range(2))

    def busy(method: str, plural: str, _name: str) -> None:
        if (method, plural) == ("PATCH", PODS) and next(refusals, None) is not None:
            raise Refused(503, "ServiceUnavailable", "try later")

    node.kube.before = busy
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58"]
    published = await node.until_published(lambda events: isinstance(events[-1], MultusAttached))
    assert [getattr(event, "reason", None) for event in published] == ["KubeUnavailable", "KubeUnavailable", None]


async def test_failed_add_is_reported_and_retried(node: Node) -> None:
    node.nad()
    node.pod()
    node.multus.script = [
        cni_error(11, "still in use by a guest", "pod7e"),
        (400, 'ContainerID:"x" ERRORED: no veth\n'),
    ]
    node.set_networks([element("ens58")])
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
    # A failed ADD may mean a new sandbox, so the container runtime is asked again; nothing is deleted.
    assert node.cri.calls["PodSandboxStatus"] == 3
    assert node.multus.verbs == ["ADD ens58"] * 3


async def test_repeated_failures_with_one_reason_record_one_event(node: Node) -> None:
    node.nad()
    node.pod()
    node.multus.script = [cni_error(11, "busy")] * 3
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    events = await node.until_event(2)
    assert [event["reason"] for event in events] == ["FailedAddingInterface", "AddedInterface"]


async def test_failing_element_does_not_block_the_others(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("x1", "missing"), element("ens58"), element("x2", "broken")])
    node.nad("broken", "{")
    await node.until_links("eth0", "ens58")
    events = await node.until_published(lambda events: len({getattr(e, "reason", "") for e in events}) == 3)
    assert {"NetworkNotFound", "InvalidNetwork"} <= {getattr(event, "reason", "") for event in events}
    node.nad("missing")
    await node.until_links("eth0", "ens58", "x1")


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        ('{"name":"n","type":"hotnic-multus"}', {}, "plugin type hotnic-multus is not allowed in a network"),
        (None, {"ips": ["fe80::1%;K8S_POD_NAMESPACE=kube-system"]}, "has a zone"),
        (None, {"mac": "02:00:00:00:00:01;K8S_POD_NAME=x"}, "is not a MAC address"),
    ],
)
async def test_what_cannot_be_attached_is_refused_once_and_not_retried(
    node: Node, config: str | None, fields: dict[str, Any], reason: str
) -> None:
    node.nad()
    if config is not None:
        node.nad("bad", config)
    node.pod()
    node.set_networks([element("x1", "blue" if config is None else "bad", **fields), element("ens58")])
    await node.until_links("eth0", "ens58")
    await node.idle()
    assert node.multus.verbs == ["ADD ens58"]
    [failed] = [event for event in await node.until_event(2) if event["reason"] == "FailedAddingInterface"]
    assert reason in failed["message"]
    attempts = [event for event in node.bus.published if isinstance(event, Failed)]
    assert {event.retry_after for event in attempts} == {None}


async def test_a_network_whose_configuration_is_a_file_of_the_node_is_found_by_the_daemon(node: Node) -> None:
    """multus-cni#716: the NAD has no spec.config. hotnic's daemon gets its name instead."""
    node.nad(config="")
    node.pod()
    node.set_networks([element("ens58", bandwidth={"ingressRate": 8})])
    await node.until_links("eth0", "ens58")
    assert [(call.config, call.network) for call in node.multus.calls] == [(b"", "default/blue")]
    ignored = [event for event in await node.until_event(2) if event["reason"] == "InterfaceSettingIgnored"]
    assert "the configuration of the network is a file of the node" in ignored[0]["message"]


async def test_upstreams_daemon_gets_no_network_without_a_configuration(node: Node) -> None:
    node.multus.serves_records = False
    node.nad("empty", "")
    node.nad()
    node.pod()
    node.set_networks([element("x1", "empty"), element("ens58")])
    await node.until_links("eth0", "ens58")
    assert [(call.verb, call.network) for call in node.multus.calls] == [("ADD ens58", None)]
    events = await node.until_event(2)
    assert any("attaches none of the node's files" in event["message"] for event in events)


async def test_an_unexpected_error_of_one_attachment_stops_no_other(node: Node) -> None:
    node.nad()
    node.nad("odd", '{"name":"n","type":"a","capabilities":{"bandwidth":true},"runtimeConfig":5}')
    node.pod()
    node.set_networks([element("x1", "odd", bandwidth={"ingressRate": 8}), element("ens58")])
    await node.until_links("eth0", "ens58")
    assert node.multus.verbs == ["ADD ens58"]


@pytest.mark.parametrize("broken", ["", "{", '{"type":"multus"}'])
async def test_a_network_that_its_author_has_broken_is_still_detached(node: Node, broken: str) -> None:
    """The daemon's record has the configuration; the lease must not stay."""
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.nad(config=broken)
    node.set_networks([])
    await node.until_links("eth0")
    assert [(call.verb, call.config) for call in node.multus.calls][1:] == [("DEL ens58", b"")]


async def test_invalid_add_responses_are_retried(node: Node) -> None:
    node.nad()
    node.pod()
    no_address = {"Result": {"cniVersion": "1.1.0", "ips": [{"address": "here"}]}}
    node.multus.script = [(200, None), (200, "not json"), (200, no_address)]
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    published = await node.until_published(lambda events: len(events) == 4)
    assert [getattr(event, "reason", None) for event in published] == ["MultusUnavailable"] * 3 + [None]


async def test_an_annotation_that_its_author_corrects_is_applied(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.set_networks("[{")
    await node.until_event(2)
    await node.idle()
    node.set_networks([element("ens59")])
    await node.until_links("eth0", "ens59")


async def test_attach_waits_for_a_sandbox(node: Node) -> None:
    node.nad()
    node.pod()
    node.cri.sandboxes[0].ready = False
    node.set_networks([element("ens58")])
    (failed,) = await node.until_published(lambda events: len(events) == 1)
    assert isinstance(failed, Failed)
    assert failed.reason == "SandboxMissing"
    node.cri.sandboxes[0].ready = True
    await node.until_links("eth0", "ens58")


async def test_sandbox_is_looked_up_once(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    node.set_networks([element("ens58"), element("ens59"), element("ens60")])
    await node.until_links("eth0", "ens58", "ens59", "ens60")
    assert node.cri.calls == Counter({"ListPodSandbox": 1, "PodSandboxStatus": 1})


async def test_network_is_detached_when_its_element_is_removed(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58"), element("ens59")])
    await node.until_links("eth0", "ens58", "ens59")
    assert hotplug_mark_key("ens58") in node.kube.annotations(PODS, "default", "p1")
    node.set_networks([element("ens59")])
    await node.until_links("eth0", "ens59")
    assert node.multus.verbs == ["ADD ens58", "ADD ens59", "DEL ens58"]
    assert node.multus.calls[-1].config == CONFIG.encode()
    assert hotplug_mark_key("ens58") not in node.kube.annotations(PODS, "default", "p1")
    events = await node.until_event(3)
    assert events[-1]["message"] == "pod [default/p1]: removed interface ens58 from network: blue"
    published = await node.until_published(lambda events: len(events) == 3)
    assert isinstance(published[-1], MultusDetached)
    assert published[-1].operation.kind == OperationKind.UNPLUG


async def test_one_edit_attaches_before_it_detaches(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.set_networks([element("eth321")])
    await node.until_links("eth0", "eth321")
    assert node.multus.verbs == ["ADD ens58", "ADD eth321", "DEL ens58"]


async def test_detach_from_a_deleted_nad_sends_no_configuration(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.kube.delete(NADS, "default", "blue")
    node.set_networks([])
    await node.until_links("eth0")
    assert node.multus.calls[-1].config == b""


async def test_failed_del_leaves_the_status_unchanged(node: Node) -> None:
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")
    node.multus.script = [cni_error(11, "still in use by a guest")]
    node.set_networks([])
    await node.until_published(lambda events: any(isinstance(event, Failed) for event in events))
    assert node.links() == ["eth0", "ens58"]
    await node.until_links("eth0")
    events = await node.until_event(3)
    assert [e["reason"] for e in events] == ["AddedInterface", "FailedRemovingInterface", "RemovedInterface"]


async def test_host_network_pod_gets_one_event(node: Node) -> None:
    node.pod(spec={"hostNetwork": True})
    for count in range(3):
        node.set_networks([element(f"ens{count}")])
        await node.idle()
    (event,) = await node.until_event()
    assert event["message"] == "pod [default/p1]: will not add interface to host networked pod"
    assert node.multus.calls == []


async def test_pod_deleted_during_add_gets_no_event(node: Node) -> None:
    node.nad()
    node.pod()
    deleted = asyncio.Event()

    async def delete_pod(_call: Call) -> None:
        node.kube.delete(PODS, "default", "p1")
        deleted.set()

    node.multus.during = delete_pod
    node.set_networks([element("ens58")])
    await deleted.wait()
    await node.idle()
    assert node.bus.published == []
    assert node.kube.of(EVENTS) == []


async def test_attach_works_without_a_bus(node: Node) -> None:
    node.bus.broker.stop()
    node.nad()
    node.pod()
    node.set_networks([element("ens58")])
    await node.until_links("eth0", "ens58")


async def test_reconciling_the_desired_state_makes_no_calls(node: Node) -> None:
    node.nad()
    node.pod(networks=[element("net1")], status=[{"name": "default/blue", "interface": "net1", "dns": {}}])
    await node.idle()
    # The first run reads the record once, to learn who made the attachments and with which settings.
    assert node.cri.calls == Counter({"ListPodSandbox": 1, "PodSandboxStatus": 1})
    node.cri.calls.clear()
    node.spans.clear()
    node.kube.requests.clear()
    node.kube.annotate(PODS, "default", "p1", {"unrelated": "change"})
    await node.idle()
    assert node.spans.get_finished_spans() == ()
    assert node.kube.requests == []
    assert not node.cri.calls


async def test_a_record_that_cannot_be_read_is_requested_again(node: Node) -> None:
    """Taken for a sandbox without a record, it would not be requested again, and net1 would stay attached."""
    node.nad()
    made = [recorded("eth0", "cluster", "cluster"), recorded("net1", "default/blue", "networks")]
    node.multus.record("sandbox-p1", "uid-p1", *made)
    node.multus.unreadable = ["the record of sandbox sandbox-p1 is damaged"] * 2
    listed = {"name": "default/blue", "interface": "net1", "dns": {}}
    node.pod(networks=[element("ens58")], status=[ETH0, listed])
    await node.until_links("eth0", "ens58")
    assert node.multus.record_requests >= 3
    # What needs no record was done before it could be read.
    assert node.multus.verbs == ["ADD ens58", "DEL net1"]


async def test_the_failure_says_why_the_record_cannot_be_read(tmp_path: Path) -> None:
    daemon, socket = FakeMultus(), str(tmp_path / "multus.sock")
    daemon.unreadable = ["the record of sandbox s is damaged"]
    async with serving_multus(socket, daemon):
        http = UnixHttpClient(socket, recording_telemetry()[0])
        with pytest.raises(AttachmentFailure) as failure:
            await MultusClient(http, socket).record(Sandbox("s", "/run/netns/s", 0))
        await http.close()
    assert failure.value.reason == "MultusUnavailable"
    assert failure.value.message.endswith("GET /sandboxes/s has status 500: the record of sandbox s is damaged")


async def test_event_for_a_pod_of_another_node_is_dropped(node: Node) -> None:
    """A message is late, or overtaken by a migration: its subject names a node that the pod has left."""
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
            changed=ChangedObject("Pod", "uid-p1", meta["resourceVersion"]),
            pod_interface="ens58",
        )
    )
    # The named resource version is read live, because the watch of this node never delivers it.
    async with asyncio.timeout(5):
        while ("GET", PODS, "p1") not in node.kube.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    while node.role.queue.in_flight or node.role.queue.depth:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert node.multus.calls == []
    assert node.links() == ["eth0"]
    assert node.bus.published == []
