"""From a CNI result to what is written on the pod: an entry of network-status and the record of the pod NIC.

Pure, and no transport: whoever attaches (multus at sandbox creation, networks at run time) puts both texts into one
patch. The record is what the handler restores a link from, so it is made from the plugin's own answer, never from a
link that may have been rewired since. Next: :mod:`schemas.operations`, the record itself.
"""

import ipaddress

from schemas import cni
from schemas.networks import NetworkStatus
from schemas.operations import PodNic, RecordedRoute

_DEFAULT_DESTINATIONS = frozenset({"0.0.0.0/0", "::/0"})


def sandbox_interface(result: cni.CniResult, interface: str) -> tuple[int, cni.CniInterface] | None:
    """The result's link inside the sandbox and its index: the one of that name, else the last with a sandbox."""
    inside = [(index, link) for index, link in enumerate(result.interfaces) if link.sandbox]
    named = [pair for pair in inside if pair[1].name == interface]
    if named:
        return named[-1]
    return inside[-1] if inside else None


def network_status(name: str, interface: str, result: cni.CniResult, default: bool = False) -> NetworkStatus:
    """The network-status entry of an attachment.

    :param name: ``namespace/nad``, or the CNI network's name for one that comes from a file.
    :param default: whether it is the pod's cluster network.

    Addresses lose their prefix length, ``gateway`` holds the next hops of default routes: as multus writes both. A
    default route without a next hop of its own has the address's gateway, where multus writes ``<nil>``.
    """
    link = sandbox_interface(result, interface)
    return _entry(name, interface, result, link, _addresses(result, link), default)


def network_statuses(name: str, interface: str, result: cni.CniResult, default: bool = False) -> list[NetworkStatus]:
    """The entries of an attachment that a pod was made with: one for each of its links inside the sandbox.

    A plugin that makes several names the link of each address; what it names none of is the last one's. The default is
    the one with a gateway, else the first.
    """
    inside = [(index, link) for index, link in enumerate(result.interfaces) if link.sandbox]
    if len(inside) < 2:
        return [network_status(name, interface, result, default)]
    places = [index for index, _ in inside]
    chosen = next((ip.interface for ip in result.ips if ip.gateway and ip.interface in places), places[0])
    held = {index: [ip for ip in result.ips if ip.interface == index] for index in places}
    held[places[-1]] += [ip for ip in result.ips if ip.interface is None]
    return [
        _entry(name, link.name, result, (index, link), held[index], default and index == chosen)
        for index, link in inside
    ]


def _entry(
    name: str,
    interface: str,
    result: cni.CniResult,
    link: tuple[int, cni.CniInterface] | None,
    addresses: list[cni.Ip],
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


def pod_nic(
    pod_uid: str,
    sandbox_id: str,
    interface: str,
    result: cni.CniResult,
    *,
    mac: str | None = None,
    mtu: int | None = None,
) -> PodNic | None:
    """The record of a pod NIC as its CNI plugin made it.

    :param mac: stands in where the result names none (as seen on the fresh link); ``mtu`` likewise, in bytes.

    ``None`` when MAC or MTU are known neither way: then the handler makes the record from the link, before its
    first change.
    """
    link = sandbox_interface(result, interface)
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


def _addresses(result: cni.CniResult, link: tuple[int, cni.CniInterface] | None) -> list[cni.Ip]:
    """The addresses on that link; one without an interface index belongs to the only link there is."""
    return [ip for ip in result.ips if ip.interface is None or link is None or ip.interface == link[0]]


def _route(route: cni.CniRoute, addresses: list[cni.Ip]) -> RecordedRoute:
    """A route without a next hop takes the gateway of its family's address, as the CNI specification says."""
    gateway = route.gw or None
    if gateway is None:
        version = _version(route.dst)
        gateway = next((ip.gateway for ip in addresses if ip.gateway and _version(ip.address) == version), None)
    return RecordedRoute(dst=route.dst, gw=gateway, priority=route.priority)


def _version(address: str) -> int:
    return ipaddress.ip_interface(address).version
