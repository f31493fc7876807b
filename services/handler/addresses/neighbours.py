"""Parse and build the neighbour discovery messages (RFC 4861) that give a guest its routes and routers. Pure.

A router advertisement carries on-link prefixes, the default router and routes, and flag M: addresses come by DHCPv6.
No prefix has flag A, so the guest configures no address by itself (SLAAC). A router advertisement must come from a
link-local address. If IPAM names a global router address, hotnic advertises a link-local alias of it and answers
solicitations for the alias with the router's MAC.
Next: :mod:`services.handler.addresses.responder`, which sends and answers these messages.
"""

import hashlib
import struct
from ipaddress import IPv6Address, IPv6Network

from services.handler.addresses.dhcp.names import encode_domains
from services.handler.addresses.offer import Ipv6Offer, NextHop, Offer
from services.handler.addresses.packets.frames import Icmp6, MalformedPacket

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
"""ICMPv6 types (RFC 4861 section 4)."""
ROUTER_LIFETIME = 65535
"""Seconds, the maximum of RFC 8319: a guest must not lose its router while a handler is updated."""

_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_INFINITY = 0xFFFFFFFF
_MANAGED_AND_OTHER = 0xC0
"""Flags M and O: the guest requests its addresses and everything else by DHCPv6 (RFC 4861 section 4.2)."""
_ON_LINK = 0x80
_ROUTER_SOLICITED_OVERRIDE = 0xE0000000
"""Flags R, S and O (RFC 4861 section 4.4): without R the guest would drop the sender as its router."""
_SOURCE_MAC, _TARGET_MAC, _PREFIX, _MTU, _ROUTE, _DNS, _SEARCH = 1, 2, 3, 5, 24, 25, 31
"""Option types of RFC 4861 section 4.6, RFC 4191 section 2.3 and RFC 8106 section 5."""
_MIN_MTU = 1280
"""Bytes, the minimum MTU of IPv6 (RFC 8200 section 5)."""
_MAX_BODY = _MIN_MTU - 40 - 4  # the minimum MTU of IPv6 without the IPv6 and ICMPv6 headers


