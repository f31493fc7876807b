"""The address servers on real taps in a real network namespace, tested with a minimal client."""

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from opentelemetry.trace import INVALID_SPAN

from schemas.kubernetes.operations import PodNic, RecordedRoute
from schemas.names import pod_interface
from services.common.domain.nic import link_names
from services.common.netlink.errors import LinkMissing
from services.common.netlink.netns import Netns
from services.common.netlink.packets import packet_socket
from services.common.netlink.pool import NetnsPool
from services.handler.addresses.dhcp import dhcp4
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    advertised_neighbour,
    link_local,
    neighbour_solicitation,
)
from services.handler.addresses.offer import build_offer
from services.handler.addresses.packets import filter
from services.handler.addresses.packets.frames import BROADCAST, Datagram, Icmp6, build_frame
from services.handler.addresses.responder import Replies, Responder
from services.handler.addresses.served import ServedAddresses
from services.handler.addresses.server import AddressServer
from services.handler.addresses.service import AddressServers
from services.handler.pod_network.apply import apply_operations
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.setup import (
    LinkNames,
    bridge_address,
    bridge_binding,
    bridge_mac,
    pod_nic_link,
    setup_operations,
)
from services.handler.pod_network.teardown import teardown_operations
from tests.support.guest.tap import LIMITED_BROADCAST, UNSPECIFIED, TapGuest
from tests.support.node import netns as testbed

POD = "22222222-2222-4222-8222-222222222222"
MACS = ("3e:89:92:5a:b5:a7", "3e:89:92:5a:b5:a8")
RANDOM_DATAGRAMS = 10_000
"""Number of random datagrams."""


class Nic:
    """A pod interface with its pod network for a guest; its peer is in the namespace ``node``."""

    def __init__(self, pod: "Pod", number: int, record: PodNic) -> None:
        self.pod = pod
        self.number = number
        self.record = record
        self.mac = record.mac
        self.names: LinkNames = link_names(record.interface)

    @property
    def peer(self) -> str:
        return f"veth{self.number}"

    @property
    def desired(self) -> ServedAddresses:
        offer = build_offer(
            self.record,
            mac=self.mac,
            server=bridge_address(self.number),
            server_mac=bridge_mac(POD, self.record.interface),
            hostname="vm1",
        )
        assert offer is not None
        return ServedAddresses(f"nic{self.number}", self.names.tap, self.names.bridge, offer)

    async def observe(self) -> ObservedLinks:
        netns = self.pod.netns
        return ObservedLinks(tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()))

    async def set_up(self) -> None:
        observed = await self.observe()
        link = pod_nic_link(observed, self.names)
        assert link is not None
        binding = bridge_binding(self.record, self.names, link, position=self.number, owner=0)
        await apply_operations(self.pod.netns, setup_operations(observed, binding), INVALID_SPAN)

    async def tear_down(self) -> None:
        await apply_operations(
            self.pod.netns, teardown_operations(await self.observe(), self.names, self.record), INVALID_SPAN
        )

    def guest(self) -> TapGuest:
        return TapGuest(self.pod.path, self.names.tap, self.mac)


class Pod:
    """A pod's namespace, that of its node, and the address servers of the pod's guest."""

    def __init__(self, directory: Path, netns: Netns) -> None:
        self.node = directory / "node"
        self.path = directory / "pod"
        self.netns = netns
        self.requeued = asyncio.Semaphore(0)
        self.dhcp_replies = asyncio.Semaphore(0)
        self.addresses = AddressServers(self.requeued.release, self.dhcp_replies.release, structlog.get_logger())

    async def nic(self, number: int, *ips: str, routes: tuple[RecordedRoute, ...] = (), mtu: int = 1500) -> Nic:
        """Add a NIC with its pod network and without an address server."""
        name = pod_interface(f"nic{number}")
        testbed.veth(self.path, name, self.node, f"veth{number}")
        testbed.ip(self.path, "link", "set", name, "address", MACS[number], "up")
        record = PodNic(pod_uid=POD, sandbox_id="s", interface=name, mac=MACS[number], mtu=mtu, ips=ips, routes=routes)
        found = Nic(self, number, record)
        await found.set_up()
        return found

    async def served_nic(self, number: int, *ips: str, **options: Any) -> Nic:
        """Add a NIC with its pod network and an address server."""
        nic = await self.nic(number, *ips, **options)
        await self.addresses.serve(nic.desired, self.netns)
        return nic

    def packet_sockets(self) -> int:
        """Return the number of open packet sockets in the pod's namespace."""
        return (
            len(testbed.run_in_netns(self.path, lambda: Path("/proc/thread-self/net/packet").read_text()).splitlines())
            - 1
        )


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    pool = NetnsPool()
    with testbed.namespace(tmp_path, "node"), testbed.namespace(tmp_path, "pod") as path:
        found = Pod(tmp_path, await pool.open(str(path)))
        yield found
        found.addresses.close()
        assert found.packet_sockets() == 0
        pool.close()


