"""The way back from a wired NIC: the steps from whatever stands to the plain pod NIC that its CNI plugin made.

Pure; the mirror of :mod:`services.handler.pod_network`, from any half-way state of either. The tap, the bridge and the
stand-in go; the NIC gets its name and its MAC back, and, where the record tells them, MTU, addresses and routes: what
a CNI plugin's DEL looks for. It never takes anything from a link that stays.
Not here: when it may be done, which is after the card has left the domain (:mod:`services.handler.unplug`).
"""

import ipaddress

from schemas.operations import PodNic, RecordedRoute
from services.common.netlink.links import Link, is_ipv4
from services.handler.netlink_operations import AddAddress, AddRoute, ChangeLink, DeleteLinks, Seen, SetSysctl, Step
from services.handler.pod_network import (
    ARP_IGNORE,
    LinkNames,
    expected,
    is_stand_in,
    other_ipv4_bridges,
    pod_nic_link,
)


def is_wired(seen: Seen, names: LinkNames) -> bool:
    """Whether anything of a wiring stands."""
    return any(seen.named(name) is not None for name in (names.tap, names.bridge, names.bridged))


def release_steps(seen: Seen, names: LinkNames, record: PodNic | None, mac: str | None = None) -> list[Step]:
    """The steps back; none when only the plain NIC stands, or nothing.

    :param record: what the NIC was; without one it gets its name back, and ``mac`` where that is known.
    :raises PodNetworkConflict: something foreign stands under one of the names.
    """
    nic = pod_nic_link(seen, names)
    tap, bridge = expected(seen, names.tap, "tap"), expected(seen, names.bridge, "bridge")
    result: list[Step] = []
    doomed = [link for link in (tap, bridge) if link is not None]
    if bridge is not None:
        # Before the bridge goes, which tells that it was this wiring that set it.
        answers = any(is_ipv4(cidr) for cidr in (record.ips if record else seen.addresses_of(bridge.index)))
        if answers and not other_ipv4_bridges(seen, names) and seen.sysctls.get(ARP_IGNORE) != "0":
            result.append(SetSysctl(ARP_IGNORE, "0"))
    if nic is not None and nic.name == names.bridged:
        stand_in = seen.named(names.nic)
        if stand_in is not None and is_stand_in(stand_in):
            doomed.append(stand_in)
    if doomed:
        result.append(DeleteLinks(tuple(link.index for link in doomed), tuple(link.name for link in doomed)))
    return result + _restored(seen, names, nic, record, mac) if nic is not None else result


def _restored(seen: Seen, names: LinkNames, nic: Link, record: PodNic | None, mac: str | None) -> list[Step]:
    wanted = (record.mac if record else mac or "").lower() or None
    name = names.nic if nic.name != names.nic else None
    mac = wanted if wanted != nic.mac else None
    mtu = record.mtu if record is not None and record.mtu != nic.mtu else None
    result: list[Step] = []
    bounced = nic.up and bool(name or mac)
    if bounced:
        # Kernels before 6.2 rename no link that is up, and no driver need change the MAC of one.
        result.append(ChangeLink(nic.index, up=False))
    up = True if bounced or not nic.up else None
    if name or mac or mtu or up:
        result.append(ChangeLink(nic.index, name, up, mac, mtu))
    if record is None:
        return result
    # A link that goes down keeps its IPv4 addresses, but neither IPv6 ones nor routes.
    has = [cidr for cidr in seen.addresses_of(nic.index) if not up or is_ipv4(cidr)]
    result += [AddAddress(nic.index, cidr) for cidr in record.ips if cidr not in has]
    there = {(_network(r.dst), r.gw) for r in seen.routes if r.index == nic.index and not up}
    # A next hop has to be reachable over a route that stands already.
    routes = sorted(record.routes, key=lambda route: route.gw is not None)
    result += [
        AddRoute(nic.index, _network(route.dst), route.gw, route.priority)
        for route in routes
        if (_network(route.dst), route.gw) not in there and not _comes_with_an_address(route, record.ips)
    ]
    return result


def _network(dst: str) -> str:
    return str(ipaddress.ip_network(dst, strict=False))


def _comes_with_an_address(route: RecordedRoute, ips: tuple[str, ...]) -> bool:
    network = ipaddress.ip_network(route.dst, strict=False)
    return route.gw is None and any(ipaddress.ip_interface(ip).network == network for ip in ips)
