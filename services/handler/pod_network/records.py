"""The pod NIC record: read from the pod, or made from the links where another controller attached the pod interface.

Pure. The record is on the pod before the pod network is set up: taking a link down loses its routes, IPv6 and MAC for
good. Next: :mod:`services.handler.pod_network.setup`, which uses the record.
"""

import ipaddress
from collections.abc import Iterable

import msgspec

from schemas.kubernetes.networks import NetworkStatus
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import PodNic, RecordedRoute, encode_annotation, pod_nic_key
from services.common.domain.nic import Nic
from services.common.domain.spec_patch import PatchOp, build_annotation_ops
from services.common.netlink.links import Link
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.setup import bridge_mac


def record_of(pod: Pod, nic: Nic, sandbox_id: str) -> PodNic | None:
    """Return the pod NIC record; ``None`` when it is missing or belongs to another pod or sandbox."""
    record = nic.record
    if record is None or record.pod_uid != pod.metadata.uid or record.sandbox_id != sandbox_id:
        return None
    return record


def has_stale_record(pod: Pod, nics: Iterable[Nic], observed: ObservedLinks, sandbox_id: str) -> bool:
    """Return whether a record belongs to an earlier attachment of the same name.

    It does when the pod interface is not bridged and has another MAC than the record. The cached pod is then older than
    the observed link.
    """
    for nic in nics:
        link, record = observed.named(nic.names.pod_interface), record_of(pod, nic, sandbox_id)
        if link is None or record is None or observed.named(nic.names.bridged) is not None:
            continue
        if link.mac not in {record.mac.lower(), bridge_mac(record.pod_uid, nic.names.pod_interface)}:
            return True
    return False


def record_from_links(pod: Pod, sandbox_id: str, observed: ObservedLinks, nic: Nic, link: Link) -> PodNic | None:
    """Return a record made from the pod interface, or from the dummy that holds its addresses.

    :param link: the pod interface, renamed or not.
    :returns: ``None`` when neither shows the addresses any more.
    """
    source, status = link, nic.status or NetworkStatus(name="", interface=nic.link)
    if link.name == nic.names.bridged:
        dummy = observed.named(nic.names.pod_interface)
        if dummy is None and status.ips:
            return None
        # A bridged link has the bridge's MAC. The dummy and network-status have the MAC that the CNI plugin reported.
        source = dummy or msgspec.structs.replace(link, mac=status.mac or link.mac)
    ips = tuple(observed.addresses_of(source.index))
    return PodNic(
        pod_uid=pod.metadata.uid,
        sandbox_id=sandbox_id,
        interface=nic.names.pod_interface,
        mac=source.mac,
        mtu=link.mtu,
        ips=ips,
        routes=tuple(
            RecordedRoute(route.dst, route.gw, route.priority)
            for route in observed.routes
            if route.index == source.index and not _implied(route.dst, ips)
        ),
        nameservers=tuple(status.dns.nameservers or ()),
        search=tuple(status.dns.search or ()),
        domain=status.dns.domain,
    )


def _implied(dst: str, ips: tuple[str, ...]) -> bool:
    """Return whether the kernel adds a route by itself: for one of the addresses, or for link-local ones."""
    network = ipaddress.ip_network(dst, strict=False)
    return network.is_link_local or any(ipaddress.ip_interface(ip).network == network for ip in ips)


def record_patch(pod: Pod, nic: Nic, record: PodNic) -> list[PatchOp]:
    """Return the patch that writes a record to the pod.

    :raises AnnotationTooLarge: the record is larger than what is read back.
    """
    meta = pod.metadata
    return [
        {"op": "test", "path": "/metadata/uid", "value": meta.uid},
        *build_annotation_ops(
            meta.annotations, meta.resource_version, {pod_nic_key(nic.name): encode_annotation(record)}
        ),
    ]
