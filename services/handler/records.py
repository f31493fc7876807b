"""The pod NIC record as the handler uses it: read from the pod, or made from the links where another attached.

Pure. Nothing is wired before the record stands on the pod: taking a link down loses its routes, IPv6 and MAC for good.
Next: :mod:`services.handler.pod_network`, which builds on it.
"""

import ipaddress
from collections.abc import Iterable

import msgspec

from schemas.kube import Interface, Pod
from schemas.networks import NetworkStatus
from schemas.operations import Operation, PodNic, RecordedRoute, encode, pod_nic_key, pod_nic_of
from services.common.domain.spec_patch import Op, annotate
from services.common.netlink.links import Link
from services.handler.netlink_operations import Seen
from services.handler.pod_network import LinkNames, bridge_mac


class Nic(msgspec.Struct, frozen=True):
    """A secondary NIC of the spec.

    :ivar position: of the interface in the spec, from 0.
    :ivar status: what the pod's network status says of it; only the link's name where it says nothing.
    """

    interface: Interface
    position: int
    names: LinkNames
    operation: Operation
    status: NetworkStatus

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.interface.name


def record_of(pod: Pod, nic: Nic, sandbox_id: str) -> PodNic | None:
    """The pod NIC record, unless it is missing or speaks of another pod or sandbox."""
    record = pod_nic_of(pod.metadata.annotations, pod_nic_key(nic.name))
    if record is None or record.pod_uid != pod.metadata.uid or record.sandbox_id != sandbox_id:
        return None
    return record


def stale(pod: Pod, nics: Iterable[Nic], seen: Seen, sandbox_id: str) -> bool:
    """Whether a record speaks of an earlier attachment of the same name: an untouched NIC has another MAC.

    Then the pod as it is cached is older than the link that was seen.
    """
    for nic in nics:
        link, record = seen.named(nic.names.nic), record_of(pod, nic, sandbox_id)
        if link is None or record is None or seen.named(nic.names.bridged) is not None:
            continue
        if link.mac not in {record.mac.lower(), bridge_mac(record.pod_uid, nic.names.nic)}:
            return True
    return False


def record_from_links(pod: Pod, sandbox_id: str, seen: Seen, nic: Nic, link: Link) -> PodNic | None:
    """The record, from what stands in the pod: the untouched NIC, or the stand-in that carries its addresses.

    ``None`` when neither is there any more.
    """
    source = link
    if link.name == nic.names.bridged:
        keeper = seen.named(nic.names.nic)
        if keeper is None and nic.status.ips:
            return None
        source = keeper or msgspec.structs.replace(link, mac=nic.status.mac or link.mac)
    ips = tuple(seen.addresses_of(source.index))
    return PodNic(
        pod_uid=pod.metadata.uid,
        sandbox_id=sandbox_id,
        interface=nic.names.nic,
        mac=source.mac,
        mtu=link.mtu,
        ips=ips,
        routes=tuple(
            RecordedRoute(route.dst, route.gw, route.priority)
            for route in seen.routes
            if route.index == source.index and not _implied(route.dst, ips)
        ),
        nameservers=tuple(nic.status.dns.nameservers or ()),
        search=tuple(nic.status.dns.search or ()),
        domain=nic.status.dns.domain,
    )


def _implied(dst: str, ips: tuple[str, ...]) -> bool:
    """Whether a route comes with an address by itself, or is the kernel's own for link-local ones."""
    network = ipaddress.ip_network(dst, strict=False)
    return network.is_link_local or any(ipaddress.ip_interface(ip).network == network for ip in ips)


def write_record(pod: Pod, nic: Nic, record: PodNic) -> list[Op]:
    """The patch that puts a record on the pod.

    :raises TooLarge: it would not be read again.
    """
    meta = pod.metadata
    return [
        {"op": "test", "path": "/metadata/uid", "value": meta.uid},
        *annotate(meta.annotations, meta.resource_version, {pod_nic_key(nic.name): encode(record)}),
    ]
