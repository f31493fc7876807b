"""Neighbour discovery (RFC 4861) as far as a guest needs it for its addresses, read and built. Pure.

Router advertisements say what is on link, who is the router, and that addresses come by DHCPv6 (flag M; no prefix is
offered for addresses of the guest's own making). A router has to speak with a link-local address of its own; where
IPAM names a global one, an alias stands for it, and who asks for the alias is told the router's MAC.
Next: :mod:`services.handler.addresses.dhcp6_replies`.
"""

import hashlib
import struct
from ipaddress import IPv6Address, IPv6Network

from services.handler.addresses.frames import Icmp6, Malformed
from services.handler.addresses.names import dns_names
from services.handler.addresses.offer import Hop, Ipv6, Offer

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
ROUTER_LIFETIME = 65535
"""Seconds (RFC 8319): longer than a handler is away."""

_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_FOREVER = 0xFFFFFFFF
_MANAGED_AND_OTHER = 0xC0
_ON_LINK = 0x80
_FROM_ROUTER_SOLICITED_OVERRIDE = 0xE0000000
_SOURCE_MAC, _TARGET_MAC, _PREFIX, _MTU, _ROUTE, _DNS, _SEARCH = 1, 2, 3, 5, 24, 25, 31
_MIN_MTU = 1280
_MAX_BODY = _MIN_MTU - 40 - 4  # what every link takes, without the headers


def link_local(mac: bytes) -> IPv6Address:
    """The link-local address that goes with a MAC (EUI-64)."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


def alias_of(router: IPv6Address) -> IPv6Address:
    """The link-local address that stands for a router: its own, or one made up where that is not known."""
    if router.is_link_local:
        return router
    digest = hashlib.sha256(b"hotnic router " + router.packed).digest()
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([digest[0] & 0xFD]) + digest[1:8])


def advertisements(offer: Offer, ipv6: Ipv6) -> list[Icmp6]:
    """The router advertisements for a NIC: one from each next hop, since the sender is the way; else from the server.

    The first one also says what is no hop's: networks on link, MTU, name servers.
    """
    hops = ipv6.hops or (Hop(link_local(offer.server_mac)),)
    common = _on_link(ipv6) + _mtu(offer) + _names(offer, ipv6)
    return [_advertisement(offer, hop, common if number == 0 else []) for number, hop in enumerate(hops)]


def _advertisement(offer: Offer, hop: Hop, options: list[bytes]) -> Icmp6:
    lifetime = ROUTER_LIFETIME if hop.default else 0
    body = struct.pack("!BBHII", 64, _MANAGED_AND_OTHER, lifetime, 0, 0)
    for option in [*options, *(_route(network) for network in hop.routes)]:
        if len(body) + len(option) <= _MAX_BODY:
            body += option
    return Icmp6(offer.server_mac, _ALL_NODES_MAC, alias_of(hop.address), _ALL_NODES, ROUTER_ADVERTISEMENT, body)


def _on_link(ipv6: Ipv6) -> list[bytes]:
    return [
        struct.pack("!BBBBIII", _PREFIX, 4, network.prefixlen, _ON_LINK, _FOREVER, _FOREVER, 0)
        + network.network_address.packed
        for network in ipv6.on_link
    ]


def _mtu(offer: Offer) -> list[bytes]:
    return [struct.pack("!BBHI", _MTU, 1, 0, offer.mtu)] if offer.mtu >= _MIN_MTU else []


def _names(offer: Offer, ipv6: Ipv6) -> list[bytes]:
    found = []
    if ipv6.nameservers:
        addresses = b"".join(server.packed for server in ipv6.nameservers)
        found.append(struct.pack("!BBHI", _DNS, 1 + 2 * len(ipv6.nameservers), 0, _FOREVER) + addresses)
    if search := dns_names(offer.search):
        padded = search + bytes(-len(search) % 8)
        found.append(struct.pack("!BBHI", _SEARCH, 1 + len(padded) // 8, 0, _FOREVER) + padded)
    return found


def _route(network: IPv6Network) -> bytes:
    """A route over who sends the advertisement (RFC 4191)."""
    size = (network.prefixlen + 63) // 64 * 8
    fixed = struct.pack("!BBBBI", _ROUTE, 1 + size // 8, network.prefixlen, 0, _FOREVER)
    return fixed + network.network_address.packed[:size]


def asked_neighbour(packet: Icmp6) -> IPv6Address:
    """Whose MAC a neighbour solicitation asks for.

    :raises Malformed: it is none that this link's own nodes send.
    """
    return _target(packet, NEIGHBOUR_SOLICITATION)


def told_neighbour(packet: Icmp6) -> tuple[IPv6Address, bytes]:
    """Whose MAC a neighbour advertisement tells, and which.

    :raises Malformed: it is none that this link's own nodes send, or says no MAC.
    """
    target = _target(packet, NEIGHBOUR_ADVERTISEMENT)
    at = 20
    while at + 8 <= len(packet.body):
        kind, length = packet.body[at], packet.body[at + 1] * 8
        if length == 0:
            raise Malformed("an option of no length")
        if kind == _TARGET_MAC and length == 8:
            return target, packet.body[at + 2 : at + 8]
        at += length
    raise Malformed("a neighbour advertisement without a MAC")


def ask_neighbour(mac: bytes, target: IPv6Address) -> Icmp6:
    """Ask the link for a neighbour's MAC."""
    tail = target.packed[-3:]
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + tail)
    body = bytes(4) + target.packed + bytes([_SOURCE_MAC, 1]) + mac
    return Icmp6(mac, b"\x33\x33\xff" + tail, link_local(mac), group, NEIGHBOUR_SOLICITATION, body)


def tell_neighbour(
    mac: bytes, destination_mac: bytes, destination: IPv6Address, target: IPv6Address, target_mac: bytes
) -> Icmp6:
    """Tell who asked the MAC of a router.

    :param mac: who tells it.
    """
    body = struct.pack("!I", _FROM_ROUTER_SOLICITED_OVERRIDE) + target.packed + bytes([_TARGET_MAC, 1]) + target_mac
    return Icmp6(mac, destination_mac, target, destination, NEIGHBOUR_ADVERTISEMENT, body)


def _target(packet: Icmp6, kind: int) -> IPv6Address:
    if packet.kind != kind or packet.code != 0 or packet.hops != 255 or len(packet.body) < 20:
        raise Malformed("no neighbour discovery of this link")
    return IPv6Address(packet.body[4:20])
