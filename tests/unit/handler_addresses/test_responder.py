"""The conversation: router advertisements, the router's MAC for its alias, and what either side cannot make of it."""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses import dhcp4, dhcp6
from services.handler.addresses.frames import Datagram, Icmp6, Malformed, build, read
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    alias_of,
    ask_neighbour,
    asked_neighbour,
    link_local,
    tell_neighbour,
    told_neighbour,
)
from services.handler.addresses.offer import Hop, Ipv4, Ipv6, Offer
from services.handler.addresses.responder import NOTHING, Talk

MAC, OTHER, BRIDGE, ROUTER_MAC = (
    bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455", "0a0000000001")
)
ROUTER, GUEST = IPv6Address("fd00::1"), link_local(MAC)
NODES = IPv6Address("ff02::1")
IPS, NETWORK = (IPv6Interface("fd00::2/64"),), IPv6Network("fd00::/64")
IPV6 = Ipv6(IPS, (NETWORK,), (Hop(ROUTER, default=True),))
OFFER = Offer(MAC, BRIDGE, 1450, ipv4=Ipv4(IPv4Address("169.254.75.11"), IPv4Interface("10.0.0.2/24")), ipv6=IPV6)


def offer(ipv6: Ipv6, **changes: object) -> Offer:
    return msgspec.structs.replace(OFFER, ipv6=ipv6, **changes)


def icmp(*frames: bytes | None) -> Icmp6:
    (frame,) = frames
    assert frame is not None
    found = read(frame)
    assert isinstance(found, Icmp6)
    return found


def solicitation(source_mac: bytes = MAC, hops: int = 255) -> bytes:
    routers = IPv6Address("ff02::2")
    return build(Icmp6(source_mac, b"\x33\x33\0\0\0\2", GUEST, routers, ROUTER_SOLICITATION, bytes(4), hops=hops))


def looking_for(target: IPv6Address, source: IPv6Address = GUEST, source_mac: bytes = MAC) -> bytes:
    return build(msgspec.structs.replace(ask_neighbour(source_mac, target), source=source))


class Advertised:
    """A router advertisement, read by a second pair of eyes."""

    def __init__(self, *frames: bytes) -> None:
        found = icmp(*frames)
        assert (found.kind, found.hops, found.mac, found.destination) == (
            ROUTER_ADVERTISEMENT, 255, b"\x33\x33\0\0\0\1", NODES,
        )  # fmt: skip
        self.source = found.source
        self.hops, self.flags, self.lifetime = struct.unpack_from("!BBH", found.body)
        self.options: dict[int, list[bytes]] = {}
        at = 12
        while at < len(found.body):
            size = found.body[at + 1] * 8
            assert 0 < size <= len(found.body) - at
            self.options.setdefault(found.body[at], []).append(found.body[at + 2 : at + size])
            at += size


def test_an_advertisement_says_what_is_on_link_and_that_addresses_come_by_dhcp() -> None:
    told = Advertised(*Talk(OFFER).unasked())
    assert (told.flags, told.hops) == (0xC0, 64)
    (prefix,) = told.options[3]
    length, flags, valid, preferred = struct.unpack_from("!BBII", prefix)
    assert (length, flags, IPv6Address(prefix[14:])) == (64, 0x80, IPv6Address("fd00::"))
    assert valid == preferred == 0xFFFFFFFF
    assert told.options[5] == [b"\0\0" + (1450).to_bytes(4)]
    assert set(told.options) == {3, 5}


def test_name_servers_and_domains_are_advertised() -> None:
    dns = IPv6Address("fd00::53")
    told = Advertised(*Talk(offer(Ipv6(IPS, nameservers=(dns,)), search=("corp.example",))).unasked())
    assert told.options[25] == [bytes(2) + b"\xff" * 4 + dns.packed]
    assert told.options[31] == [bytes(2) + b"\xff" * 4 + b"\4corp\7example\0\0\0"]


@pytest.mark.parametrize(
    ("router", "source", "lifetime"),
    [
        (None, link_local(BRIDGE), 0),
        ("fe80::1", IPv6Address("fe80::1"), 65535),
        ("fd00::1", alias_of(ROUTER), 65535),
    ],
)
def test_an_advertisement_comes_from_the_router(router: str | None, source: IPv6Address, lifetime: int) -> None:
    hops = (Hop(IPv6Address(router), default=True),) if router else ()
    talk = Talk(offer(Ipv6(IPS, (NETWORK,), hops)))
    told = Advertised(*talk.unasked())
    assert (told.source, told.lifetime) == (source, lifetime)
    assert source.is_link_local
    assert talk.needs_network == (router == "fd00::1")


def test_each_next_hop_advertises_its_routes_and_the_first_one_what_is_on_link() -> None:
    other = IPv6Address("fe80::9")
    routes = tuple(IPv6Network(network) for network in ("fd05::/64", "fd06::/48", "fd07::1/128"))
    hops = (Hop(ROUTER, default=True), Hop(other, routes=routes))
    first, second = map(Advertised, Talk(offer(Ipv6(IPS, (NETWORK, IPv6Network("fd01::/48")), hops))).unasked())
    assert [(p[0], IPv6Address(p[14:])) for p in first.options[3]] == [
        (64, IPv6Address("fd00::")),
        (48, IPv6Address("fd01::")),
    ]
    assert (second.source, second.lifetime, set(second.options)) == (other, 0, {24})
    assert [(r[0], IPv6Address(r[6:].ljust(16, b"\0"))) for r in second.options[24]] == [
        (64, IPv6Address("fd05::")),
        (48, IPv6Address("fd06::")),
        (128, IPv6Address("fd07::1")),
    ]


