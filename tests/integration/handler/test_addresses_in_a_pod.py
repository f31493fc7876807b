"""The address servers on real taps in a real network namespace, asked by a client of a few lines."""

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

from schemas.names import pod_interface
from schemas.operations import PodNic, RecordedRoute
from services.common.netlink.errors import LinkMissing
from services.common.netlink.netns import Netns
from services.common.netlink.packets import packet_socket
from services.common.netlink.pool import NetnsPool
from services.handler.addresses import dhcp4, filter
from services.handler.addresses.frames import BROADCAST, Datagram, Icmp6, build
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    ask_neighbour,
    link_local,
    told_neighbour,
)
from services.handler.addresses.offer import offer_of
from services.handler.addresses.responder import Said, Talk
from services.handler.addresses.served import Wish
from services.handler.addresses.server import Server
from services.handler.addresses.service import Addresses
from services.handler.apply_netlink import walk
from services.handler.netlink_operations import Seen
from services.handler.pod_network import (
    LinkNames,
    bridge_address,
    bridge_binding,
    bridge_mac,
    link_names,
    pod_nic_link,
    steps,
)
from services.handler.teardown import release_steps
from tests.support import netns as testbed
from tests.support.tap_guest import EVERYWHERE, NOWHERE, TapGuest

POD = "22222222-2222-4222-8222-222222222222"
MACS = ("3e:89:92:5a:b5:a7", "3e:89:92:5a:b5:a8")
STORM = 10_000
"""Random datagrams."""


class Nic:
    """A pod NIC with its other end in the namespace ``node``, wired as for a guest."""

    def __init__(self, pod: "Pod", number: int, record: PodNic) -> None:
        self.pod = pod
        self.number = number
        self.record = record
        self.mac = record.mac
        self.names: LinkNames = link_names(record.interface)

    @property
    def outer(self) -> str:
        return f"veth{self.number}"

    @property
    def wish(self) -> Wish:
        offer = offer_of(
            self.record,
            mac=self.mac,
            server=bridge_address(self.number),
            server_mac=bridge_mac(POD, self.record.interface),
            hostname="vm1",
        )
        assert offer is not None
        return Wish(f"nic{self.number}", self.names.tap, self.names.bridge, offer)

    async def seen(self) -> Seen:
        netns = self.pod.netns
        return Seen(tuple(await netns.links()), tuple(await netns.addresses()), tuple(await netns.routes()))

    async def wire(self) -> None:
        seen = await self.seen()
        link = pod_nic_link(seen, self.names)
        assert link is not None
        wiring = bridge_binding(self.record, self.names, link, position=self.number, owner=0)
        await walk(self.pod.netns, steps(seen, wiring), INVALID_SPAN)

    async def release(self) -> None:
        await walk(self.pod.netns, release_steps(await self.seen(), self.names, self.record), INVALID_SPAN)

    def guest(self) -> TapGuest:
        return TapGuest(self.pod.path, self.names.tap, self.mac)


class Pod:
    """A pod's namespace, the node's beside it, and the servers of the pod's guest."""

    def __init__(self, directory: Path, netns: Netns) -> None:
        self.node = directory / "node"
        self.path = directory / "pod"
        self.netns = netns
        self.looks = asyncio.Semaphore(0)
        self.given = asyncio.Semaphore(0)
        self.addresses = Addresses(self.looks.release, self.given.release, structlog.get_logger())

    async def nic(self, number: int, *ips: str, routes: tuple[RecordedRoute, ...] = (), mtu: int = 1500) -> Nic:
        """Another NIC, wired and not served yet."""
        name = pod_interface(f"nic{number}")
        testbed.veth(self.path, name, self.node, f"veth{number}")
        testbed.ip(self.path, "link", "set", name, "address", MACS[number], "up")
        record = PodNic(pod_uid=POD, sandbox_id="s", interface=name, mac=MACS[number], mtu=mtu, ips=ips, routes=routes)
        found = Nic(self, number, record)
        await found.wire()
        return found

    async def served(self, number: int, *ips: str, **more: Any) -> Nic:
        """Another NIC, wired and served."""
        nic = await self.nic(number, *ips, **more)
        await self.addresses.serve(nic.wish, self.netns)
        return nic

    def listeners(self) -> int:
        """How many packet sockets are open in the pod's namespace."""
        return len(testbed.inside(self.path, lambda: Path("/proc/thread-self/net/packet").read_text()).splitlines()) - 1


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    pool = NetnsPool()
    with testbed.namespace(tmp_path, "node"), testbed.namespace(tmp_path, "pod") as path:
        found = Pod(tmp_path, await pool.open(str(path)))
        yield found
        found.addresses.close()
        assert found.listeners() == 0
        pool.close()


