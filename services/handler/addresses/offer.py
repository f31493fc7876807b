"""What a guest is told of the address that IPAM chose for its NIC: from the pod NIC's record. Pure.

One IPv4 address, as DHCPv4 can lease one to a link; every IPv6 address. Link-local ones are no one's to give.
Next: :mod:`services.handler.addresses.dhcp4_replies`, which puts it into messages.
"""

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

from schemas.operations import PodNic, RecordedRoute

LEASE_SECONDS = 999 * 24 * 3600
"""As KubeVirt: the address belongs to the card for as long as there is a card, whether or not a handler runs."""

T = TypeVar("T")
_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

MAX_HOPS = 8
"""Next hops of IPv6 routes that a guest is told, the default one first: each is told by itself."""

_ON_LINK = IPv4Address(0)
_DEFAULT = IPv4Network("0.0.0.0/0")


class Ipv4(msgspec.Struct, frozen=True):
    """The IPv4 side of an offer.

    :ivar server: who leases it. :ivar routes: option 121's; empty where the router says all. 0.0.0.0: on link.
    """

    server: IPv4Address
    address: IPv4Interface
    router: IPv4Address | None = None
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    nameservers: tuple[IPv4Address, ...] = ()


class Hop(msgspec.Struct, frozen=True):
    """A next hop of IPv6 routes. ``default``: also of everything else."""

    address: IPv6Address
    default: bool = False
    routes: tuple[IPv6Network, ...] = ()


class Ipv6(msgspec.Struct, frozen=True):
    """The IPv6 side of an offer.

    :ivar on_link: networks that are reached without a next hop, the addresses' own among them.
    """

    addresses: tuple[IPv6Interface, ...]
    on_link: tuple[IPv6Network, ...] = ()
    hops: tuple[Hop, ...] = ()
    nameservers: tuple[IPv6Address, ...] = ()


class Offer(msgspec.Struct, frozen=True):
    """All that one guest is told about one NIC.

    :ivar mac: of the guest's card, six bytes. :ivar server_mac: of who tells it. :ivar mtu: bytes.
    """

    mac: bytes
    server_mac: bytes
    mtu: int
    hostname: str = ""
    domain: str = ""
    search: tuple[str, ...] = ()
    ipv4: Ipv4 | None = None
    ipv6: Ipv6 | None = None


class Resolver(msgspec.Struct, frozen=True):
    """Whom the pod asks for names: told where the network's own IPAM says nothing of it."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


NO_RESOLVER = Resolver()


def offer_of(
    record: PodNic, *, mac: str, server: str, server_mac: str, hostname: str, resolver: Resolver = NO_RESOLVER
) -> Offer | None:
    """The offer for a NIC; ``None`` where there was no IPAM.

    :param mac: of the guest's card. :param server: the in-pod bridge's own address in CIDR form, IPv4.
    :param server_mac: the bridge's. :param hostname: of the guest; what is no host name is not told.
    """
    ips = [ip for text in record.ips if (ip := _read(ip_interface, text)) is not None and _is_for_guests(ip)]
    ipv4 = [ip for ip in ips if isinstance(ip, IPv4Interface)]
    ipv6 = tuple(ip for ip in ips if isinstance(ip, IPv6Interface))
    if not ips:
        return None
    if record.nameservers or record.search or record.domain:
        resolver = Resolver(record.nameservers, record.search)
    servers = [found for text in resolver.nameservers if (found := _read(ip_address, text)) is not None]
    routes = _routes(record.routes)
    return Offer(
        mac=_octets(mac),
        server_mac=_octets(server_mac),
        mtu=record.mtu,
        hostname=hostname,
        domain=record.domain or (resolver.search[0] if resolver.search else ""),
        search=resolver.search,
        ipv4=_ipv4(ipv4[0], routes, IPv4Interface(server).ip, servers) if ipv4 else None,
        ipv6=_ipv6(ipv6, routes, servers) if ipv6 else None,
    )


def _routes(recorded: Iterable[RecordedRoute]) -> list[tuple[_Network, _Address | None]]:
    """The routes that can be read, whose network and next hop are of one family."""
    found: list[tuple[_Network, _Address | None]] = []
    for route in recorded:
        network = _read(partial(ip_network, strict=False), route.dst)
        hop = _read(ip_address, route.gw) if route.gw else None
        if network is not None and (not route.gw or (hop is not None and hop.version == network.version)):
            found.append((network, hop))
    return found


def _ipv4(
    address: IPv4Interface,
    recorded: Iterable[tuple[_Network, _Address | None]],
    server: IPv4Address,
    servers: Iterable[_Address],
) -> Ipv4:
    routes = [
        (network, hop if isinstance(hop, IPv4Address) else _ON_LINK)
        for network, hop in recorded
        if isinstance(network, IPv4Network) and not (hop is None and network == address.network)
    ]
    routers = [hop for network, hop in routes if network == _DEFAULT and hop != _ON_LINK]
    special = any(network != _DEFAULT or hop == _ON_LINK for network, hop in routes)
    # A next hop outside of the subnet has to be on link before anything goes over it.
    strangers = {hop for _, hop in routes if hop != _ON_LINK and not _reached(hop, address, routes)}
    ordered = [(IPv4Network(hop), _ON_LINK) for hop in sorted(strangers)]
    # Clients take option 121 for the whole of it, so the default route is in it, too: last, as some take them in order.
    ordered += sorted(routes, key=lambda route: (route[1] != _ON_LINK, -route[0].prefixlen))
    return Ipv4(
        server=server,
        address=address,
        router=routers[0] if routers else None,
        routes=tuple(dict.fromkeys(ordered)) if special or strangers else (),
        nameservers=tuple(one for one in servers if isinstance(one, IPv4Address)),
    )


def _reached(hop: IPv4Address, address: IPv4Interface, routes: Iterable[tuple[IPv4Network, IPv4Address]]) -> bool:
    return hop in address.network or any(hop in network for network, over in routes if over == _ON_LINK)


def _ipv6(
    addresses: tuple[IPv6Interface, ...],
    recorded: Iterable[tuple[_Network, _Address | None]],
    servers: Iterable[_Address],
) -> Ipv6:
    on_link = [address.network for address in addresses]
    hops: dict[IPv6Address, Hop] = {}
    for network, via in recorded:
        if not isinstance(network, IPv6Network):
            continue
        if not isinstance(via, IPv6Address):
            on_link.append(network)
            continue
        hop = hops.get(via, Hop(via))
        if network.prefixlen == 0:
            hops[via] = msgspec.structs.replace(hop, default=True)
        else:
            hops[via] = msgspec.structs.replace(hop, routes=(*hop.routes, network))
    # A network of one address is the address itself; everything is not on link by being so called.
    networks = tuple(network for network in dict.fromkeys(on_link) if 0 < network.prefixlen < 128)
    nameservers = tuple(one for one in servers if isinstance(one, IPv6Address))
    ordered = sorted(hops.values(), key=lambda hop: not hop.default)
    return Ipv6(addresses, networks, tuple(ordered[:MAX_HOPS]), nameservers)


def _is_for_guests(address: IPv4Interface | IPv6Interface) -> bool:
    ip = address.ip
    return not (ip.is_link_local or ip.is_loopback or ip.is_multicast or ip.is_unspecified)


def _read(reader: Callable[[Any], T], text: str) -> T | None:
    try:
        return reader(text)
    except ValueError:
        return None


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
