"""Build the offer for a guest from the pod NIC record: addresses, routes, name servers and host name. Pure.

The offer has one IPv4 address, because DHCPv4 leases one address per link, and every IPv6 address. Link-local addresses
are left out: guests configure these by themselves.
Next: :mod:`services.handler.addresses.dhcp.dhcp4_replies`, which puts an offer into messages.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar

import msgspec

from schemas.kubernetes.operations import PodNic, RecordedRoute

LEASE_SECONDS = 999 * 24 * 3600
"""Lease time, as in KubeVirt. The address belongs to the NIC for its lifetime, whether or not a handler runs."""

_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")

T = TypeVar("T")
_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

MAX_HOPS = 8
"""Limit of IPv6 next hops that are advertised, the default one first; each needs an advertisement of its own."""

MAX_ENTRIES = 32
"""Limit of the addresses, name servers and search domains of an offer, and of a pod's ``resolv.conf``."""

MAX_ROUTES = 64

MAX_MTU = 0xFFFF
"""Bytes, the largest that DHCPv4 can carry."""

MAX_DOMAIN = 253
"""Characters of a domain name (RFC 1035)."""

_ON_LINK = IPv4Address(0)
_DEFAULT = IPv4Network("0.0.0.0/0")


class Ipv4Offer(msgspec.Struct, frozen=True):
    """The IPv4 part of an offer.

    :ivar server: address of the DHCP server.
    :ivar router: the default router (option 3).
    :ivar routes: networks and next hops (option 121); next hop 0.0.0.0 means on link. Empty if ``router`` is enough.
    """

    server: IPv4Address
    address: IPv4Interface
    router: IPv4Address | None = None
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    nameservers: tuple[IPv4Address, ...] = ()


class NextHop(msgspec.Struct, frozen=True):
    """A next hop of IPv6 routes.

    :ivar default: whether it is a default router.
    :ivar routes: networks that are reached through it.
    """

    address: IPv6Address
    default: bool = False
    routes: tuple[IPv6Network, ...] = ()


class Ipv6Offer(msgspec.Struct, frozen=True):
    """The IPv6 part of an offer.

    :ivar on_link: networks that are reached without a next hop, including those of the addresses.
    """

    addresses: tuple[IPv6Interface, ...]
    on_link: tuple[IPv6Network, ...] = ()
    hops: tuple[NextHop, ...] = ()
    nameservers: tuple[IPv6Address, ...] = ()


class Offer(msgspec.Struct, frozen=True):
    """The configuration that a guest gets for one NIC.

    :ivar mac: of the guest NIC, six bytes.
    :ivar server_mac: of the address server, six bytes.
    :ivar mtu: in bytes.
    """

    mac: bytes
    server_mac: bytes
    mtu: int
    hostname: str = ""
    domain: str = ""
    search: tuple[str, ...] = ()
    ipv4: Ipv4Offer | None = None
    ipv6: Ipv6Offer | None = None


