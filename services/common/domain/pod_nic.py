"""Conversion of a CNI result into the pod's annotations: a network-status entry and the pod NIC record.

Pure. The role that attaches (multus at sandbox creation, networks at run time) writes both in one patch. The handler
restores a link from the record, so the record is built from the plugin's result: the link itself may have been changed
since. Next: :mod:`schemas.kubernetes.operations`, the record.
"""

import ipaddress

from schemas import cni
from schemas.kubernetes.networks import NetworkStatus
from schemas.kubernetes.operations import PodNic, RecordedRoute

_DEFAULT_DESTINATIONS = frozenset({"0.0.0.0/0", "::/0"})


def find_sandbox_interface(result: cni.CniResult, interface: str) -> tuple[int, cni.CniInterface] | None:
    """Return index and link of the result's link inside the sandbox, ``None`` if there is none.

    It is the link with this name, otherwise the last one with a sandbox.
    """
    inside = [(index, link) for index, link in enumerate(result.interfaces) if link.sandbox]
    named = [pair for pair in inside if pair[1].name == interface]
    if named:
        return named[-1]
    return inside[-1] if inside else None


def build_network_status(name: str, interface: str, result: cni.CniResult, default: bool = False) -> NetworkStatus:
    """Return the network-status entry of an attachment.

    As in multus, addresses have no prefix length and ``gateway`` contains the next hops of default routes. A default
    route without a next hop uses the gateway of the address; multus writes ``<nil>`` there.

    :param name: ``namespace/nad``, or the name of the CNI network for a network from a file.
    :param default: whether it is the pod's cluster network.
    """
    link = find_sandbox_interface(result, interface)
    return _entry(name, interface, result, link, _addresses(result, link), default)


def build_network_statuses(
    name: str, interface: str, result: cni.CniResult, default: bool = False
) -> list[NetworkStatus]:
    """Return the entries of an attachment from sandbox creation: one for each of its links inside the sandbox.

    A plugin with several links names the link of each address; addresses without one belong to the last link. The
    default entry is that of the first link with a gateway, otherwise that of the first link.
    """
    inside = [(index, link) for index, link in enumerate(result.interfaces) if link.sandbox]
    if len(inside) < 2:
        return [build_network_status(name, interface, result, default)]
    indexes = [index for index, _ in inside]
    default_index = next((ip.interface for ip in result.ips if ip.gateway and ip.interface in indexes), indexes[0])
    addresses_of = {index: [ip for ip in result.ips if ip.interface == index] for index in indexes}
    addresses_of[indexes[-1]] += [ip for ip in result.ips if ip.interface is None]
    return [
        _entry(name, link.name, result, (index, link), addresses_of[index], default and index == default_index)
        for index, link in inside
    ]


def _entry(
    name: str,
    interface: str,
    result: cni.CniResult,
    link: tuple[int, cni.CniInterface] | None,
    addresses: list[cni.CniIp],
    default: bool,
) -> NetworkStatus:
    defaults = [_route(route, addresses).gw for route in result.routes if route.dst in _DEFAULT_DESTINATIONS]
    return NetworkStatus(
        name=name,
        interface=interface,
        ips=[ip.address.partition("/")[0] for ip in addresses] or None,
        mac=link[1].mac if link else None,
        mtu=link[1].mtu if link else None,
        default=default,
        dns=result.dns,
        gateway=[gateway for gateway in defaults if gateway] or None,
    )


def build_pod_nic(
    pod_uid: str,
    sandbox_id: str,
    interface: str,
    result: cni.CniResult,
    *,
    mac: str | None = None,
    mtu: int | None = None,
) -> PodNic | None:
    """Return the pod NIC record for the result of a CNI plugin.

    ``None`` when MAC or MTU are unknown: the handler then builds the record from the link, before its first change.

    :param mac: MAC of the new link, used if the result has none.
    :param mtu: MTU of the new link in bytes, used if the result has none.
    """
    link = find_sandbox_interface(result, interface)
    known_mac = (link[1].mac if link else None) or mac
    known_mtu = (link[1].mtu if link else None) or mtu
    if not known_mac or not known_mtu:
        return None
    addresses = _addresses(result, link)
    families = {_version(ip.address) for ip in addresses}
    return PodNic(
        pod_uid=pod_uid,
        sandbox_id=sandbox_id,
        interface=interface,
        mac=known_mac.lower(),
        mtu=known_mtu,
        ips=tuple(ip.address for ip in addresses),
        routes=tuple(_route(route, addresses) for route in result.routes if _version(route.dst) in families),
        nameservers=tuple(result.dns.nameservers or ()),
        search=tuple(result.dns.search or ()),
        domain=result.dns.domain,
    )


def _addresses(result: cni.CniResult, link: tuple[int, cni.CniInterface] | None) -> list[cni.CniIp]:
    """Return the addresses of a link; an address without an interface index belongs to the only link."""
    return [ip for ip in result.ips if ip.interface is None or link is None or ip.interface == link[0]]


def _route(route: cni.CniRoute, addresses: list[cni.CniIp]) -> RecordedRoute:
    """Return the recorded route.

    Without a next hop it uses the gateway of an address of the same family, as the CNI specification demands.
    """
    gateway = route.gw or None
    if gateway is None:
        version = _version(route.dst)
        gateway = next((ip.gateway for ip in addresses if ip.gateway and _version(ip.address) == version), None)
    return RecordedRoute(dst=route.dst, gw=gateway, priority=route.priority)


def _version(address: str) -> int:
    return ipaddress.ip_interface(address).version