async def lease4(nic: Nic) -> dhcp4.Dhcp4Message:
    with nic.guest() as guest:
        return await asyncio.to_thread(guest.lease4)


ROUTES = (RecordedRoute("0.0.0.0/0", "10.0.0.1"), RecordedRoute("10.1.0.0/16", "10.0.0.9"))


async def test_client_gets_address_and_routes(pod: Pod) -> None:
    lease = await lease4(await pod.served_nic(0, "10.0.0.2/24", routes=ROUTES, mtu=1400))
    assert lease.yiaddr == IPv4Address("10.0.0.2")
    assert lease.options[dhcp4.Dhcp4Option.SUBNET_MASK] == b"\xff\xff\xff\0"
    assert lease.options[dhcp4.Dhcp4Option.ROUTER] == b"\x0a\0\0\1"
    assert lease.options[dhcp4.Dhcp4Option.CLASSLESS_ROUTES] == b"\x10\x0a\1\x0a\0\0\x09\0\x0a\0\0\1"
    assert lease.options[dhcp4.Dhcp4Option.MTU] == (1400).to_bytes(2)
    assert lease.options[dhcp4.Dhcp4Option.SERVER_ID] == IPv4Address("169.254.75.10").packed
    assert lease.options[dhcp4.Dhcp4Option.HOSTNAME] == b"vm1"


async def test_dhcp_reply_and_decline_are_reported(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24")
    await lease4(nic)
    async with asyncio.timeout(45):
        await pod.dhcp_replies.acquire()
    with nic.guest() as guest:
        guest.send4(guest.message4(dhcp4.Dhcp4MessageType.DECLINE, 9, requested_address=IPv4Address("10.0.0.2").packed))
        async with asyncio.timeout(45):
            await pod.requeued.acquire()
    assert pod.addresses.declined == {"nic0"}


async def test_ipv6_only_nic_is_served_by_advertisement_and_dhcpv6(pod: Pod) -> None:
    nic = await pod.served_nic(0, "fd00::2/64", mtu=1400)
    with nic.guest() as guest:
        advertisement = await asyncio.to_thread(guest.solicit_router)
        assert advertisement.source == link_local(bytes.fromhex(bridge_mac(POD, nic.record.interface).replace(":", "")))
        assert IPv6Address("fd00::").packed in advertisement.body
        assert await asyncio.to_thread(guest.lease6) == (IPv6Address("fd00::2"),)
        guest.send4(guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 1))
        assert await asyncio.to_thread(guest.receive4, 1, 0.3) is None


async def test_two_nics_get_their_own_addresses(pod: Pod) -> None:
    nics = [await pod.served_nic(0, "10.0.0.2/24", "fd00::2/64"), await pod.served_nic(1, "10.0.1.2/24", "fd01::2/64")]
    for nic in nics:
        assert (await lease4(nic)).yiaddr == IPv4Address(f"10.0.{nic.number}.2")
        with nic.guest() as guest:
            assert await asyncio.to_thread(guest.lease6) == (IPv6Address(f"fd0{nic.number}::2"),)


async def test_renewal_sent_to_the_router_gets_a_reply(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24", routes=ROUTES)
    router, address = bytes.fromhex("0a0000000001"), IPv4Address("10.0.0.2")
    with nic.guest() as guest:
        renewal = msgspec.structs.replace(guest.message4(dhcp4.Dhcp4MessageType.REQUEST, 7), ciaddr=address)
        payload = dhcp4.encode(renewal)
        packet = Datagram(guest.mac, router, address, IPv4Address("169.254.75.10"), 68, 67, payload)
        reply = await asyncio.to_thread(
            guest.request, packet, lambda packet: isinstance(packet, Datagram) and packet.destination_port == 68
        )
    assert isinstance(reply, Datagram)
    lease = dhcp4.decode(reply.payload)
    assert (lease.message_type, lease.yiaddr) == (dhcp4.Dhcp4MessageType.ACK, address)


async def test_only_the_guest_gets_replies(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24")
    other = bytes.fromhex("020000000099")
    with nic.guest() as guest:
        discover = guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 5)
        guest.send4(discover, mac=other)
        guest.send4(guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 5, chaddr=other))
        plain = build_frame(
            Datagram(guest.mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, dhcp4.encode(discover))
        )
        guest.send(plain[:12] + b"\x81\0\0\x07" + plain[12:])  # in a VLAN that the guest made
        guest.send(plain[:20] + b"\x20\0" + plain[22:])  # the first of several fragments
        guest.send(plain[:23] + b"\x06" + plain[24:])  # TCP
        assert await asyncio.to_thread(guest.receive4, 5, 0.3) is None
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")