def test_an_advertisement_fits_every_link() -> None:
    routes = tuple(IPv6Network(f"fd05:{number:x}::/64") for number in range(500))
    (frame,) = Talk(offer(Ipv6(IPS, (NETWORK,), (Hop(ROUTER, routes=routes),)))).unasked()
    assert 1200 < len(frame) - 14 <= 1280
    assert 3 in Advertised(frame).options


def test_an_mtu_that_ipv6_does_not_know_is_not_advertised() -> None:
    assert 5 not in Advertised(*Talk(offer(IPV6, mtu=1000)).unasked()).options


def test_who_asks_for_a_router_is_told_at_once() -> None:
    talk = Talk(OFFER)
    assert talk.from_guest(solicitation()).guest == talk.unasked()
    assert talk.from_guest(solicitation(source_mac=OTHER)) == NOTHING
    with pytest.raises(Malformed):
        talk.from_guest(solicitation(hops=64))


def test_without_ipv6_there_is_nothing_to_advertise() -> None:
    talk = Talk(msgspec.structs.replace(OFFER, ipv6=None))
    assert (talk.unasked(), talk.needs_network) == ((), False)
    assert talk.from_guest(solicitation()) == NOTHING


def test_the_routers_mac_is_asked_for_and_told_for_its_alias() -> None:
    talk, alias = Talk(OFFER), alias_of(ROUTER)
    asked = talk.from_guest(looking_for(alias))
    assert asked.guest == ()
    question = icmp(asked.network)
    assert (question.kind, asked_neighbour(question)) == (NEIGHBOUR_SOLICITATION, ROUTER)
    assert (question.source, question.source_mac, question.mac) == (
        link_local(BRIDGE), BRIDGE, bytes.fromhex("3333ff000001"),
    )  # fmt: skip
    assert question.destination == IPv6Address("ff02::1:ff00:1")
    answer = tell_neighbour(ROUTER_MAC, BRIDGE, link_local(BRIDGE), ROUTER, ROUTER_MAC)
    told = icmp(*talk.from_network(build(answer)).guest)
    assert (told.kind, told_neighbour(told)) == (NEIGHBOUR_ADVERTISEMENT, (alias, ROUTER_MAC))
    assert (told.mac, told.destination, told.source) == (MAC, GUEST, alias)
    assert told.body[0] == 0xE0
    assert talk.from_network(build(answer)) == NOTHING, "nobody has asked again"


def test_only_the_guest_asks_for_the_router_and_only_for_its_alias() -> None:
    alias = alias_of(ROUTER)
    for frame in (
        looking_for(ROUTER),
        looking_for(IPv6Address("fd00::9")),
        looking_for(alias, source_mac=OTHER),
        looking_for(alias, source=IPv6Address(0)),
    ):
        assert Talk(OFFER).from_guest(frame) == NOTHING
    known = Talk(offer(Ipv6(IPS, (NETWORK,), (Hop(IPv6Address("fe80::1"), default=True),))))
    assert known.from_guest(looking_for(IPv6Address("fe80::1"))) == NOTHING


def test_what_others_of_the_network_say_is_not_passed_on() -> None:
    talk = Talk(OFFER)
    talk.from_guest(looking_for(alias_of(ROUTER)))
    stranger = tell_neighbour(OTHER, BRIDGE, link_local(BRIDGE), IPv6Address("fd00::66"), OTHER)
    assert talk.from_network(build(stranger)) == NOTHING
    with pytest.raises(Malformed):
        talk.from_network(build(msgspec.structs.replace(stranger, hops=64)))
    silent = tell_neighbour(ROUTER_MAC, BRIDGE, link_local(BRIDGE), ROUTER, ROUTER_MAC)
    with pytest.raises(Malformed):
        talk.from_network(build(msgspec.structs.replace(silent, body=silent.body[:20])))
    with pytest.raises(Malformed):
        talk.from_network(build(msgspec.structs.replace(silent, body=silent.body[:20] + bytes(8))))


def test_a_declined_address_is_noticed_and_only_the_guests_word_counts() -> None:
    decline = dhcp4.Message(1, 7, MAC, options={dhcp4.Option.KIND: bytes([dhcp4.Kind.DECLINE])})
    four = Datagram(MAC, MAC, IPv4Address(0), IPv4Address(1), 68, 67, dhcp4.encode(decline))
    gone = dhcp6.Message(dhcp6.Kind.DECLINE, b"abc")
    six = Datagram(MAC, MAC, GUEST, IPv6Address("ff02::1:2"), 546, 547, dhcp6.encode(gone))
    for datagram in (four, six):
        assert Talk(OFFER).from_guest(build(datagram)).declined
        assert not Talk(OFFER).from_guest(build(msgspec.structs.replace(datagram, source_mac=OTHER))).declined


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda kind, body, hops: build(Icmp6(MAC, MAC, GUEST, NODES, kind, body, 0, hops)),
        st.integers(133, 137),
        st.binary(max_size=64),
        st.sampled_from([64, 255]),
    )
    | st.builds(
        lambda port, payload: build(Datagram(MAC, MAC, GUEST, NODES, 546, port, payload)),
        st.sampled_from([67, 547]),
        st.binary(max_size=300),
    )
)
def test_whatever_frame_comes_is_understood_or_refused(frame: bytes) -> None:
    talk = Talk(OFFER)
    for understand in (talk.from_guest, talk.from_network):
        try:
            understand(frame)
        except Malformed:
            continue
