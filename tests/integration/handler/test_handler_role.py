"""The whole role on a node: a real netns and QEMU, a scripted API server, runtime, guest agent and bus."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from schemas.events import Changed, ConfirmedBy, Failed, GuestAttached, MultusAttached, ObjectRef
from schemas.names import pod_interface
from schemas.operations import PodNic, encode, nic_slots_of, pod_nic_key, pod_nic_of
from services.common.telemetry.propagation import traceparent_of
from services.handler.pod_network import link_names
from tests.support import netns as testbed
from tests.support.bus import MemoryBus
from tests.support.handler_node import IP, MAC, POD, SANDBOX, VMIS, Node, handler_node, operation, parts
from tests.support.node_kube import PODS, Refused
from tests.support.objects import NODE, POD_UID, VMI_UID
from tests.support.qemu import PRIMARY_MAC
from tests.support.spans import named, one_trace, tree


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


async def test_a_guest_that_runs_is_reported_with_its_slots(node: Node) -> None:
    node.wish()
    await node.until_status("default", "domain")
    assert node.status("default")["mac"] == PRIMARY_MAC
    slots = nic_slots_of(node.kube.annotations(VMIS, "default", "vm1"))
    assert slots is not None
    assert (slots.free, slots.nics, slots.pod_uid) == (2, 1, POD_UID)
    assert node.bus.published == []


async def test_an_attached_pod_nic_becomes_a_card_by_watch_alone(node: Node) -> None:
    node.bus.broker.stop()
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1")
    node.show_network_status("iface1")
    await node.until_status("iface1", "domain")
    entry = node.status("iface1")
    assert (entry["mac"], entry["podInterfaceName"]) == (MAC, pod_interface("iface1"))
    record = pod_nic_of(node.kube.annotations(PODS, "default", POD), pod_nic_key("iface1"))
    assert record is not None
    assert (record.mac, record.ips, record.sandbox_id) == (MAC, (IP,), SANDBOX)
    names = link_names(pod_interface("iface1"))
    shown = testbed.ip(node.netns, "-oneline", "link")
    assert all(f"{name}:" in shown or f"{name}@" in shown for name in (names.bridge, names.bridged, names.tap))


async def test_the_guests_agent_confirms_the_card(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1")
    node.show_network_status("iface1")
    await node.until_status("iface1", "domain")
    await node.settled()
    # So it will be asked until it lists the card, however long that takes.
    assert node.role.sessions.of(VMI_UID, ("default", "vm1"), POD_UID).agent.expected == {MAC}
    node.agent.shows("eth1", MAC, "10.0.0.2")
    events = await node.until_published(lambda found: len(found) == 2)
    assert all(isinstance(event, GuestAttached) for event in events)
    assert [event.confirmed_by for event in events if isinstance(event, GuestAttached)] == [
        ConfirmedBy.DEVICE,
        ConfirmedBy.GUEST_AGENT,
    ]
    await node.until_status("iface1", "domain", "guest-agent")
    assert (node.status("iface1")["interfaceName"], node.status("iface1")["ipAddress"]) == ("eth1", "10.0.0.2")


async def test_the_work_stands_in_the_operations_trace(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    with node.telemetry.tracer.start_as_current_span("request") as request:
        traceparent = traceparent_of()
    plug = operation("iface1", traceparent)
    node.wish("iface1", operations=(plug,))
    await node.until_status("default", "domain")
    patched = node.show_network_status("iface1")
    meta = patched["metadata"]
    await MemoryBus(node.bus.broker, role="networks", node=NODE, telemetry=node.telemetry).publish(
        MultusAttached(
            operation=plug,
            vmi=ObjectRef("default", "vm1", VMI_UID),
            pod=ObjectRef("default", POD, POD_UID),
            node=NODE,
            changed=Changed("Pod", POD_UID, meta["resourceVersion"]),
            pod_interface=pod_interface("iface1"),
        )
    )
    await node.until_status("iface1", "domain")
    node.agent.shows("eth1", MAC)
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
    assert children[:2] == ["kube patch pods", "netlink wire 7e0055a6880"]
    # At the same time as the card is attached.
    assert sorted(children[2:5]) == ["netlink listen tap7e0055a6880", "qmp device_add", "qmp netdev_add"]
    assert children.count("guest confirm iface1") == 2
    wire = named(mine, "netlink wire 7e0055a6880")
    assert [event.name for event in wire.events][:2] == ["AddLink", "AddAddress"]
    assert sum(span.name == "send hotplug.guest-attached" for span in mine) == 2


async def test_an_existing_record_is_used_and_not_rewritten(node: Node) -> None:
    node.attach_pod_nic("iface1", IP)
    record = PodNic(
        pod_uid=POD_UID, sandbox_id=SANDBOX, interface=pod_interface("iface1"), mac="02:00:00:00:00:aa", mtu=1400
    )
    node.wish("iface1")
    node.show_network_status("iface1", **{pod_nic_key("iface1"): encode(record)})
    await node.until_status("iface1", "domain")
    assert node.status("iface1")["mac"] == "02:00:00:00:00:aa"
    assert node.kube.counted("PATCH", PODS) == 0
    assert "mtu 1400" in testbed.ip(node.netns, "link", "show", link_names(pod_interface("iface1")).tap)


async def test_slots_run_out_for_good_and_only_for_the_last(node: Node) -> None:
    names = ("a", "b", "c")
    for name in names:
        node.attach_pod_nic(name)
    node.wish(*names, operations=(operation("c"),))
    node.show_network_status(*names)
    events = await node.until_published(lambda found: any(isinstance(event, Failed) for event in found))
    await node.until_status("b", "domain")
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.reason, failed.operation.interface, failed.retry_after) == ("NoFreeSlot", "c", None)
    slots = nic_slots_of(node.kube.annotations(VMIS, "default", "vm1"))
    assert slots is not None
    assert (slots.free, slots.nics) == (0, 3)
    await node.kube.until(lambda: node.warnings() == ["NoFreeSlot"])
    await node.kube.until(lambda: getattr(node.operation("c"), "failed", None) == "NoFreeSlot")
    await node.settled()
    assert sum(isinstance(event, Failed) for event in node.bus.published) == 1
    assert link_names(pod_interface("c")).tap not in node.links()


async def test_a_missing_pod_link_is_told_and_waited_for(node: Node) -> None:
    node.wish("iface1")
    node.show_network_status("iface1")
    (failed, *_) = await node.until_published(lambda found: len(found) >= 1)
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.attempt) == ("PodLinkMissing", 1)
    assert failed.retry_after is not None
    node.attach_pod_nic("iface1")
    await node.until_status("iface1", "domain")


async def test_a_status_that_others_write_meanwhile_is_merged(node: Node) -> None:
    node.attach_pod_nic("iface1")
    node.wish("iface1")
    await node.until_status("default", "domain")
    raced: list[str] = []

    def controller_is_first(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and plural == VMIS and not raced:
            raced.append("once")
            known = node.kube.objects[VMIS, "default", "vm1"]
            entries = [*known["status"]["interfaces"], {"name": "iface1", "infoSource": "multus-status"}]
            node.kube.put(VMIS, **parts(known), status={**known["status"], "interfaces": entries})

    node.kube.before = controller_is_first
    node.show_network_status("iface1")
    await node.until_status("iface1", "domain", "multus-status")
    assert raced


async def test_a_watch_that_is_behind_plugs_nothing_twice_and_takes_nothing_back(node: Node) -> None:
    """The cache goes on showing a VMI without the card that the guest has long since got."""
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1")
    await node.until_status("default", "domain")
    await node.settled()
    node.watch_of_vmis.cancel()
    node.show_network_status("iface1")
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


async def test_an_api_server_that_is_away_is_waited_for(node: Node) -> None:
    node.attach_pod_nic("iface1")
    refusals: list[str] = []

    def away(method: str, plural: str, _name: str) -> None:
        if method == "PATCH" and len(refusals) < 2:
            refusals.append(plural)
            raise Refused(503, "ServiceUnavailable", "later")

    node.kube.before = away
    node.wish("iface1")
    node.show_network_status("iface1")
    await node.until_status("iface1", "domain")
    assert len(refusals) == 2


async def test_a_sandbox_that_was_made_anew_is_found(node: Node) -> None:
    node.attach_pod_nic("a")
    node.wish("a")
    node.show_network_status("a")
    await node.until_status("a", "domain")
    await node.settled()
    stale = node.role._observer._sandboxes[POD_UID]
    node.role._observer._sandboxes[POD_UID] = msgspec.structs.replace(stale, netns=str(node.folder / "gone"))
    node.attach_pod_nic("b")
    node.wish("a", "b")
    node.show_network_status("a", "b")
    await node.until_status("b", "domain")


async def test_a_guest_that_kubevirt_drives_is_not_touched(node: Node) -> None:
    node.owner[0] = "kubevirt"
    node.attach_pod_nic("iface1", IP)
    node.wish("iface1")
    node.show_network_status("iface1")
    await node.settled()
    assert not node.role.sessions.has(("default", "vm1"))
    assert node.kube.counted("PATCH", VMIS) == 0
    assert node.links() == {"lo", pod_interface("iface1")}
    node.owner[0] = "hotnic"
    node.role.look_at_all()
    await node.until_status("iface1", "domain")


async def test_a_guest_that_ends_is_let_go(node: Node) -> None:
    node.wish()
    await node.until_status("default", "domain")
    known = node.kube.objects[VMIS, "default", "vm1"]
    node.kube.put(VMIS, **parts(known), status={**known["status"], "phase": "Succeeded"})
    await node.until(lambda: not node.role.sessions.has(("default", "vm1")))


def links_set(node: Node, interface: str) -> list[str]:
    """How the cable of a card was set, in order."""
    spans = [span for span in node.spans.get_finished_spans() if span.name == "qmp set_link"]
    mine = [span.attributes or {} for span in spans if (span.attributes or {})["hotnic.interface"] == interface]
    return [str(attributes["hotnic.link"]) for attributes in mine]


async def test_a_cables_state_is_followed_and_set_again_by_a_handler_that_lost_the_guest(node: Node) -> None:
    async def shown(interface: str, state: str) -> None:
        await node.kube.until(lambda: node.status(interface).get("linkState") == state, timeout=10)

    node.attach_pod_nic("iface1", IP)
    node.wish("iface1", states={"iface1": "down"})
    node.show_network_status("iface1")
    await shown("iface1", "down")
    await shown("default", "up")
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down"], ["up"])
    node.wish("iface1", states={"default": "down"})
    await shown("iface1", "up")
    await shown("default", "down")
    await node.settled()
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down", "up"], ["up", "down"])
    await node.role.sessions.close()
    await node.settled()
    assert (links_set(node, "iface1"), links_set(node, "default")) == (["down", "up", "up"], ["up", "down", "down"])
