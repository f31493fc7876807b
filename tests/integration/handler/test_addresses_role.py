"""When the role runs an address server for a NIC and when it stops it, observed by the sockets on the pod's taps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.bus.events import Failed
from schemas.names import tap
from schemas.stages import OperationKind
from tests.support.node import netns as testbed
from tests.support.node.handler_node import IP, Node, handler_node, operation
from tests.support.observed.objects import POD_UID, VMI_UID


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with handler_node() as found:
        yield found


async def plugged(node: Node, *interfaces: str, ips: tuple[str, ...] = (IP,)) -> None:
    for interface in interfaces:
        node.attach_pod_nic(interface, *ips)
    node.put_vmi(*interfaces)
    node.put_network_status(*interfaces)
    for interface in interfaces:
        await node.until_status(interface, "domain")


async def test_nic_with_addresses_is_served_as_long_as_the_guest_has_the_device(node: Node) -> None:
    await plugged(node, "blue")
    assert node.served() == {tap("blue")}
    node.put_vmi(absent=("blue",), operations=(operation("blue", kind=OperationKind.UNPLUG),))
    await node.settled()
    assert node.served() == {tap("blue")}, "a paused guest does not release the device"


async def test_nic_without_addresses_is_not_served(node: Node) -> None:
    await plugged(node, "blue", ips=())
    await node.settled()
    assert node.served() == set()


@pytest.mark.parametrize("ips", [("fd00::2/64",), (IP, "fd00::2/64")], ids=["ipv6", "both"])
async def test_nic_with_ipv6_addresses_is_served(node: Node, ips: tuple[str, ...]) -> None:
    await plugged(node, "blue", ips=ips)
    assert node.served() == {tap("blue")}


async def test_each_nic_has_its_own_server(node: Node) -> None:
    await plugged(node, "blue", "red")
    assert node.served() == {tap("blue"), tap("red")}


async def test_restarted_handler_serves_existing_nics(node: Node) -> None:
    await plugged(node, "blue", "red")
    await node.role.sessions.close()
    assert node.served() == set()
    await node.settled()
    assert node.served() == {tap("blue"), tap("red")}


async def test_removed_namespace_is_freed(node: Node) -> None:
    """The server's socket would keep the namespace alive, and with it the node's ends of the pod's veths."""
    await plugged(node, "blue")
    with node.netns.open("rb") as held:
        testbed.remove(node.netns)
        await node.settled()
        there = Path(f"/proc/self/fd/{held.fileno()}")
        table = testbed.run_in_netns(there, lambda: Path("/proc/thread-self/net/packet").read_text())
    assert len(table.splitlines()) == 1, "a packet socket is still open"
    await node.kube.until(lambda: node.warnings() == ["AddressesNotServed"])


async def test_guest_owned_by_kubevirt_is_not_served(node: Node) -> None:
    await plugged(node, "blue")
    node.owner[0] = "kubevirt"
    await node.settled()
    assert node.served() == set()


async def test_missing_tap_is_reported_and_does_not_block_other_nics(node: Node) -> None:
    await plugged(node, "blue")
    testbed.ip(node.netns, "link", "delete", tap("blue"))
    events = await node.until_published(lambda found: any(isinstance(event, Failed) for event in found))
    failed = next(event for event in events if isinstance(event, Failed))
    assert (failed.reason, failed.operation.interface) == ("AddressesNotServed", "blue")
    assert failed.retry_after is not None
    await node.kube.until(lambda: node.warnings() == ["AddressesNotServed"])
    node.attach_pod_nic("red", IP)
    node.put_vmi("blue", "red")
    node.put_network_status("blue", "red")
    await node.until_status("red", "domain")
    assert node.served() == {tap("red")}


async def test_declined_address_records_one_event(node: Node) -> None:
    await plugged(node, "blue")
    addresses = node.role.sessions.open(VMI_UID, ("default", "vm1"), POD_UID).addresses
    for _ in range(2):
        addresses.declined.add("blue")
        await node.settled()
    assert not addresses.declined
    assert node.warnings() == ["AddressDeclined"]
    assert not any(isinstance(event, Failed) for event in node.bus.published)