async def lease4(nic: Nic) -> dhcp4.Message:
    with nic.guest() as guest:
        return await asyncio.to_thread(guest.lease4)


ROUTES = (RecordedRoute("0.0.0.0/0", "10.0.0.1"), RecordedRoute("10.1.0.0/16", "10.0.0.9"))


async def test_a_client_gets_address_and_routes(pod: Pod) -> None:
    given = await lease4(await pod.served(0, "10.0.0.2/24", routes=ROUTES, mtu=1400))
    assert given.yiaddr == IPv4Address("10.0.0.2")
    assert given.options[dhcp4.Option.MASK] == b"\xff\xff\xff\0"
    assert given.options[dhcp4.Option.ROUTER] == b"\x0a\0\0\1"
    assert given.options[dhcp4.Option.CLASSLESS_ROUTES] == b"\x10\x0a\1\x0a\0\0\x09\0\x0a\0\0\1"
    assert given.options[dhcp4.Option.MTU] == (1400).to_bytes(2)
    assert given.options[dhcp4.Option.SERVER] == IPv4Address("169.254.75.10").packed
    assert given.options[dhcp4.Option.HOSTNAME] == b"vm1"


async def test_that_a_client_got_its_address_and_that_it_does_not_want_it_is_told(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24")
    await lease4(nic)
    async with asyncio.timeout(5):
        await pod.given.acquire()
    with nic.guest() as guest:
        guest.say4(guest.message4(dhcp4.Kind.DECLINE, 9, requested=IPv4Address("10.0.0.2").packed))
        async with asyncio.timeout(5):
            await pod.looks.acquire()
    assert pod.addresses.declined == {"nic0"}


async def test_a_nic_with_ipv6_alone_is_told_by_advertisement_and_dhcpv6(pod: Pod) -> None:
    nic = await pod.served(0, "fd00::2/64", mtu=1400)
    with nic.guest() as guest:
        told = await asyncio.to_thread(guest.look_for_router)
        assert told.source == link_local(bytes.fromhex(bridge_mac(POD, nic.record.interface).replace(":", "")))
        assert IPv6Address("fd00::").packed in told.body
        assert await asyncio.to_thread(guest.lease6) == (IPv6Address("fd00::2"),)
        guest.say4(guest.message4(dhcp4.Kind.DISCOVER, 1))
        assert await asyncio.to_thread(guest.hear4, 1, 0.3) is None


async def test_two_nics_are_told_their_own(pod: Pod) -> None:
    nics = [await pod.served(0, "10.0.0.2/24", "fd00::2/64"), await pod.served(1, "10.0.1.2/24", "fd01::2/64")]
    for nic in nics:
        assert (await lease4(nic)).yiaddr == IPv4Address(f"10.0.{nic.number}.2")
        with nic.guest() as guest:
            assert await asyncio.to_thread(guest.lease6) == (IPv6Address(f"fd0{nic.number}::2"),)


async def test_a_renewal_that_goes_to_the_router_is_answered(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24", routes=ROUTES)
    router, mine = bytes.fromhex("0a0000000001"), IPv4Address("10.0.0.2")
    with nic.guest() as guest:
        renewal = msgspec.structs.replace(guest.message4(dhcp4.Kind.REQUEST, 7), ciaddr=mine)
        payload = dhcp4.encode(renewal)
        packet = Datagram(guest.mac, router, mine, IPv4Address("169.254.75.10"), 68, 67, payload)
        told = await asyncio.to_thread(guest.ask, packet, lambda told: isinstance(told, Datagram) and told.port == 68)
    assert isinstance(told, Datagram)
    given = dhcp4.decode(told.payload)
    assert (given.kind, given.yiaddr) == (dhcp4.Kind.ACK, mine)


async def test_nobody_but_the_guest_is_answered(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24")
    other = bytes.fromhex("020000000099")
    with nic.guest() as guest:
        discover = guest.message4(dhcp4.Kind.DISCOVER, 5)
        guest.say4(discover, mac=other)
        guest.say4(guest.message4(dhcp4.Kind.DISCOVER, 5, chaddr=other))
        plain = build(Datagram(guest.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, dhcp4.encode(discover)))
        guest.send(plain[:12] + b"\x81\0\0\x07" + plain[12:])  # in a VLAN of the guest's own
        guest.send(plain[:20] + b"\x20\0" + plain[22:])  # the first of several fragments
        guest.send(plain[:23] + b"\x06" + plain[24:])  # TCP
        assert await asyncio.to_thread(guest.hear4, 5, 0.3) is None
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")


async def test_the_network_behind_the_bridge_neither_asks_nor_hears(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24")
    outside = testbed.inside(pod.node, lambda: packet_socket(nic.outer, filter.of_guest(ipv4=True, ipv6=False)))
    with outside, nic.guest() as guest:
        message = dhcp4.encode(guest.message4(dhcp4.Kind.DISCOVER, 5))
        outside.send(build(Datagram(guest.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, message)))
        assert await asyncio.to_thread(guest.hear4, 5, 0.3) is None
        await asyncio.to_thread(guest.lease4)
        heard = []
        while True:
            try:
                heard.append(outside.recv(2048))
            except BlockingIOError:
                break
    # The guest's own questions are flooded by the bridge, as any broadcast is; no answer is.
    assert len(heard) == 2
    assert all(frame[6:12] == guest.mac for frame in heard)


async def test_a_router_with_a_global_address_is_found_by_its_alias(pod: Pod) -> None:
    nic = await pod.served(0, "fd00::2/64", routes=(RecordedRoute("::/0", "fd00::1"),))
    testbed.ip(pod.node, "address", "add", "fd00::1/64", "dev", nic.outer, "nodad")
    shown = json.loads(testbed.ip(pod.node, "-json", "link", "show", nic.outer))
    router_mac = bytes.fromhex(shown[0]["address"].replace(":", ""))
    with nic.guest() as guest:
        alias = (await asyncio.to_thread(guest.look_for_router)).source
        question = ask_neighbour(guest.mac, alias)

        def ask() -> Icmp6 | None:
            for _ in range(10):
                guest.send(build(question))
                found = guest.receive(
                    lambda packet: (
                        isinstance(packet, Icmp6) and packet.kind == NEIGHBOUR_ADVERTISEMENT and packet.source == alias
                    ),
                    0.5,
                )
                if isinstance(found, Icmp6):
                    return found
            return None

        told = await asyncio.to_thread(ask)
    assert told is not None
    assert told_neighbour(told) == (alias, router_mac)


async def test_a_nic_is_served_again_right_after_a_new_plug_of_its_name(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24", "fd00::2/64")
    assert (await lease4(nic)).yiaddr == IPv4Address("10.0.0.2")
    pod.addresses.stop("nic0")
    assert pod.listeners() == 0
    await nic.release()
    nic.record = msgspec.structs.replace(nic.record, ips=("10.0.0.3/24",))
    await nic.wire()
    await pod.addresses.serve(nic.wish, pod.netns)
    assert (await lease4(nic)).yiaddr == IPv4Address("10.0.0.3")


async def test_servers_follow_what_is_wished(pod: Pod) -> None:
    first, second = await pod.served(0, "10.0.0.2/24"), await pod.served(1, "10.0.1.2/24")
    here = pod.netns.identity
    assert all(pod.addresses.serves(nic.wish, here) for nic in (first, second))
    assert not pod.addresses.serves(first.wish, (here[0], here[1] + 1))
    changed = msgspec.structs.replace(first.record, ips=("10.0.0.4/24",))
    first.record = changed
    pod.addresses.keep([first.wish, second.wish])
    assert pod.listeners() == 1
    assert not pod.addresses.serves(first.wish, pod.netns.identity)
    pod.addresses.keep([])
    assert pod.listeners() == 0


async def test_a_tap_that_goes_ends_its_server_and_is_told(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24")
    testbed.ip(pod.path, "link", "delete", nic.names.tap)
    async with asyncio.timeout(5):
        await pod.looks.acquire()
    assert not pod.addresses.serves(nic.wish, pod.netns.identity)
    with pytest.raises(LinkMissing):
        await pod.addresses.serve(nic.wish, pod.netns)
    assert pod.listeners() == 0


async def test_a_server_that_cannot_be_started_whole_leaves_nothing_open(pod: Pod) -> None:
    nic = await pod.nic(0, "fd00::2/64", routes=(RecordedRoute("::/0", "fd00::1"),))
    testbed.ip(pod.path, "link", "delete", nic.names.tap)
    with pytest.raises(LinkMissing):
        await pod.addresses.serve(nic.wish, pod.netns)
    assert pod.listeners() == 0


async def test_a_namespace_ends_with_its_servers(pod: Pod) -> None:
    """An open socket keeps a namespace alive, and with it the other end of the pod's NIC."""
    nic = await pod.served(0, "10.0.0.2/24")
    testbed.remove(pod.path)
    assert nic.outer in testbed.ip(pod.node, "-oneline", "link")
    pod.addresses.close()
    pod.netns._access.close()
    await asyncio.to_thread(expect_gone, pod.node, nic.outer)
    testbed.add(pod.path)


def expect_gone(netns: Path, link: str) -> None:
    deadline = time.monotonic() + 5
    while link in testbed.ip(netns, "-oneline", "link"):
        assert time.monotonic() < deadline, "something keeps the pod's namespace alive"
        time.sleep(0.05)


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def storm(guest: TapGuest, count: int, dice: random.Random) -> None:
    """Datagrams and messages of random bytes, some with a beginning that makes sense."""
    discover = dhcp4.encode(guest.message4(dhcp4.Kind.DISCOVER, 5))
    servers = IPv6Address("ff02::1:2")
    for number in range(count):
        noise = dice.randbytes(dice.randrange(600))
        match number % 4:
            case 0:
                packet: Datagram | Icmp6 = Datagram(guest.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, noise)
            case 1:
                cut = discover[: dice.randrange(len(discover))] + noise
                packet = Datagram(guest.mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67, cut)
            case 2:
                head = struct.pack("!B3s", dice.randrange(13), b"abc")
                packet = Datagram(guest.mac, BROADCAST, guest.address, servers, 546, 547, head + noise)
            case _:
                kind = dice.choice((133, 135))
                packet = Icmp6(guest.mac, BROADCAST, guest.address, servers, kind, noise[:100])
        guest.send(build(packet))


class Counted(Talk):
    """A conversation that counts what it hears."""

    heard = 0

    def from_guest(self, frame: bytes) -> Said:
        self.heard += 1
        return super().from_guest(frame)


@contextmanager
def hears_all(pod: Pod, nic: Nic, tap: socket.socket) -> Iterator[Counted]:
    """A server that hears as fast as it can."""
    talk, unlimited = Counted(nic.wish.offer), float("inf")
    log = structlog.get_logger()
    server = Server(talk, tap, None, log, lambda _: None, pod.looks.release, at_once=unlimited, per_second=0.0)
    try:
        yield talk
    finally:
        server.close()


async def test_a_storm_of_random_datagrams_costs_no_memory(pod: Pod) -> None:
    nic = await pod.nic(0, "10.0.0.2/24", "fd00::2/64")
    tap = await pod.netns.packets(nic.names.tap, filter.of_guest(ipv4=True, ipv6=True))
    dice = random.Random(1)
    with hears_all(pod, nic, tap) as talk, nic.guest() as guest:

        async def blow(count: int) -> None:
            for _ in range(count // 20):
                storm(guest, 20, dice)
                # Each is heard before the next ones come, so that none is dropped by the kernel.
                while guest.receive(lambda _: True, 0.0) is not None:
                    continue
                await asyncio.sleep(0)

        await blow(1_000)
        before = resident()
        await blow(STORM)
        assert resident() - before < 5 * 1024 * 1024
        assert talk.heard == 1_000 + STORM
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")


async def test_a_guest_that_talks_too_much_is_heard_later_but_is_heard(pod: Pod) -> None:
    nic = await pod.served(0, "10.0.0.2/24")
    with nic.guest() as guest:
        for _ in range(400):
            guest.say4(guest.message4(dhcp4.Kind.DISCOVER, 9))
        answers = 0
        while await asyncio.to_thread(guest.hear4, 9, 0.05) is not None:
            answers += 1
        assert 0 < answers < 200
        assert (await asyncio.to_thread(guest.lease4)).yiaddr == IPv4Address("10.0.0.2")
