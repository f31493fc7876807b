"""The responder: router advertisements, the router's MAC for its alias, and refusal of malformed frames."""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.dhcp import dhcp4, dhcp6
from services.handler.addresses.neighbours import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    advertised_neighbour,
    link_local,
    neighbour_advertisement,
    neighbour_solicitation,
    router_alias,
    solicited_address,
)
from services.handler.addresses.offer import Ipv4Offer, Ipv6Offer, NextHop, Offer
from services.handler.addresses.packets.frames import Datagram, Icmp6, MalformedPacket, build_frame, parse_frame
from services.handler.addresses.responder import NO_REPLIES, Responder

MAC, OTHER, BRIDGE, ROUTER_MAC = (
    bytes.fromhex(mac) for mac in ("3e89925ab5a7", "3e89925ab5a8", "021122334455", "0a0000000001")
)
ROUTER, GUEST = IPv6Address("fd00::1"), link_local(MAC)
NODES = IPv6Address("ff02::1")
IPS, NETWORK = (IPv6Interface("fd00::2/64"),), IPv6Network("fd00::/64")
IPV6 = Ipv6Offer(IPS, (NETWORK,), (NextHop(ROUTER, default=True),))
OFFER = Offer(MAC, BRIDGE, 1450, ipv4=Ipv4Offer(IPv4Address("169.254.75.11"), IPv4Interface("10.0.0.2/24")), ipv6=IPV6)


def offer(ipv6: Ipv6Offer, **changes: object) -> Offer:
    return msgspec.structs.replace(OFFER, ipv6=ipv6, **changes)


def icmp(*frames: bytes | None) -> Icmp6:
    (frame,) = frames
    assert frame is not None
    found = parse_frame(frame)
    assert isinstance(found, Icmp6)
    return found


def solicitation(source_mac: bytes = MAC, hop_limit: int = 255) -> bytes:
    routers = IPv6Address("ff02::2")
    return build_frame(
        Icmp6(source_mac, b"\x33\x33\0\0\0\2", GUEST, routers, ROUTER_SOLICITATION, bytes(4), hop_limit=hop_limit)
    )


def neighbour_request(target: IPv6Address, source: IPv6Address = GUEST, source_mac: bytes = MAC) -> bytes:
    return build_frame(msgspec.structs.replace(neighbour_solicitation(source_mac, target), source=source))


class Advertised:
    """A router advertisement, parsed independently of the code under test."""

    def __init__(self, *frames: bytes) -> None:
        found = icmp(*frames)
        assert (found.message_type, found.hop_limit, found.destination_mac, found.destination) == (
            ROUTER_ADVERTISEMENT, 255, b"\x33\x33\0\0\0\1", NODES,
        )  # fmt: skip
        self.source = found.source
        self.hop_limit, self.flags, self.lifetime = struct.unpack_from("!BBH", found.body)
        self.options: dict[int, list[bytes]] = {}
        at = 12
        while at < len(found.body):
            size = found.body[at + 1] * 8
            assert 0 < size <= len(found.body) - at
            self.options.setdefault(found.body[at], []).append(found.body[at + 2 : at + size])
            at += size


def test_router_advertisement_has_on_link_prefixes_and_the_managed_flag() -> None:
    advertised = Advertised(*Responder(OFFER).router_advertisements())
    assert (advertised.flags, advertised.hop_limit) == (0xC0, 64)
    (prefix,) = advertised.options[3]
    length, flags, valid, preferred = struct.unpack_from("!BBII", prefix)
    assert (length, flags, IPv6Address(prefix[14:])) == (64, 0x80, IPv6Address("fd00::"))
    assert valid == preferred == 0xFFFFFFFF
    assert advertised.options[5] == [b"\0\0" + (1450).to_bytes(4)]
    assert set(advertised.options) == {3, 5}