class Resolver(msgspec.Struct, frozen=True):
    """The resolver configuration of the pod; guests get it if the network's IPAM has none."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


NO_RESOLVER = Resolver()


def build_offer(
    record: PodNic, *, mac: str, server: str, server_mac: str, hostname: str, resolver: Resolver = NO_RESOLVER
) -> Offer | None:
    """Return the offer for a NIC; ``None`` if IPAM assigned no address to it, or its MAC is none.

    Users can write the record. What no message can carry is left out.

    :param mac: of the guest NIC.
    :param server: IPv4 address of the in-pod bridge, in CIDR form.
    :param server_mac: of the in-pod bridge.
    :param hostname: of the guest.
    """
    listed = [ip for text in record.ips[:MAX_ENTRIES] if (ip := _parse(ip_interface, text)) is not None]
    ips = [ip for ip in listed if _is_for_guests(ip)]
    ipv4 = [ip for ip in ips if isinstance(ip, IPv4Interface)]
    ipv6 = tuple(ip for ip in ips if isinstance(ip, IPv6Interface))
    octets = _octets(mac)
    if not ips or octets is None:
        return None
    if record.nameservers or record.search or record.domain:
        resolver = Resolver(record.nameservers, record.search)
    named = [address for text in resolver.nameservers if (address := _parse(ip_address, text)) is not None]
    servers, search = named[:MAX_ENTRIES], tuple(filter(_is_domain, resolver.search))[:MAX_ENTRIES]
    domain = record.domain or (search[0] if search else "")
    routes = _parse_routes(record.routes[:MAX_ROUTES])
    return Offer(
        mac=octets,
        server_mac=bytes.fromhex(server_mac.replace(":", "")),
        # As if it were not known.
        mtu=record.mtu if 0 < record.mtu <= MAX_MTU else 0,
        hostname=hostname,
        domain=domain if _is_domain(domain) else "",
        search=search,
        ipv4=_ipv4_offer(ipv4[0], routes, IPv4Interface(server).ip, servers) if ipv4 else None,
        ipv6=_ipv6_offer(ipv6, routes, servers) if ipv6 else None,
    )


def _parse_routes(recorded: Iterable[RecordedRoute]) -> list[tuple[_Network, _Address | None]]:
    """Return networks and next hops of the valid routes; both are of one address family."""
    routes: list[tuple[_Network, _Address | None]] = []
    for route in recorded:
        network = _parse(partial(ip_network, strict=False), route.dst)
        hop = _parse(ip_address, route.gw) if route.gw else None
        if network is not None and (not route.gw or (hop is not None and hop.version == network.version)):
            routes.append((network, hop))
    return routes


def _ipv4_offer(
    address: IPv4Interface,
    recorded: Iterable[tuple[_Network, _Address | None]],
    server: IPv4Address,
    nameservers: Iterable[_Address],
) -> Ipv4Offer:
    routes = [
        (network, hop if isinstance(hop, IPv4Address) else _ON_LINK)
        for network, hop in recorded
        if isinstance(network, IPv4Network) and not (hop is None and network == address.network)
    ]
    routers = [hop for network, hop in routes if network == _DEFAULT and hop != _ON_LINK]
    needs_option = any(network != _DEFAULT or hop == _ON_LINK for network, hop in routes)
    # A next hop outside of the subnet needs an on-link route to itself before any route through it.
    outside = {hop for _, hop in routes if hop != _ON_LINK and not _is_reachable(hop, address, routes)}
    ordered = [(IPv4Network(hop), _ON_LINK) for hop in sorted(outside)]
    # RFC 3442: a client that reads option 121 ignores option 3, so the default route must be in option 121 too.
    # Some clients install the routes in their order: on-link routes go first, the default route last.
    ordered += sorted(routes, key=lambda route: (route[1] != _ON_LINK, -route[0].prefixlen))
    return Ipv4Offer(
        server=server,
        address=address,
        router=routers[0] if routers else None,
        routes=tuple(dict.fromkeys(ordered)) if needs_option or outside else (),
        nameservers=tuple(one for one in nameservers if isinstance(one, IPv4Address)),
    )


def _is_reachable(hop: IPv4Address, address: IPv4Interface, routes: Iterable[tuple[IPv4Network, IPv4Address]]) -> bool:
    return hop in address.network or any(hop in network for network, via in routes if via == _ON_LINK)


def _ipv6_offer(
    addresses: tuple[IPv6Interface, ...],
    recorded: Iterable[tuple[_Network, _Address | None]],
    nameservers: Iterable[_Address],
) -> Ipv6Offer:
    on_link = [address.network for address in addresses]
    hops: dict[IPv6Address, NextHop] = {}
    for network, via in recorded:
        if not isinstance(network, IPv6Network):
            continue
        if not isinstance(via, IPv6Address):
            on_link.append(network)
            continue
        hop = hops.get(via, NextHop(via))
        if network.prefixlen == 0:
            hops[via] = msgspec.structs.replace(hop, default=True)
        else:
            hops[via] = msgspec.structs.replace(hop, routes=(*hop.routes, network))
    # A /128 is the address itself, and ::/0 cannot be an on-link prefix.
    networks = tuple(network for network in dict.fromkeys(on_link) if 0 < network.prefixlen < 128)
    ordered = sorted(hops.values(), key=lambda hop: not hop.default)
    return Ipv6Offer(
        addresses,
        networks,
        tuple(ordered[:MAX_HOPS]),
        tuple(one for one in nameservers if isinstance(one, IPv6Address)),
    )


def _is_for_guests(address: IPv4Interface | IPv6Interface) -> bool:
    ip = address.ip
    return not (ip.is_link_local or ip.is_loopback or ip.is_multicast or ip.is_unspecified)


def _is_domain(text: str) -> bool:
    return len(text) <= MAX_DOMAIN and text.isprintable()


def _parse(parse: Callable[[Any], T], text: str) -> T | None:
    try:
        # A scope id may hold any text, and no address of a guest has one.
        return parse(text) if "%" not in text else None
    except ValueError:
        return None


def _octets(mac: str) -> bytes | None:
    return bytes.fromhex(mac.replace(":", "")) if _MAC.fullmatch(mac) else None