async def test_network_behind_the_bridge_gets_no_replies(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24")
    peer = testbed.run_in_netns(pod.node, lambda: packet_socket(nic.peer, filter.guest_filter(ipv4=True, ipv6=False)))
    with peer, nic.guest() as guest:
        message = dhcp4.encode(guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 5))
        peer.send(build_frame(Datagram(guest.mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, message)))
        assert await asyncio.to_thread(guest.receive4, 5, 0.3) is None
        await asyncio.to_thread(guest.lease4)
        received = []
        while True:
            try:
                received.append(peer.recv(2048))
            except BlockingIOError:
                break
    # The bridge floods the guest's own requests, as any broadcast, but no reply.
    assert len(received) == 2
    assert all(frame[6:12] == guest.mac for frame in received)


async def test_router_with_a_global_address_is_resolved_by_its_alias(pod: Pod) -> None:
    nic = await pod.served_nic(0, "fd00::2/64", routes=(RecordedRoute("::/0", "fd00::1"),))
    testbed.ip(pod.node, "address", "add", "fd00::1/64", "dev", nic.peer, "nodad")
    shown = json.loads(testbed.ip(pod.node, "-json", "link", "show", nic.peer))
    router_mac = bytes.fromhex(shown[0]["address"].replace(":", ""))
    with nic.guest() as guest:
        alias = (await asyncio.to_thread(guest.solicit_router)).source
        solicitation = neighbour_solicitation(guest.mac, alias)

        def resolve() -> Icmp6 | None:
            for _ in range(90):
                guest.send(build_frame(solicitation))
                found = guest.receive(
                    lambda packet: (
                        isinstance(packet, Icmp6)
                        and packet.message_type == NEIGHBOUR_ADVERTISEMENT
                        and packet.source == alias
                    ),
                    0.5,
                )
                if isinstance(found, Icmp6):
                    return found
            return None

        advertisement = await asyncio.to_thread(resolve)
    assert advertisement is not None
    assert advertised_neighbour(advertisement) == (alias, router_mac)


