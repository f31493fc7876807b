"""The whole role on a node: a real netns and QEMU, a fake API server, runtime, guest agent and bus."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from schemas.bus.events import ChangedObject, ConfirmedBy, Failed, GuestAttached, MultusAttached, ObjectRef
from schemas.kubernetes.operations import PodNic, encode_annotation, pod_nic_key, read_nic_slots, read_pod_nic
from schemas.names import pod_interface
from services.common.domain.nic import link_names
from services.common.telemetry.propagation import traceparent_of
from tests.support.bus.memory import MemoryBus
from tests.support.guest.qemu import PRIMARY_MAC
from tests.support.kube.node_kube import PODS, Refused
from tests.support.node import netns as testbed
from tests.support.node.handler_node import IP, MAC, POD, SANDBOX, VMIS, Node, handler_node, operation, parts
from tests.support.observed.objects import NODE, POD_UID, VMI_UID
from tests.support.telemetry.spans import named, one_trace, tree


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


async def test_a_running_guest_is_reported_with_its_slots(node: Node) -> None:
    node.put_vmi()
    await node.until_status("default", "domain")
    assert node.status("default")["mac"] == PRIMARY_MAC
    slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
    assert slots is not None
    assert (slots.free, slots.nics, slots.pod_uid) == (2, 1, POD_UID)
    assert node.bus.published == []


async def test_an_attached_pod_interface_is_plugged_without_the_bus(node: Node) -> None:
    node.bus.broker.stop()
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    entry = node.status("iface1")
    assert (entry["mac"], entry["podInterfaceName"]) == (MAC, pod_interface("iface1"))
    record = read_pod_nic(node.kube.annotations(PODS, "default", POD), pod_nic_key("iface1"))
    assert record is not None
    assert (record.mac, record.ips, record.sandbox_id) == (MAC, (IP,), SANDBOX)
    names = link_names(pod_interface("iface1"))
    shown = testbed.ip(node.netns, "-oneline", "link")
    assert all(f"{name}:" in shown or f"{name}@" in shown for name in (names.bridge, names.bridged, names.tap))


async def test_the_guest_agent_confirms_the_nic(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    await node.settled()
    # The agent is polled until it lists this MAC.
    assert node.role.sessions.open(VMI_UID, ("default", "vm1"), POD_UID).agent.expected == {MAC}
    node.agent.add_nic("eth1", MAC, "10.0.0.2")
    events = await node.until_published(lambda found: len(found) == 2)
    assert all(isinstance(event, GuestAttached) for event in events)
    assert [event.confirmed_by for event in events if isinstance(event, GuestAttached)] == [
        ConfirmedBy.DEVICE,
        ConfirmedBy.GUEST_AGENT,
    ]
    await node.until_status("iface1", "domain", "guest-agent")
    assert (node.status("iface1")["interfaceName"], node.status("iface1")["ipAddress"]) == ("eth1", "10.0.0.2")


async def test_the_spans_belong_to_the_trace_of_the_operation(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    with node.telemetry.tracer.start_as_current_span("request") as request:
        traceparent = traceparent_of()
    plug = operation("iface1", traceparent)
    node.put_vmi("iface1", operations=(plug,))
    await node.until_status("default", "domain")
    patched = node.put_network_status("iface1")
    meta = patched["metadata"]
    await MemoryBus(node.bus.broker, role="networks", node=NODE, telemetry=node.telemetry).publish(
        MultusAttached(
            operation=plug,
            vmi=ObjectRef("default", "vm1", VMI_UID),
            pod=ObjectRef("default", POD, POD_UID),
            node=NODE,
            changed=ChangedObject("Pod", POD_UID, meta["resourceVersion"]),
            pod_interface=pod_interface("iface1"),
        )
    )
    await node.until_status("iface1", "domain")
    node.agent.add_nic("eth1", MAC)
    await node.until_published(lambda found: len(found) == 2)
    await node.settled()
    mine = [
        span
        for span in node.spans.get_finished_spans()
        if span.context is not None and span.context.trace_id == request.get_span_context().trace_id
    ]
    assert one_trace(mine)
    work = named(mine, "handler plug iface1")
    below = dict(tree(mine))["request"]
    assert "handler plug iface1" in str(below)
    children = [
        span.name for span in mine if span.parent and work.context and span.parent.span_id == work.context.span_id
    ]
    assert children[:2] == ["kube patch pods/status", "netlink setup 7e0055a6880"]
    # In parallel to the attach.
    assert sorted(children[2:5]) == ["netlink listen tap7e0055a6880", "qmp device_add", "qmp netdev_add"]
    assert children.count("guest confirm iface1") == 2
    setup = named(mine, "netlink setup 7e0055a6880")
    assert [event.name for event in setup.events][:2] == ["AddLink", "AddAddress"]
    assert sum(span.name == "send hotplug.guest-attached" for span in mine) == 2


async def test_an_existing_record_is_used_and_not_rewritten(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    record = PodNic(
        pod_uid=POD_UID, sandbox_id=SANDBOX, interface=pod_interface("iface1"), mac="02:00:00:00:00:aa", mtu=1400
    )
    node.put_vmi("iface1")
    node.put_network_status("iface1", **{pod_nic_key("iface1"): encode_annotation(record)})
    await node.until_status("iface1", "domain")
    assert node.status("iface1")["mac"] == "02:00:00:00:00:aa"
    assert node.kube.counted("PATCH", PODS) == 0
    assert "mtu 1400" in testbed.ip(node.netns, "link", "show", link_names(pod_interface("iface1")).tap)


async def test_a_plug_is_reported_by_the_next_run_with_one_patch_and_no_live_read(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    record = PodNic(pod_uid=POD_UID, sandbox_id=SANDBOX, interface=pod_interface("iface1"), mac=MAC, mtu=1500)
    node.put_vmi("iface1")
    # The last report of a new guest.
    await node.kube.until(lambda: node.status("default").get("linkState") == "up")
    await node.until(lambda: "linkState" in str(node.role.vmis.get("default", "vm1")))
    await node.settled()
    requests = len(node.kube.requests)
    node.put_network_status("iface1", **{pod_nic_key("iface1"): encode_annotation(record)})
    (attached,) = await node.until_published(lambda found: len(found) == 1)
    assert isinstance(attached, GuestAttached)
    assert (attached.sandbox_id, attached.attempt) == (SANDBOX, 1)
    assert [request[:2] for request in node.kube.requests[requests:]] == [("PATCH", VMIS)]


async def test_only_the_nic_without_a_free_slot_fails_for_good(node: Node) -> None:
    names = ("a", "b", "c")
    for name in names:
        node.attach_pod_nic(name)
    node.put_vmi(*names, operations=(operation("c"),))
    node.put_network_status(*names)
    events = await node.until_published(lambda found: any(isinstance(event, Failed) for event in found))
    await node.until_status("b", "domain")
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.reason, failed.operation.interface, failed.retry_after) == ("NoFreeSlot", "c", None)
    slots = read_nic_slots(node.kube.annotations(VMIS, "default", "vm1"))
    assert slots is not None
    assert (slots.free, slots.nics) == (0, 3)
    await node.kube.until(lambda: node.warnings() == ["NoFreeSlot"])
    await node.kube.until(lambda: getattr(node.operation("c"), "failed", None) == "NoFreeSlot")
    await node.settled()
    assert sum(isinstance(event, Failed) for event in node.bus.published) == 1
    assert link_names(pod_interface("c")).tap not in node.links()


async def test_a_missing_pod_link_is_published_and_retried(node: Node) -> None:
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    (failed, *_) = await node.until_published(lambda found: len(found) >= 1)
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.attempt) == ("PodLinkMissing", 1)
    assert failed.retry_after is not None
    node.attach_pod_nic("iface1")
    await node.until_status("iface1", "domain")


async def test_a_status_that_others_write_meanwhile_is_merged(node: Node) -> None:
    node.attach_pod_nic("iface1")
    node.put_vmi("iface1")
    await node.until_status("default", "domain")
    raced: list[str] = []

    def controller_is_first(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and plural == VMIS and not raced:
            raced.append("once")
            known = node.kube.objects[VMIS, "default", "vm1"]
            entries = [*known["status"]["interfaces"], {"name": "iface1", "infoSource": "multus-status"}]
            node.kube.put(VMIS, **parts(known), status={**known["status"], "interfaces": entries})

    node.kube.before = controller_is_first
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain", "multus-status")
    assert raced


async def test_with_a_stale_cache_nothing_is_plugged_twice_or_undone(node: Node) -> None:
    """The cache shows a VMI without the device that the guest got since."""
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1")
    await node.until_status("default", "domain")
    await node.settled()
    node.watch_of_vmis.cancel()
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    before = node.links(), node.kube.objects[VMIS, "default", "vm1"]["metadata"]["resourceVersion"]
    for _ in range(3):
        await node.settled()
    after = node.links(), node.kube.objects[VMIS, "default", "vm1"]["metadata"]["resourceVersion"]
    assert after == before
    assert [span.name for span in node.spans.get_finished_spans()].count("qmp device_add") == 1
    stale = node.role.vmis.get("default", "vm1")
    assert stale is not None
    assert "iface1" not in str(stale.status.interfaces)


async def test_an_unavailable_api_server_is_retried(node: Node) -> None:
    node.attach_pod_nic("iface1")
    refusals: list[str] = []

    def away(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and len(refusals) < 2:
            refusals.append(plural)
            raise Refused(503, "ServiceUnavailable", "later")

    node.kube.before = away
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    await node.until_status("iface1", "domain")
    assert len(refusals) == 2


async def test_a_recreated_sandbox_is_found(node: Node) -> None:
    node.attach_pod_nic("a")
    node.put_vmi("a")
    node.put_network_status("a")
    await node.until_status("a", "domain")
    await node.settled()
    stale = node.role.sandboxes._by_pod[POD_UID]
    node.role.sandboxes._by_pod[POD_UID] = msgspec.structs.replace(stale, netns=str(node.folder / "gone"))
    node.attach_pod_nic("b")
    node.put_vmi("a", "b")
    node.put_network_status("a", "b")
    await node.until_status("b", "domain")


async def test_a_vm_that_kubevirt_owns_is_not_changed(node: Node) -> None:
    node.owner[0] = "kubevirt"
    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1")
    node.put_network_status("iface1")
    await node.settled()
    assert not node.role.sessions.has(("default", "vm1"))
    assert node.kube.counted("PATCH", VMIS) == 0
    assert node.links() == {"lo", pod_interface("iface1")}
    node.owner[0] = "hotnic"
    node.role.requeue_all()
    await node.until_status("iface1", "domain")


async def test_the_session_of_a_guest_that_ended_is_closed(node: Node) -> None:
    node.put_vmi()
    await node.until_status("default", "domain")
    known = node.kube.objects[VMIS, "default", "vm1"]
    node.kube.put(VMIS, **parts(known), status={**known["status"], "phase": "Succeeded"})
    await node.until(lambda: not node.role.sessions.has(("default", "vm1")))


def links_set(node: Node, interface: str) -> list[str]:
    """Return the link states that were set on a device, in order."""
    spans = [span for span in node.spans.get_finished_spans() if span.name == "qmp set_link"]
    mine = [span.attributes or {} for span in spans if (span.attributes or {})["hotnic.interface"] == interface]
    return [str(attributes["hotnic.link"]) for attributes in mine]


async def test_the_link_state_is_set_and_set_again_by_a_restarted_handler(node: Node) -> None:
    async def shown(interface: str, state: str) -> None:
        await node.kube.until(lambda: node.status(interface).get("linkState") == state, timeout=45)

    node.attach_pod_nic("iface1", IP)
    node.put_vmi("iface1", states={"iface1": "down"})
    node.put_network_status("iface1")
    await shown("iface1", "down")
    await shown("default", "up")
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down"], ["up"])
    node.put_vmi("iface1", states={"default": "down"})
    await shown("iface1", "up")
    await shown("default", "down")
    await node.settled()
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down", "up"], ["up", "down"])
    await node.role.sessions.close()
    await node.settled()
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down", "up", "up"], ["up", "down", "down"])
