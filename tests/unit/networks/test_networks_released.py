"""Detaching a guest's NIC: only after the handler has let it go, in one patch of the pod, and never the next one's."""

import json
from typing import Any

import pytest

from schemas import cni
from schemas.events import Failed, MultusDetached
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS
from schemas.operations import (
    HotplugMark,
    Operation,
    PodNic,
    encode,
    hotplug_mark_key,
    operation_key,
    pod_nic_key,
    pod_nic_of,
)
from schemas.stages import OperationKind
from services.networks import status
from services.networks.delegate import failure_of
from services.networks.plan import Observed, asks_for_record
from tests.support.fake_multus import cni_error
from tests.support.networks_node import NODE, Node
from tests.support.node_kube import PODS
from tests.support.objects import pod

BLUE = pod_interface("blue")
ENTRY = {"name": "default/blue", "interface": BLUE, "dns": {}}
PLUG = Operation(id="op-plug", kind=OperationKind.PLUG, interface="blue")
UNPLUG = Operation(id="op-unplug", kind=OperationKind.UNPLUG, interface="blue", released="uid-p1")
RECORD = PodNic(pod_uid="uid-p1", sandbox_id="s", interface=BLUE, mac="02:00:00:00:00:01", mtu=1500)
STILL_IN_USE = cni_error(11, f"{BLUE} of default/blue {cni.STILL_IN_USE} (bridge k6t-{BLUE[3:]} stands)")


def annotations(operation: Operation | None) -> dict[str, str]:
    held = {NETWORK_STATUS: json.dumps([ENTRY]), pod_nic_key("blue"): encode(RECORD)}
    return held | ({operation_key("blue"): encode(operation)} if operation else {})


def test_entry_record_and_its_own_operation_go_in_one_patch() -> None:
    changed = status.detached(annotations(UNPLUG), "default/blue", BLUE, UNPLUG)
    assert changed == {NETWORK_STATUS: "[]", pod_nic_key("blue"): None, operation_key("blue"): None}


@pytest.mark.parametrize("written", [None, PLUG, Operation(id="op-next", kind=OperationKind.UNPLUG, interface="blue")])
def test_an_operation_that_came_after_stays(written: Operation | None) -> None:
    assert operation_key("blue") not in status.detached(annotations(written), "default/blue", BLUE, UNPLUG)


def test_a_link_attached_again_has_no_record_of_its_earlier_life() -> None:
    """Its plugin tells too little for a record this time: the handler looks at the link itself."""
    result = cni.CniResult(interfaces=[cni.CniInterface(BLUE, sandbox="/run/netns/x")])
    made = status.outcome(pod_uid="u", sandbox_id="s", network="default/blue", link=BLUE, asked="0" * 16, result=result)
    changed = status.attached(annotations(PLUG), made)
    assert changed[pod_nic_key("blue")] is None
    assert changed[hotplug_mark_key(BLUE)] is not None
    told = cni.CniInterface(BLUE, mac="02:00:00:00:00:02", mtu=1400, sandbox="/run/netns/x")
    made = status.outcome(
        pod_uid="u",
        sandbox_id="s",
        network="default/blue",
        link=BLUE,
        asked="0" * 16,
        result=cni.CniResult(interfaces=[told]),
    )
    held = {**annotations(PLUG), hotplug_mark_key(BLUE): encode(HotplugMark(pod_uid="u", interface=BLUE))}
    changed = status.attached(held, made)
    assert changed[hotplug_mark_key(BLUE)] is None
    record = pod_nic_of({pod_nic_key("blue"): changed[pod_nic_key("blue")] or ""}, pod_nic_key("blue"))
    assert record is not None
    assert record.mac == "02:00:00:00:00:02"


def test_a_link_under_a_guest_is_a_reason_of_its_own() -> None:
    code, answer = STILL_IN_USE
    assert failure_of(cni.Command.DEL, code, json.dumps(answer).encode()).reason == "StillInUse"


@pytest.mark.parametrize(("operation", "asks"), [(UNPLUG, True), (None, False)])
def test_what_an_earlier_process_made_and_nobody_wants_any_more_is_looked_for(
    operation: Operation | None, asks: bool
) -> None:
    """It was killed between ADD and patch, and the element has been dropped since: only the record knows the link."""
    held = {operation_key("blue"): encode(operation)} if operation else {}
    seen = Observed(pod({NETWORKS: "", NETWORK_STATUS: "[]", **held}), NODE)
    assert asks_for_record(seen, None) is asks


async def attached(node: Node) -> None:
    node.nad()
    owner: dict[str, Any] = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "vm1"}
    node.pod(metadata={"ownerReferences": [{**owner, "uid": "v"}]}, annotations={operation_key("blue"): encode(PLUG)})
    node.want([{"name": "blue", "namespace": "default", "interface": BLUE}])
    await node.until_links("eth0", BLUE)


async def test_a_guest_that_still_uses_the_link_is_waited_for_and_told_once(node: Node) -> None:
    await attached(node)
    node.multus.script = [STILL_IN_USE] * 3
    node.want([], **{operation_key("blue"): encode(UNPLUG)})
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


async def test_a_released_nic_leaves_nothing_on_the_pod(node: Node) -> None:
    await attached(node)
    assert pod_nic_key("blue") in node.kube.annotations(PODS, "default", "p1")
    before = node.kube.counted("PATCH", PODS)
    node.want([], **{operation_key("blue"): encode(UNPLUG)})
    await node.until_links("eth0")
    assert node.kube.counted("PATCH", PODS) == before + 1
    assert set(node.kube.annotations(PODS, "default", "p1")) == {NETWORK_STATUS, NETWORKS}
    published = await node.until_published(lambda events: isinstance(events[-1], MultusDetached))
    assert (published[-1].operation, published[-1].vmi and published[-1].vmi.name) == (UNPLUG, "vm1")


async def test_a_pod_that_goes_away_is_left_to_the_runtime(node: Node) -> None:
    await attached(node)
    node.kube.objects[PODS, "default", "p1"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    node.want([], **{operation_key("blue"): encode(UNPLUG)})
    await node.idle()
    assert node.multus.verbs == [f"ADD {BLUE}"]