def link_local(mac: bytes) -> IPv6Address:
    """Return the link-local address of a MAC (EUI-64)."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


def router_alias(router: IPv6Address) -> IPv6Address:
    """Return the link-local address that stands for a router: its own, else one derived from its global address."""
    if router.is_link_local:
        return router
    digest = hashlib.sha256(b"hotnic router " + router.packed).digest()
    # The universal/local bit is cleared: the interface identifier belongs to no MAC.
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([digest[0] & 0xFD]) + digest[1:8])


def router_advertisements(offer: Offer, ipv6: Ipv6Offer) -> list[Icmp6]:
    """Return the router advertisements of a NIC: one per next hop, or one of the server if there is no next hop.

    A guest routes to the sender of an advertisement, so each next hop needs its own. The first advertisement also
    carries what belongs to no next hop: on-link prefixes, MTU and name servers.
    """
    hops = ipv6.hops or (NextHop(link_local(offer.server_mac)),)
    common = _on_link(ipv6) + _mtu(offer) + _names(offer, ipv6)
    return [_advertisement(offer, hop, common if number == 0 else []) for number, hop in enumerate(hops)]


def _advertisement(offer: Offer, hop: NextHop, options: list[bytes]) -> Icmp6:
    # Lifetime 0: the sender is no default router, but its route options hold.
    lifetime = ROUTER_LIFETIME if hop.default else 0
    # Hop limit 64 for the guest's packets. 0 leaves its timers unchanged (RFC 4861 section 4.2).
    body = struct.pack("!BBHII", 64, _MANAGED_AND_OTHER, lifetime, 0, 0)
    for option in [*options, *(_route(network) for network in hop.routes)]:
        # RFC 6980: a host drops a fragmented advertisement, so an option that does not fit is left out.
        if len(body) + len(option) <= _MAX_BODY:
            body += option
    return Icmp6(offer.server_mac, _ALL_NODES_MAC, router_alias(hop.address), _ALL_NODES, ROUTER_ADVERTISEMENT, body)


def _on_link(ipv6: Ipv6Offer) -> list[bytes]:
    return [
        struct.pack("!BBBBIII", _PREFIX, 4, network.prefixlen, _ON_LINK, _INFINITY, _INFINITY, 0)
        + network.network_address.packed
        for network in ipv6.on_link
    ]


def _mtu(offer: Offer) -> list[bytes]:
    # RFC 4861 section 6.3.4: a host uses no MTU below the minimum of IPv6.
    return [struct.pack("!BBHI", _MTU, 1, 0, offer.mtu)] if offer.mtu >= _MIN_MTU else []


def _names(offer: Offer, ipv6: Ipv6Offer) -> list[bytes]:
    """Return the options for name servers and search domains (RFC 8106)."""
    options = []
    if ipv6.nameservers:
        addresses = b"".join(server.packed for server in ipv6.nameservers)
        options.append(struct.pack("!BBHI", _DNS, 1 + 2 * len(ipv6.nameservers), 0, _INFINITY) + addresses)
    # The length of an option is one byte, in units of eight. A longer list does not fit into the message either.
    if 0 < len(search := encode_domains(offer.search)) <= _MAX_BODY:
        padded = search + bytes(-len(search) % 8)
        options.append(struct.pack("!BBHI", _SEARCH, 1 + len(padded) // 8, 0, _INFINITY) + padded)
    return options


def _route(network: IPv6Network) -> bytes:
    """Return the option for a route to the sender of the advertisement (RFC 4191)."""
    # RFC 4191 section 2.3: the prefix field has 0, 8 or 16 bytes.
    size = (network.prefixlen + 63) // 64 * 8
    fixed = struct.pack("!BBBBI", _ROUTE, 1 + size // 8, network.prefixlen, 0, _INFINITY)
    return fixed + network.network_address.packed[:size]


def solicited_address(packet: Icmp6) -> IPv6Address:
    """Return the address whose MAC a neighbour solicitation requests.

    :raises MalformedPacket: The packet is no neighbour solicitation from this link.
    """
    return _target(packet, NEIGHBOUR_SOLICITATION)


def advertised_neighbour(packet: Icmp6) -> tuple[IPv6Address, bytes]:
    """Return the address and the MAC of a neighbour advertisement.

    :raises MalformedPacket: The packet is no neighbour advertisement from this link, or has no MAC.
    """
    target = _target(packet, NEIGHBOUR_ADVERTISEMENT)
    at = 20
    while at + 8 <= len(packet.body):
        code, length = packet.body[at], packet.body[at + 1] * 8
        if length == 0:
            raise MalformedPacket("a neighbour discovery option has length 0")
        if code == _TARGET_MAC and length == 8:
            return target, packet.body[at + 2 : at + 8]
        at += length
    raise MalformedPacket("the neighbour advertisement has no target MAC")


def neighbour_solicitation(mac: bytes, target: IPv6Address) -> Icmp6:
    """Build a request for the MAC of a neighbour.

    :param mac: of the sender.
    :param target: address of the neighbour.
    """
    tail = target.packed[-3:]
    solicited_node = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + tail)
    body = bytes(4) + target.packed + bytes([_SOURCE_MAC, 1]) + mac
    return Icmp6(mac, b"\x33\x33\xff" + tail, link_local(mac), solicited_node, NEIGHBOUR_SOLICITATION, body)


def neighbour_advertisement(
    mac: bytes, destination_mac: bytes, destination: IPv6Address, target: IPv6Address, target_mac: bytes
) -> Icmp6:
    """Build the answer to a neighbour solicitation for a router.

    :param mac: of the sender.
    :param target: address that was solicited.
    :param target_mac: MAC of the router.
    """
    body = struct.pack("!I", _ROUTER_SOLICITED_OVERRIDE) + target.packed + bytes([_TARGET_MAC, 1]) + target_mac
    return Icmp6(mac, destination_mac, target, destination, NEIGHBOUR_ADVERTISEMENT, body)


def _target(packet: Icmp6, message_type: int) -> IPv6Address:
    # RFC 4861 section 7.1: a hop limit below 255 means that a router forwarded the packet from another link.
    if packet.message_type != message_type or packet.code != 0 or packet.hop_limit != 255 or len(packet.body) < 20:
        raise MalformedPacket("the packet is no neighbour discovery message of the expected type from this link")
    return IPv6Address(packet.body[4:20])