async def test_replugged_nic_is_served_with_its_new_address(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24", "fd00::2/64")
    assert (await lease4(nic)).yiaddr == IPv4Address("10.0.0.2")
    pod.addresses.stop("nic0")
    assert pod.packet_sockets() == 0
    await nic.tear_down()
    nic.record = msgspec.structs.replace(nic.record, ips=("10.0.0.3/24",))
    await nic.set_up()
    await pod.addresses.serve(nic.desired, pod.netns)
    assert (await lease4(nic)).yiaddr == IPv4Address("10.0.0.3")


async def test_servers_are_listed_with_what_they_serve(pod: Pod) -> None:
    first, second = await pod.served_nic(0, "10.0.0.2/24"), await pod.served_nic(1, "10.0.1.2/24")
    here = pod.netns.identity
    names = (first.desired.interface, second.desired.interface)
    assert pod.addresses.serving(here) == dict(zip(names, (first.desired, second.desired), strict=True))
    assert pod.addresses.serving((here[0], here[1] + 1)) == dict.fromkeys(names)
    assert pod.addresses.serving(None) == dict.fromkeys(names)
    pod.addresses.stop(names[0])
    assert pod.packet_sockets() == 1
    assert pod.addresses.serving(here) == {names[1]: second.desired}
    pod.addresses.close()
    assert pod.packet_sockets() == 0


async def test_removed_tap_ends_its_server_and_requeues_the_guest(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24")
    testbed.ip(pod.path, "link", "delete", nic.names.tap)
    async with asyncio.timeout(45):
        await pod.requeued.acquire()
    assert pod.addresses.serving(pod.netns.identity) == {nic.desired.interface: None}
    with pytest.raises(LinkMissing):
        await pod.addresses.serve(nic.desired, pod.netns)
    assert pod.packet_sockets() == 0


async def test_failed_start_of_a_server_leaves_no_socket_open(pod: Pod) -> None:
    nic = await pod.nic(0, "fd00::2/64", routes=(RecordedRoute("::/0", "fd00::1"),))
    testbed.ip(pod.path, "link", "delete", nic.names.tap)
    with pytest.raises(LinkMissing):
        await pod.addresses.serve(nic.desired, pod.netns)
    assert pod.packet_sockets() == 0


async def test_namespace_is_freed_when_its_servers_are_closed(pod: Pod) -> None:
    """An open packet socket keeps the namespace alive, and with it the peer of the pod interface."""
    nic = await pod.served_nic(0, "10.0.0.2/24")
    testbed.remove(pod.path)
    assert nic.peer in testbed.ip(pod.node, "-oneline", "link")
    pod.addresses.close()
    pod.netns._access.close()
    await asyncio.to_thread(wait_until_gone, pod.node, nic.peer)
    testbed.add(pod.path)


def wait_until_gone(netns: Path, link: str) -> None:
    deadline = time.monotonic() + 45
    while link in testbed.ip(netns, "-oneline", "link"):
        assert time.monotonic() < deadline, "the pod's namespace is still alive"
        time.sleep(0.05)


def resident_memory() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def send_random(guest: TapGuest, count: int, rng: random.Random) -> None:
    """Send datagrams and messages of random bytes, some with a valid beginning."""
    discover = dhcp4.encode(guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 5))
    servers = IPv6Address("ff02::1:2")
    for number in range(count):
        noise = rng.randbytes(rng.randrange(600))
        match number % 4:
            case 0:
                packet: Datagram | Icmp6 = Datagram(guest.mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, noise)
            case 1:
                cut = discover[: rng.randrange(len(discover))] + noise
                packet = Datagram(guest.mac, BROADCAST, UNSPECIFIED, LIMITED_BROADCAST, 68, 67, cut)
            case 2:
                head = struct.pack("!B3s", rng.randrange(13), b"abc")
                packet = Datagram(guest.mac, BROADCAST, guest.address, servers, 546, 547, head + noise)
            case _:
                message_type = rng.choice((133, 135))
                packet = Icmp6(guest.mac, BROADCAST, guest.address, servers, message_type, noise[:100])
        guest.send(build_frame(packet))


class CountingResponder(Responder):
    """A responder that counts the frames of the guest."""

    frames = 0

    def reply_to_guest(self, frame: bytes) -> Replies:
        self.frames += 1
        return super().reply_to_guest(frame)


@contextmanager
def unlimited_server(pod: Pod, nic: Nic, tap: socket.socket) -> Iterator[CountingResponder]:
    """Run a server without a rate limit."""
    responder, unlimited = CountingResponder(nic.desired.offer), float("inf")
    log = structlog.get_logger()
    server = AddressServer(responder, tap, None, log, lambda _: None, pod.requeued.release, burst=unlimited, rate=0.0)
    try:
        yield responder
    finally:
        server.close()


async def test_random_datagrams_do_not_grow_memory(pod: Pod) -> None:
    nic = await pod.nic(0, "10.0.0.2/24", "fd00::2/64")
    tap = await pod.netns.open_packet_socket(nic.names.tap, filter.guest_filter(ipv4=True, ipv6=True))
    rng = random.Random(1)
    with unlimited_server(pod, nic, tap) as responder, nic.guest() as guest:

        async def send(count: int) -> None:
            for _ in range(count // 20):
                send_random(guest, 20, rng)
                # Read the replies before sending more, so that the kernel drops no frame.
                while guest.receive(lambda _: True, 0.0) is not None:
                    continue
                await asyncio.sleep(0)

        await send(1_000)
        before = resident_memory()
        await send(RANDOM_DATAGRAMS)
        assert resident_memory() - before < 5 * 1024 * 1024
        assert responder.frames == 1_000 + RANDOM_DATAGRAMS
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")


async def test_flooding_guest_is_slowed_down_but_served(pod: Pod) -> None:
    nic = await pod.served_nic(0, "10.0.0.2/24")
    with nic.guest() as guest:
        for _ in range(400):
            guest.send4(guest.message4(dhcp4.Dhcp4MessageType.DISCOVER, 9))
        replies = 0
        while await asyncio.to_thread(guest.receive4, 9, 0.05) is not None:
            replies += 1
        assert 0 < replies < 200
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")