def test_router_advertisement_has_name_servers_and_domains() -> None:
    dns = IPv6Address("fd00::53")
    advertised = Advertised(
        *Responder(offer(Ipv6Offer(IPS, nameservers=(dns,)), search=("corp.example",))).router_advertisements()
    )
    assert advertised.options[25] == [bytes(2) + b"\xff" * 4 + dns.packed]
    assert advertised.options[31] == [bytes(2) + b"\xff" * 4 + b"\4corp\7example\0\0\0"]


@pytest.mark.parametrize(
    ("router", "source", "lifetime"),
    [
        (None, link_local(BRIDGE), 0),
        ("fe80::1", IPv6Address("fe80::1"), 65535),
        ("fd00::1", router_alias(ROUTER), 65535),
    ],
)
def test_router_advertisement_comes_from_the_routers_address(
    router: str | None, source: IPv6Address, lifetime: int
) -> None:
    hops = (NextHop(IPv6Address(router), default=True),) if router else ()
    responder = Responder(offer(Ipv6Offer(IPS, (NETWORK,), hops)))
    advertised = Advertised(*responder.router_advertisements())
    assert (advertised.source, advertised.lifetime) == (source, lifetime)
    assert source.is_link_local
    assert responder.needs_network == (router == "fd00::1")


def test_each_next_hop_advertises_its_routes_and_the_first_one_the_prefixes() -> None:
    other = IPv6Address("fe80::9")
    routes = tuple(IPv6Network(network) for network in ("fd05::/64", "fd06::/48", "fd07::1/128"))
    hops = (NextHop(ROUTER, default=True), NextHop(other, routes=routes))
    first, second = map(
        Advertised, Responder(offer(Ipv6Offer(IPS, (NETWORK, IPv6Network("fd01::/48")), hops))).router_advertisements()
    )
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


def test_router_advertisement_fits_the_minimum_mtu() -> None:
    routes = tuple(IPv6Network(f"fd05:{number:x}::/64") for number in range(500))
    (frame,) = Responder(offer(Ipv6Offer(IPS, (NETWORK,), (NextHop(ROUTER, routes=routes),)))).router_advertisements()
    assert 1200 < len(frame) - 14 <= 1280
    assert 3 in Advertised(frame).options


def test_mtu_below_the_ipv6_minimum_is_not_advertised() -> None:
    assert 5 not in Advertised(*Responder(offer(IPV6, mtu=1000)).router_advertisements()).options


def test_router_solicitation_of_the_guest_is_answered() -> None:
    responder = Responder(OFFER)
    assert responder.reply_to_guest(solicitation()).to_guest == responder.router_advertisements()
    assert responder.reply_to_guest(solicitation(source_mac=OTHER)) == NO_REPLIES
    with pytest.raises(MalformedPacket):
        responder.reply_to_guest(solicitation(hop_limit=64))


def test_nic_without_ipv6_sends_no_advertisements() -> None:
    responder = Responder(msgspec.structs.replace(OFFER, ipv6=None))
    assert (responder.router_advertisements(), responder.needs_network) == ((), False)
    assert responder.reply_to_guest(solicitation()) == NO_REPLIES


def test_solicitation_of_the_alias_is_answered_with_the_routers_mac() -> None:
    responder, alias = Responder(OFFER), router_alias(ROUTER)
    replies = responder.reply_to_guest(neighbour_request(alias))
    assert replies.to_guest == ()
    solicitation_sent = icmp(replies.to_network)
    assert (solicitation_sent.message_type, solicited_address(solicitation_sent)) == (NEIGHBOUR_SOLICITATION, ROUTER)
    assert (solicitation_sent.source, solicitation_sent.source_mac, solicitation_sent.destination_mac) == (
        link_local(BRIDGE), BRIDGE, bytes.fromhex("3333ff000001"),
    )  # fmt: skip
    assert solicitation_sent.destination == IPv6Address("ff02::1:ff00:1")
    advertisement = neighbour_advertisement(ROUTER_MAC, BRIDGE, link_local(BRIDGE), ROUTER, ROUTER_MAC)
    advertised = icmp(*responder.reply_to_network(build_frame(advertisement)).to_guest)
    assert (advertised.message_type, advertised_neighbour(advertised)) == (NEIGHBOUR_ADVERTISEMENT, (alias, ROUTER_MAC))
    assert (advertised.destination_mac, advertised.destination, advertised.source) == (MAC, GUEST, alias)
    assert advertised.body[0] == 0xE0
    assert responder.reply_to_network(build_frame(advertisement)) == NO_REPLIES, "there is no new solicitation"


