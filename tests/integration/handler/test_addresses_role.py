"""When the role has a NIC's guest told its addresses, and when no longer: seen by the sockets on the pod's taps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.events import Failed
from schemas.names import tap
from schemas.stages import OperationKind
from tests.support import netns as testbed
from tests.support.handler_node import IP, Node, handler_node, operation
from tests.support.objects import POD_UID, VMI_UID


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


async def plugged(node: Node, *interfaces: str, ips: tuple[str, ...] = (IP,)) -> None:
    for interface in interfaces:
        node.attach_pod_nic(interface, *ips)
    node.wish(*interfaces)
    node.show_network_status(*interfaces)
    for interface in interfaces:
        await node.until_status(interface, "domain")


async def test_a_nic_with_addresses_is_served_for_as_long_as_the_guest_has_the_card(node: Node) -> None:
    await plugged(node, "blue")
    assert node.served() == {tap("blue")}
    node.wish(absent=("blue",), operations=(operation("blue", kind=OperationKind.UNPLUG),))
    await node.settled()
    assert node.served() == {tap("blue")}, "a paused guest does not let go"


async def test_a_nic_without_addresses_is_not_served(node: Node) -> None:
    await plugged(node, "blue", ips=())
    await node.settled()
    assert node.served() == set()


@pytest.mark.parametrize("ips", [("fd00::2/64",), (IP, "fd00::2/64")], ids=["ipv6", "both"])
async def test_ipv6_addresses_count(node: Node, ips: tuple[str, ...]) -> None:
    await plugged(node, "blue", ips=ips)
    assert node.served() == {tap("blue")}


async def test_each_nic_has_a_server_of_its_own(node: Node) -> None:
    await plugged(node, "blue", "red")
    assert node.served() == {tap("blue"), tap("red")}


async def test_a_handler_that_starts_again_serves_what_it_finds(node: Node) -> None:
    await plugged(node, "blue", "red")
    await node.role.sessions.close()
    assert node.served() == set()
    await node.settled()
    assert node.served() == {tap("blue"), tap("red")}


async def test_a_namespace_that_is_gone_is_let_go(node: Node) -> None:
    """The server's socket would keep it alive, and with it the node's end of the pod's links."""
    await plugged(node, "blue")
    with node.netns.open("rb") as held:
        testbed.remove(node.netns)
        await node.settled()
        there = Path(f"/proc/self/fd/{held.fileno()}")
        table = testbed.inside(there, lambda: Path("/proc/thread-self/net/packet").read_text())
    assert len(table.splitlines()) == 1, "nobody listens"
    await node.kube.until(lambda: node.warnings() == ["AddressesNotServed"])


async def test_a_guest_that_is_not_ours_any_more_is_not_served(node: Node) -> None:
    await plugged(node, "blue")
    node.owner[0] = "kubevirt"
    await node.settled()
    assert node.served() == set()


async def test_a_tap_that_cannot_be_listened_to_is_told_and_holds_nobody_up(node: Node) -> None:
    await plugged(node, "blue")
    testbed.ip(node.netns, "link", "delete", tap("blue"))
    events = await node.until_published(lambda found: any(isinstance(event, Failed) for event in found))
    failed = next(event for event in events if isinstance(event, Failed))
    assert (failed.reason, failed.operation.interface) == ("AddressesNotServed", "blue")
    assert failed.retry_after is not None
    await node.kube.until(lambda: node.warnings() == ["AddressesNotServed"])
    node.attach_pod_nic("red", IP)
    node.wish("blue", "red")
    node.show_network_status("blue", "red")
    await node.until_status("red", "domain")
    assert node.served() == {tap("red")}


async def test_an_address_that_the_guest_does_not_want_is_told_once(node: Node) -> None:
    await plugged(node, "blue")
    addresses = node.role.sessions.of(VMI_UID, ("default", "vm1"), POD_UID).addresses
    for _ in range(2):
        addresses.declined.add("blue")
        await node.settled()
    assert not addresses.declined
    assert node.warnings() == ["AddressDeclined"]
    assert not any(isinstance(event, Failed) for event in node.bus.published)
