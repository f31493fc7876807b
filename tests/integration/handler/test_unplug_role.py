"""Unplugging on a node: from a real guest that lets go, from one that does not, and where no card ever was."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from schemas.events import Changed, Failed, GuestDetached, ObjectRef, Requested
from schemas.names import pod_interface
from schemas.operations import PodNic, encode, nic_slots_of, pod_nic_key
from schemas.stages import OperationKind, Stage
from services.common.netlink.pool import NetnsPool
from services.common.telemetry.propagation import traceparent_of
from services.handler.apply_netlink import walk
from services.handler.netlink_operations import Seen
from services.handler.pod_network import bridge_binding, link_names, pod_nic_link, steps
from services.lab.guest.qemu import BootNic, Guest, GuestSpec
from services.lab.tools import Tools
from tests.support import netns as testbed
from tests.support.bus import MemoryBus
from tests.support.handler_node import IP, MAC, POD, SANDBOX, VMIS, Node, handler_node, operation
from tests.support.objects import NODE, POD_UID, VMI_UID
from tests.support.qemu import PRIMARY_MAC
from tests.support.spans import named

NAMES = link_names(pod_interface("iface1"))


@asynccontextmanager
async def real_guest(folder: Path) -> AsyncIterator[None]:
    """The lab's guest, in the pod's network namespace, with one slot."""
    spec = GuestSpec.with_tools(
        Tools.find(), name="vm1", uid=VMI_UID, folder=folder / VMI_UID, nics=[BootNic("default", PRIMARY_MAC)], ports=1
    )
    guest = await Guest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
    try:
        await guest.wait_ready()
        yield
    finally:
        await guest.stop()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


def plain_nic(node: Node) -> tuple[str, str, bool, list[str]]:
    """Name, MAC, up and IPv4 addresses of the pod NIC."""
    (link,) = json.loads(testbed.ip(node.netns, "-json", "-4", "address", "show", NAMES.nic))
    (full,) = json.loads(testbed.ip(node.netns, "-json", "link", "show", NAMES.nic))
    addresses = [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])]
    return full["ifname"], full["address"], "UP" in full["flags"], addresses


@pytest.mark.guest
async def test_a_real_guest_lets_go_and_gets_the_card_again() -> None:
    """Plug, unplug and plug again under one name, in the only slot there is: nothing of the first is left."""
    async with handler_node(real_guest, scripted_agent=False) as node:
        node.attach_pod_nic("iface1", IP)
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        assert node.served() == {NAMES.tap}

        with node.telemetry.tracer.start_as_current_span("request") as request:
            unplug = operation("iface1", traceparent_of(), OperationKind.UNPLUG)
        node.wish(absent=("iface1",), operations=(unplug,))
        released = await node.until_released("iface1")
        assert released.id == unplug.id
        assert node.served() == set()
        assert node.status("iface1") == {}
        assert node.links() == {"lo", NAMES.nic}
        assert plain_nic(node) == (NAMES.nic, MAC, True, [IP])
        assert testbed.ip(node.netns, "route").startswith("10.0.0.0/24")
        slots = nic_slots_of(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        assert (slots.free, slots.nics) == (1, 1)
        events = await node.until_published(lambda found: isinstance(found[-1], GuestDetached))
        gone = events[-1]
        assert (gone.operation.id, gone.node, gone.pod, gone.attempt) == (
            unplug.id,
            NODE,
            ObjectRef("default", POD, POD_UID),
            1,
        )
        assert gone.changed is not None
        assert gone.changed.kind == "VirtualMachineInstance"
        await node.settled()
        mine = [
            span
            for span in node.spans.get_finished_spans()
            if span.context is not None and span.context.trace_id == request.get_span_context().trace_id
        ]
        names = [span.name for span in mine]
        order = ["qmp device_del", "handler unplug iface1", "guest let go iface1", "qmp netdev_del"]
        order += [
            f"netlink release {pod_interface('iface1')[3:]}",
            "handler release iface1",
            "send hotplug.guest-detached",
        ]
        assert [name for name in names if name in order] == order
        let_go = named(mine, "guest let go iface1")
        assert (let_go.end_time or 0) - (let_go.start_time or 0) > 10_000_000

        # The CNI plugins take the NIC away and make another; the networks role writes a record of that.
        testbed.ip(node.netns, "link", "del", NAMES.nic)
        node.wish()
        node.show_network_status(**{pod_nic_key("iface1"): None})
        node.attach_pod_nic("iface1", "10.0.0.3/24")
        node.wish("iface1", operations=(operation("iface1"),))
        node.show_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        assert node.links() == {"lo", NAMES.nic, NAMES.bridged, NAMES.bridge, NAMES.tap}


async def test_a_guest_that_keeps_its_card_keeps_its_wiring_and_people_hear_of_it(node: Node) -> None:
    """The guest is paused: it never answers."""
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1")
    node.show_network_status("iface1")
    await node.until_status("iface1", "domain")
    node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    events = await node.until_published(lambda found: any(isinstance(event, Failed) for event in found))
    late = events[-1]
    assert isinstance(late, Failed)
    assert (late.at, late.reason, late.operation.kind) == (Stage.GUEST_DETACHED, "UnplugTimeout", OperationKind.UNPLUG)
    assert late.attempt > 1
    assert late.retry_after is not None
    assert math.isclose(late.retry_after, 2.0, abs_tol=1.0)
    assert "already in the process of unplug" in late.message
    await node.kube.until(lambda: node.warnings() == ["UnplugTimeout"])
    assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
    found = node.operation("iface1")
    assert found is not None
    assert found.released is None
    assert node.status("iface1")["infoSource"] == "domain"


async def test_an_attached_nic_that_was_never_wired_is_released_as_it_is(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    node.show_network_status("iface1")
    node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    await node.until_released("iface1")
    assert plain_nic(node) == (NAMES.nic, MAC, True, [IP])
    (gone,) = await node.until_published(lambda found: len(found) == 1)
    assert isinstance(gone, GuestDetached)


async def test_a_wish_by_kubectl_edit_is_released_under_the_id_that_all_derive(node: Node) -> None:
    node.wish(absent=("iface1",))
    released = await node.until_released("iface1")
    assert released.kind is OperationKind.UNPLUG
    (gone,) = await node.until_published(lambda found: len(found) == 1)
    assert gone.operation == released


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 9, None])
async def test_a_plug_that_was_cut_off_is_undone(node: Node, stop: int | None) -> None:
    """As after a crash in the middle of wiring: no card, but the links as far as it got."""
    node.attach_pod_nic("iface1", IP)
    record = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=NAMES.nic, mac=MAC, mtu=1500, ips=(IP,))
    pool = NetnsPool()
    netns = await pool.open(str(node.netns))
    seen = Seen(tuple(await netns.links()), tuple(await netns.addresses()))
    link = pod_nic_link(seen, NAMES)
    assert link is not None
    todo = steps(seen, bridge_binding(record, NAMES, link, position=1, owner=0))
    await walk(netns, todo[:stop], INVALID_SPAN)
    pool.close()
    node.show_network_status("iface1", **{pod_nic_key("iface1"): encode(record)})
    node.wish(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    await node.until_released("iface1")
    assert node.links() == {"lo", NAMES.nic}
    assert plain_nic(node) == (NAMES.nic, MAC, True, [IP])


async def test_a_request_on_the_bus_is_heard(node: Node) -> None:
    """The watch of VMIs is behind: the version that the event names is read."""
    node.wish("iface1")
    await node.until_status("default", "domain")
    await node.settled()
    unplug = operation("iface1", kind=OperationKind.UNPLUG)
    node.watch_of_vmis.cancel()
    node.wish(absent=("iface1",), operations=(unplug,))
    version = node.kube.objects[VMIS, "default", "vm1"]["metadata"]["resourceVersion"]
    await MemoryBus(node.bus.broker, role="api", node="_", telemetry=node.telemetry).publish(
        Requested(
            operation=unplug,
            vmi=ObjectRef("default", "vm1", VMI_UID),
            node=NODE,
            changed=Changed("VirtualMachineInstance", VMI_UID, version),
        )
    )
    await node.until_released("iface1")
