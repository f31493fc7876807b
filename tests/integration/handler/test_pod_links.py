"""The kinds and names of pod interfaces that the handler accepts, with real links, a real QEMU and the whole role."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schemas.bus.events import Failed
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.operations import read_nic_slots
from schemas.names import pod_interface
from services.common.domain.nic import link_names
from services.common.guest.qmp import QmpGuest
from tests.support.node import netns as testbed
from tests.support.node.handler_node import IP, MAC, VMIS, Node, handler_node, operation
from tests.support.observed.objects import VMI_UID
from tests.support.telemetry.spans import recording_telemetry

LINK = pod_interface("iface1")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


@asynccontextmanager
async def monitor_of(node: Node) -> AsyncIterator[QmpGuest]:
    """Connect to the guest's QMP monitor. It serves one client, so the role has to disconnect first."""
    node.owner[0] = "kubevirt"
    await node.settled()
    monitor = QmpGuest(str(node.folder / VMI_UID / "qmp.sock"), recording_telemetry()[0].tracer)
    yield monitor
    await monitor.close()


async def failed(node: Node, reason: str) -> Failed:
    """Wait for a failure with a reason; return it."""

    def published(found: list[Any]) -> bool:
        return any(isinstance(event, Failed) and event.reason == reason for event in found)

    events = await node.until_published(published)
    return next(event for event in events if isinstance(event, Failed) and event.reason == reason)


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
async def test_a_link_behind_which_a_guest_gets_no_traffic_is_refused_and_not_changed(node: Node, kind: str) -> None:
    name = LINK
    testbed.ip(node.netns, "link", "add", "master0", "type", "bridge")
    testbed.ip(node.netns, "link", "set", "master0", "up")
    testbed.ip(node.netns, "link", "add", "link", "master0", "name", name, "type", kind, "mode", "bridge")
    testbed.ip(node.netns, "link", "set", name, "up")
    testbed.ip(node.netns, "address", "add", IP, "dev", name)
    before = testbed.configured(node.netns)
    node.put_vmi("iface1", operations=(operation("iface1"),))
    node.put_network_status("iface1")
    refusal = await failed(node, "UnsupportedPodLink")
    assert (refusal.retry_after, kind in refusal.message) == (None, True)
    # The controller undoes the attachment when it finds this.
    await node.kube.until(lambda: getattr(node.operation("iface1"), "failed", None) == "UnsupportedPodLink")
    await node.settled()
    assert testbed.configured(node.netns) == before
    slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
    assert slots is not None
    assert (slots.free, slots.nics) == (2, 1)


async def test_in_a_pod_with_ordinal_names_a_nic_is_plugged_and_its_unplug_refused(node: Node) -> None:
    node.attach_pod_nic("iface1", IP, link="net1")
    node.put_vmi("iface1")
    node.put_network_status("iface1", link="net1", **{NETWORKS: "net1@net1"})
    await node.until_status("iface1", "domain")
    assert node.status("iface1")["podInterfaceName"] == "net1"
    expected = {"lo", "net1", "net1-nic", "k6t-net1", "tap1"}
    assert node.links() == expected
    node.put_vmi(absent=("iface1",))
    refusal = await failed(node, "OrdinalPodInterface")
    assert (refusal.retry_after, "net1" in refusal.message) == (None, True)
    await node.settled()
    assert node.links() == expected
    assert node.status("iface1")["infoSource"] == "domain"


async def test_the_alias_has_the_case_of_the_name(node: Node) -> None:
    node.attach_pod_nic("Blue-NIC_1", IP)
    node.put_vmi("Blue-NIC_1")
    node.put_network_status("Blue-NIC_1")
    await node.until_status("Blue-NIC_1", "domain")
    assert link_names(pod_interface("Blue-NIC_1")).tap in node.links()
    # A lower-cased alias would not be found again, and the device would be attached twice.
    await node.settled()
    assert sum(span.name == "qmp device_add" for span in node.spans.get_finished_spans()) == 1
    async with monitor_of(node) as monitor:
        assert (await monitor.list()).devices["ua-Blue-NIC_1"].mac == MAC


async def test_a_multiqueue_vm_gets_a_queue_for_each_cpu(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1", networkInterfaceMultiqueue=True)
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    assert node.status("iface1")["queueCount"] == 2
    (tap,) = json.loads(testbed.ip(node.netns, "-json", "-detail", "link", "show", link_names(LINK).tap))
    queues = tap["linkinfo"]["info_data"]
    # All queues but the first are disabled until a driver enables them.
    assert (queues["multi_queue"], queues["numqueues"] + queues["numdisabled"]) == (True, 2)
    async with monitor_of(node) as monitor:
        multi_queue = {"path": "/machine/peripheral/ua-iface1", "property": "mq"}
        assert bytes(await monitor.client.execute("qom-get", multi_queue)) == b"true"


async def test_a_link_with_more_routes_than_a_record_holds_is_refused_and_not_changed(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    for number in range(250):
        testbed.ip(node.netns, "route", "add", f"172.16.{number}.0/24", "via", "10.0.0.1", "dev", LINK)
    before = testbed.configured(node.netns)
    node.put_vmi("iface1", operations=(operation("iface1"),))
    node.put_network_status("iface1")
    refusal = await failed(node, "PodNicRecordTooLarge")
    assert refusal.retry_after is None
    assert f"{LINK} with 1 addresses and 250 routes" in refusal.message
    await node.kube.until(lambda: getattr(node.operation("iface1"), "failed", None) == "PodNicRecordTooLarge")
    await node.settled()
    assert testbed.configured(node.netns) == before