def test_only_solicitations_of_the_guest_for_the_alias_are_forwarded() -> None:
    alias = router_alias(ROUTER)
    for frame in (
        neighbour_request(ROUTER),
        neighbour_request(IPv6Address("fd00::9")),
        neighbour_request(alias, source_mac=OTHER),
        neighbour_request(alias, source=IPv6Address(0)),
    ):
        assert Responder(OFFER).reply_to_guest(frame) == NO_REPLIES
    known = Responder(offer(Ipv6Offer(IPS, (NETWORK,), (NextHop(IPv6Address("fe80::1"), default=True),))))
    assert known.reply_to_guest(neighbour_request(IPv6Address("fe80::1"))) == NO_REPLIES


def test_foreign_and_malformed_advertisements_are_not_forwarded() -> None:
    responder = Responder(OFFER)
    responder.reply_to_guest(neighbour_request(router_alias(ROUTER)))
    foreign = neighbour_advertisement(OTHER, BRIDGE, link_local(BRIDGE), IPv6Address("fd00::66"), OTHER)
    assert responder.reply_to_network(build_frame(foreign)) == NO_REPLIES
    with pytest.raises(MalformedPacket):
        responder.reply_to_network(build_frame(msgspec.structs.replace(foreign, hop_limit=64)))
    from_router = neighbour_advertisement(ROUTER_MAC, BRIDGE, link_local(BRIDGE), ROUTER, ROUTER_MAC)
    with pytest.raises(MalformedPacket):
        responder.reply_to_network(build_frame(msgspec.structs.replace(from_router, body=from_router.body[:20])))
    with pytest.raises(MalformedPacket):
        responder.reply_to_network(
            build_frame(msgspec.structs.replace(from_router, body=from_router.body[:20] + bytes(8)))
        )


def test_only_a_decline_of_the_guest_counts() -> None:
    decline = dhcp4.Dhcp4Message(
        1, 7, MAC, options={dhcp4.Dhcp4Option.MESSAGE_TYPE: bytes([dhcp4.Dhcp4MessageType.DECLINE])}
    )
    four = Datagram(MAC, MAC, IPv4Address(0), IPv4Address(1), 68, 67, dhcp4.encode(decline))
    decline6 = dhcp6.Dhcp6Message(dhcp6.Dhcp6MessageType.DECLINE, b"abc")
    six = Datagram(MAC, MAC, GUEST, IPv6Address("ff02::1:2"), 546, 547, dhcp6.encode(decline6))
    for datagram in (four, six):
        assert Responder(OFFER).reply_to_guest(build_frame(datagram)).declined
        assert (
            not Responder(OFFER)
            .reply_to_guest(build_frame(msgspec.structs.replace(datagram, source_mac=OTHER)))
            .declined
        )


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda message_type, body, hop_limit: build_frame(
            Icmp6(MAC, MAC, GUEST, NODES, message_type, body, 0, hop_limit)
        ),
        st.integers(133, 137),
        st.binary(max_size=64),
        st.sampled_from([64, 255]),
    )
    | st.builds(
        lambda port, payload: build_frame(Datagram(MAC, MAC, GUEST, NODES, 546, port, payload)),
        st.sampled_from([67, 547]),
        st.binary(max_size=300),
    )
)
def test_arbitrary_frame_is_answered_or_refused(frame: bytes) -> None:
    responder = Responder(OFFER)
    for reply_to in (responder.reply_to_guest, responder.reply_to_network):
        try:
            reply_to(frame)
        except MalformedPacket:
            continue
