"""Detaching a NIC of a guest: after its release by the handler, in one patch, leaving newer operations alone."""

import json
from typing import Any

import pytest

from schemas import cni
from schemas.bus.events import Failed, MultusDetached
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.operations import (
    HotplugMark,
    Operation,
    PodNic,
    encode_annotation,
    hotplug_mark_key,
    operation_key,
    pod_nic_key,
    read_pod_nic,
)
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.networks import status
from services.networks.multus_client import attachment_failure
from services.networks.plan import needs_sandbox_record
from tests.support.kube.node_kube import PODS
from tests.support.node.fake_multus import cni_error
from tests.support.node.networks_node import Node
from tests.support.observed.networks_pods import observed
from tests.support.observed.objects import pod

BLUE = pod_interface("blue")
ENTRY = {"name": "default/blue", "interface": BLUE, "dns": {}}
PLUG = Operation(id="op-plug", kind=OperationKind.PLUG, interface="blue")
UNPLUG = Operation(id="op-unplug", kind=OperationKind.UNPLUG, interface="blue", released="uid-p1")
RECORD = PodNic(pod_uid="uid-p1", sandbox_id="s", interface=BLUE, mac="02:00:00:00:00:01", mtu=1500)
STILL_IN_USE = cni_error(11, f"{BLUE} of default/blue {cni.STILL_IN_USE} (bridge k6t-{BLUE[3:]} exists)")


def annotations(operation: Operation | None) -> dict[str, str]:
    present = {NETWORK_STATUS: json.dumps([ENTRY]), pod_nic_key("blue"): encode_annotation(RECORD)}
    return present | ({operation_key("blue"): encode_annotation(operation)} if operation else {})


def test_entry_record_and_operation_are_removed_in_one_patch() -> None:
    changed = status.annotations_without(annotations(UNPLUG), "default/blue", BLUE, UNPLUG)
    assert changed == {NETWORK_STATUS: "[]", pod_nic_key("blue"): None, operation_key("blue"): None}


@pytest.mark.parametrize("written", [None, PLUG, Operation(id="op-next", kind=OperationKind.UNPLUG, interface="blue")])
def test_newer_operation_is_not_removed(written: Operation | None) -> None:
    assert operation_key("blue") not in status.annotations_without(annotations(written), "default/blue", BLUE, UNPLUG)


def test_reattached_link_loses_its_earlier_record() -> None:
    """The second CNI result lacks MAC and MTU, so there is no new record: the handler reads the link by netlink."""
    result = cni.CniResult(interfaces=[cni.CniInterface(BLUE, sandbox="/run/netns/x")])
    made = status.attach_outcome(
        pod_uid="u", sandbox_id="s", network="default/blue", link=BLUE, settings_digest="0" * 16, result=result
    )
    changed = status.annotations_with(annotations(PLUG), made)
    assert changed[pod_nic_key("blue")] is None
    assert changed[hotplug_mark_key(BLUE)] is not None
    complete = cni.CniInterface(BLUE, mac="02:00:00:00:00:02", mtu=1400, sandbox="/run/netns/x")
    made = status.attach_outcome(
        pod_uid="u",
        sandbox_id="s",
        network="default/blue",
        link=BLUE,
        settings_digest="0" * 16,
        result=cni.CniResult(interfaces=[complete]),
    )
    present = {**annotations(PLUG), hotplug_mark_key(BLUE): encode_annotation(HotplugMark(pod_uid="u", interface=BLUE))}
    changed = status.annotations_with(present, made)
    assert changed[hotplug_mark_key(BLUE)] is None
    record = read_pod_nic({pod_nic_key("blue"): changed[pod_nic_key("blue")] or ""}, pod_nic_key("blue"))
    assert record is not None
    assert record.mac == "02:00:00:00:00:02"


def test_link_in_use_by_a_guest_has_its_own_reason() -> None:
    code, answer = STILL_IN_USE
    assert attachment_failure(cni.CniCommand.DEL, code, json.dumps(answer).encode()).reason == "StillInUse"


@pytest.mark.parametrize(("operation", "needed"), [(UNPLUG, True), (None, False)])
def test_operation_without_an_element_needs_the_record(operation: Operation | None, needed: bool) -> None:
    """A process was killed between ADD and patch, and the element was removed: only the record has the link."""
    present = {operation_key("blue"): encode_annotation(operation)} if operation else {}
    of = pod({NETWORKS: "", NETWORK_STATUS: "[]", **present})
    assert needs_sandbox_record(observed(of), None) is needed


async def attached(node: Node) -> None:
    node.nad()
    owner: dict[str, Any] = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1"}
    node.pod(
        metadata={"ownerReferences": [{**owner, "uid": "v"}]},
        annotations={operation_key("blue"): encode_annotation(PLUG)},
    )
    node.set_networks([{"name": "blue", "namespace": "default", "interface": BLUE}])
    await node.until_links("eth0", BLUE)


async def test_detach_is_retried_while_a_guest_uses_the_link(node: Node) -> None:
    await attached(node)
    node.multus.script = [STILL_IN_USE] * 3
    node.set_networks([], **{operation_key("blue"): encode_annotation(UNPLUG)})
    await node.until_links("eth0")
    published = await node.until_published(lambda events: isinstance(events[-1], MultusDetached))
    failures = [event for event in published if isinstance(event, Failed)]
    assert [(event.reason, event.attempt, event.operation) for event in failures] == [
        ("StillInUse", 1, UNPLUG),
        ("StillInUse", 2, UNPLUG),
        ("StillInUse", 3, UNPLUG),
    ]
    assert all(event.retry_after for event in failures)
    events = await node.until_event(3)
    assert [event["reason"] for event in events] == ["AddedInterface", "FailedRemovingInterface", "RemovedInterface"]


async def test_released_nic_leaves_no_annotation_on_the_pod(node: Node) -> None:
    await attached(node)
    assert pod_nic_key("blue") in node.kube.annotations(PODS, "default", "p1")
    before = node.kube.counted("PATCH", PODS)
    node.set_networks([], **{operation_key("blue"): encode_annotation(UNPLUG)})
    await node.until_links("eth0")
    assert node.kube.counted("PATCH", PODS) == before + 1
    assert set(node.kube.annotations(PODS, "default", "p1")) == {NETWORK_STATUS, NETWORKS}
    published = await node.until_published(lambda events: isinstance(events[-1], MultusDetached))
    assert (published[-1].operation, published[-1].vmi and published[-1].vmi.name) == (UNPLUG, "vm1")


async def test_terminating_pod_is_left_to_the_runtime(node: Node) -> None:
    await attached(node)
    node.kube.objects[PODS, "default", "p1"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    node.set_networks([], **{operation_key("blue"): encode_annotation(UNPLUG)})
    await node.idle()
    assert node.multus.verbs == [f"ADD {BLUE}"]
