"""Tear down the pod network of one NIC: the operations that restore the pod interface as its CNI plugin created it.

Pure; the reverse of :mod:`services.handler.pod_network.setup`, from any intermediate state of a set-up or a teardown.
The tap, the bridge and the dummy are deleted. The pod interface gets its name and MAC back and, where the record has
them, its MTU, addresses and routes, which are what the CNI plugin's DEL looks for. Nothing is removed from a link that
remains. Not decided here: when this may happen, which is after the domain has lost the device
(:mod:`services.handler.unplug`).
"""

import ipaddress

from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.nic import LinkNames
from services.common.netlink.links import Link, is_ipv4
from services.handler.pod_network.operations import (
    AddAddress,
    AddRoute,
    ChangeLink,
    DeleteLinks,
    NetlinkOperation,
    ObservedLinks,
    SetSysctl,
)
from services.handler.pod_network.setup import (
    ARP_IGNORE,
    find_expected,
    is_dummy_interface,
    other_ipv4_bridges,
    pod_nic_link,
)


def is_set_up(observed: ObservedLinks, names: LinkNames) -> bool:
    """Return whether any part of the pod network exists."""
    return any(observed.named(name) is not None for name in (names.tap, names.bridge, names.bridged))


def teardown_operations(
    observed: ObservedLinks, names: LinkNames, record: PodNic | None, mac: str | None = None
) -> list[NetlinkOperation]:
    """Return the operations that tear down the pod network; none when only the plain pod interface exists, or nothing.

    :param record: the properties of the pod interface before it was bridged. Without a record, only its name and MAC
        are restored.
    :param mac: the MAC to restore when there is no record; ``None`` when it is not known.
    :raises PodNetworkConflict: a link that hotnic did not create has one of the names.
    """
    nic = pod_nic_link(observed, names)
    tap, bridge = find_expected(observed, names.tap, "tap"), find_expected(observed, names.bridge, "bridge")
    result: list[NetlinkOperation] = []
    doomed = [link for link in (tap, bridge) if link is not None]
    if bridge is not None:
        # Before the bridge is deleted: after a crash in between, its existence shows that the sysctl was set by hotnic.
        answers = any(is_ipv4(cidr) for cidr in (record.ips if record else observed.addresses_of(bridge.index)))
        if answers and not other_ipv4_bridges(observed, names) and observed.sysctls.get(ARP_IGNORE) != "0":
            result.append(SetSysctl(ARP_IGNORE, "0"))
    if nic is not None and nic.name == names.bridged:
        dummy = observed.named(names.pod_interface)
        if dummy is not None and is_dummy_interface(dummy):
            # Deleted before the restore: the pod interface gets its name back from the dummy.
            doomed.append(dummy)
    if doomed:
        result.append(DeleteLinks(tuple(link.index for link in doomed), tuple(link.name for link in doomed)))
    return result + _restore(observed, names, nic, record, mac) if nic is not None else result


def _restore(
    observed: ObservedLinks, names: LinkNames, nic: Link, record: PodNic | None, mac: str | None
) -> list[NetlinkOperation]:
    wanted = (record.mac if record else mac or "").lower() or None
    name = names.pod_interface if nic.name != names.pod_interface else None
    mac = wanted if wanted != nic.mac else None
    mtu = record.mtu if record is not None and record.mtu != nic.mtu else None
    result: list[NetlinkOperation] = []
    bounced = nic.up and bool(name or mac)
    if bounced:
        # Kernels before 6.2 do not rename a link that is up, and some drivers do not change the MAC of one.
        result.append(ChangeLink(nic.index, up=False))
    up = True if bounced or not nic.up else None
    if name or mac or mtu or up:
        result.append(ChangeLink(nic.index, name, up, mac, mtu))
    if record is None:
        return result
    # A link that goes down retains its IPv4 addresses and loses its IPv6 addresses and routes.
    has = [cidr for cidr in observed.addresses_of(nic.index) if not up or is_ipv4(cidr)]
    result += [AddAddress(nic.index, cidr) for cidr in record.ips if cidr not in has]
    present = {(_network(r.dst), r.gw) for r in observed.routes if r.index == nic.index and not up}
    # Routes without a gateway first: the kernel accepts a next hop only when a route to it exists.
    routes = sorted(record.routes, key=lambda route: route.gw is not None)
    result += [
        AddRoute(nic.index, _network(route.dst), route.gw, route.priority)
        for route in routes
        if (_network(route.dst), route.gw) not in present and not _implied_by_address(route, record.ips)
    ]
    return result


def _network(dst: str) -> str:
    return str(ipaddress.ip_network(dst, strict=False))


def _implied_by_address(route: RecordedRoute, ips: tuple[str, ...]) -> bool:
    """Return whether the kernel adds the route by itself when it adds one of the addresses."""
    network = ipaddress.ip_network(route.dst, strict=False)
    return route.gw is None and any(ipaddress.ip_interface(ip).network == network for ip in ips)
