"""Unplugging on a node: from a real guest, from a guest that does not respond, and where no device was attached."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.trace import INVALID_SPAN

from lab.guest.qemu import BootNic, GuestSpec, QemuGuest
from lab.tools import LabTools
from schemas.bus.events import ChangedObject, Failed, GuestDetached, ObjectRef, Requested
from schemas.kubernetes.operations import PodNic, encode_annotation, pod_nic_key, read_nic_slots
from schemas.names import pod_interface
from schemas.stages import OperationKind, Stage
from services.common.domain.nic import link_names
from services.common.flowcontrol.backoff import interval
from services.common.netlink.pool import NetnsPool
from services.common.telemetry.propagation import traceparent_of
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.setup import bridge_binding, pod_nic_link, setup_operations
from services.handler.unplug import FIRST_RETRY, MAX_RETRY_INTERVAL
from tests.support.bus.memory import MemoryBus
from tests.support.guest.qemu import PRIMARY_MAC
from tests.support.node import netns as testbed
from tests.support.node.handler_node import IP, MAC, POD, SANDBOX, VMIS, Node, handler_node, operation
from tests.support.observed.objects import NODE, POD_UID, VMI_UID
from tests.support.telemetry.spans import named

NAMES = link_names(pod_interface("iface1"))


@asynccontextmanager
async def real_guest(folder: Path) -> AsyncIterator[None]:
    """Run the lab's guest in the pod's network namespace, with one free slot."""
    spec = GuestSpec.with_tools(
        LabTools.find(),
        name="vm1",
        uid=VMI_UID,
        folder=folder / VMI_UID,
        nics=[BootNic("default", PRIMARY_MAC)],
        ports=1,
    )
    guest = await QemuGuest.start(spec, launch=["nsenter", f"--net={folder / 'pod'}", "--"])
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
    """Return name, MAC, up and IPv4 addresses of the pod interface."""
    (link,) = json.loads(testbed.ip(node.netns, "-json", "-4", "address", "show", NAMES.pod_interface))
    (full,) = json.loads(testbed.ip(node.netns, "-json", "link", "show", NAMES.pod_interface))
    addresses = [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])]
    return full["ifname"], full["address"], "UP" in full["flags"], addresses


@pytest.mark.guest
async def test_a_real_guest_completes_an_unplug_and_a_second_plug() -> None:
    """Plug, unplug and plug again under one name, in the only slot there is: nothing of the first plug remains."""
    async with handler_node(real_guest, scripted_agent=False) as node:
        node.attach_pod_nic("iface1", IP)
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        assert node.served() == {NAMES.tap}

        with node.telemetry.tracer.start_as_current_span("request") as request:
            unplug = operation("iface1", traceparent_of(), OperationKind.UNPLUG)
        node.put_vmi(absent=("iface1",), operations=(unplug,))
        released = await node.until_released("iface1")
        assert released.id == unplug.id
        assert node.served() == set()
        assert node.status("iface1") == {}
        assert node.links() == {"lo", NAMES.pod_interface}
        assert plain_nic(node) == (NAMES.pod_interface, MAC, True, [IP])
        assert testbed.ip(node.netns, "route").startswith("10.0.0.0/24")
        slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
        assert slots is not None
        assert (slots.free, slots.nics) == (1, 1)
        events = await node.until_published(lambda found: isinstance(found[-1], GuestDetached))
        detached = events[-1]
        assert (detached.operation.id, detached.node, detached.pod, detached.attempt) == (
            unplug.id,
            NODE,
            ObjectRef("default", POD, POD_UID),
            1,
        )
        assert detached.changed is not None
        assert detached.changed.kind == "VirtualMachineInstance"
        await node.settled()
        mine = [
            span
            for span in node.spans.get_finished_spans()
            if span.context is not None and span.context.trace_id == request.get_span_context().trace_id
        ]
        names = [span.name for span in mine]
        # The request to a slow guest is repeated.
        order = ["qmp device_del", "handler unplug iface1"] * max(1, names.count("qmp device_del"))
        order += [
            "guest unplug iface1",
            "qmp netdev_del",
            f"netlink teardown {pod_interface('iface1')[3:]}",
            "handler teardown iface1",
            "send hotplug.guest-detached",
        ]
        assert [name for name in names if name in order] == order
        guest_unplug = named(mine, "guest unplug iface1")
        assert (guest_unplug.end_time or 0) - (guest_unplug.start_time or 0) > 10_000_000

        # The CNI plugins delete the pod interface and create another, which the networks role records.
        testbed.ip(node.netns, "link", "del", NAMES.pod_interface)
        node.put_vmi()
        node.put_network_status(**{pod_nic_key("iface1"): None})
        node.attach_pod_nic("iface1", "10.0.0.3/24")
        node.put_vmi("iface1", operations=(operation("iface1"),))
        node.put_network_status("iface1")
        await node.until_status("iface1", "domain", "guest-agent")
        assert node.links() == {"lo", NAMES.pod_interface, NAMES.bridged, NAMES.bridge, NAMES.tap}


async def test_the_pod_network_of_a_pending_unplug_remains_and_the_timeout_is_published(node: Node) -> None:
    """The guest is paused, so it never responds."""
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    # QEMU refuses to repeat a request for 5 s; on a busy machine the second one may come later.
    repeated = "already in the process of unplug"
    events = await node.until_published(lambda found: any(repeated in getattr(one, "message", "") for one in found))
    late = next(event for event in events if isinstance(event, Failed) and repeated in event.message)
    assert (late.at, late.reason, late.operation.kind) == (Stage.GUEST_DETACHED, "UnplugTimeout", OperationKind.UNPLUG)
    assert late.attempt > 1
    assert late.retry_after is not None
    assert 0 < late.retry_after <= interval(late.attempt, FIRST_RETRY, MAX_RETRY_INTERVAL)
    await node.kube.until(lambda: node.warnings() == ["UnplugTimeout"])
    assert {NAMES.bridged, NAMES.bridge, NAMES.tap} <= node.links()
    found = node.operation("iface1")
    assert found is not None
    assert found.released is None
    assert node.status("iface1")["infoSource"] == "domain"


async def test_an_attached_nic_without_a_pod_network_is_released_unchanged(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    node.put_network_status("iface1")
    node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    await node.until_released("iface1")
    assert plain_nic(node) == (NAMES.pod_interface, MAC, True, [IP])
    (detached,) = await node.until_published(lambda found: len(found) == 1)
    assert isinstance(detached, GuestDetached)


async def test_an_unplug_by_kubectl_edit_is_released_under_the_derived_id(node: Node) -> None:
    node.put_vmi(absent=("iface1",))
    released = await node.until_released("iface1")
    assert released.kind is OperationKind.UNPLUG
    (detached,) = await node.until_published(lambda found: len(found) == 1)
    assert detached.operation == released


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 9, None])
async def test_an_interrupted_plug_is_torn_down(node: Node, stop: int | None) -> None:
    """As after a crash during the set-up: no device, and only a part of the links."""
    node.attach_pod_nic("iface1", IP)
    record = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=NAMES.pod_interface, mac=MAC, mtu=1500, ips=(IP,))
    pool = NetnsPool()
    netns = await pool.open(str(node.netns))
    observed = ObservedLinks(tuple(await netns.links()), tuple(await netns.addresses()))
    link = pod_nic_link(observed, NAMES)
    assert link is not None
    operations = setup_operations(observed, bridge_binding(record, NAMES, link, position=1, owner=0))
    await apply_operations(netns, operations[:stop], INVALID_SPAN)
    pool.close()
    node.put_network_status("iface1", **{pod_nic_key("iface1"): encode_annotation(record)})
    node.put_vmi(absent=("iface1",), operations=(operation("iface1", kind=OperationKind.UNPLUG),))
    await node.until_released("iface1")
    assert node.links() == {"lo", NAMES.pod_interface}
    assert plain_nic(node) == (NAMES.pod_interface, MAC, True, [IP])


async def test_a_request_on_the_bus_is_handled(node: Node) -> None:
    """The watch of VMIs is stopped, so the version that the event names is read from the API server."""
    node.put_vmi("iface1")
    await node.until_status("default", "domain")
    await node.settled()
    unplug = operation("iface1", kind=OperationKind.UNPLUG)
    node.watch_of_vmis.cancel()
    node.put_vmi(absent=("iface1",), operations=(unplug,))
    version = node.kube.objects[VMIS, "default", "vm1"]["metadata"]["resourceVersion"]
    await MemoryBus(node.bus.broker, role="api", node="_", telemetry=node.telemetry).publish(
        Requested(
            operation=unplug,
            vmi=ObjectRef("default", "vm1", VMI_UID),
            node=NODE,
            changed=ChangedObject("VirtualMachineInstance", VMI_UID, version),
        )
    )
    await node.until_released("iface1")
