"""Determine which NICs of a guest need an address server, from the pod NIC records and the domain. Pure.

Next: :mod:`services.handler.addresses.service`, which runs the servers.
"""

from collections.abc import Iterable

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.kubernetes.operations import PodNic
from schemas.names import device_alias
from services.common.domain.nic import Nic
from services.common.guest.port import GuestView
from services.handler.addresses.offer import NO_RESOLVER, Offer, Resolver, build_offer
from services.handler.pod_network.records import record_of
from services.handler.pod_network.setup import bridge_address, bridge_mac

MAX_HOSTNAME = 63
"""Characters of one DNS label (RFC 1035 section 2.3.4)."""


class ServedAddresses(msgspec.Struct, frozen=True):
    """The desired address server of one NIC.

    :ivar tap: name of the link to the guest.
    :ivar bridge: name of the in-pod bridge, the link to the network.
    """

    interface: str
    tap: str
    bridge: str
    offer: Offer


def addresses_of_nic(
    vmi: VirtualMachineInstance, nic: Nic, record: PodNic, mac: str, resolver: Resolver = NO_RESOLVER
) -> ServedAddresses | None:
    """Return the desired address server of one NIC; ``None`` if the network has no IPAM.

    :param mac: of the guest NIC.
    """
    offer = build_offer(
        record,
        mac=mac,
        server=bridge_address(nic.position),
        server_mac=bridge_mac(record.pod_uid, nic.names.pod_interface),
        hostname=guest_hostname(vmi),
        resolver=resolver,
    )
    return None if offer is None else ServedAddresses(nic.name, nic.names.tap, nic.names.bridge, offer)


def nics_with_addresses(nics: Iterable[Nic], guest: GuestView) -> list[Nic]:
    """Return the NICs that have a device in the domain and a pod NIC record with addresses, of any sandbox."""
    return [
        nic for nic in nics if device_alias(nic.name) in guest.devices and nic.record is not None and nic.record.ips
    ]


def served_addresses(
    vmi: VirtualMachineInstance,
    pod: Pod,
    nics: Iterable[Nic],
    guest: GuestView,
    sandbox_id: str,
    resolver: Resolver = NO_RESOLVER,
) -> list[tuple[Nic, ServedAddresses]]:
    """Return the desired address servers.

    :param nics: with a device in the domain.
    :param sandbox_id: of the pod; a record of another sandbox does not count.
    """
    found = []
    for nic in nics:
        record = record_of(pod, nic, sandbox_id)
        mac = guest.devices[device_alias(nic.name)].mac
        served = addresses_of_nic(vmi, nic, record, mac, resolver) if record is not None else None
        if served is not None:
            found.append((nic, served))
    return found


def guest_hostname(vmi: VirtualMachineInstance) -> str:
    """Return the guest's host name by KubeVirt's rule: ``spec.hostname``, else the VMI's name up to its first dot."""
    return (vmi.spec.hostname or vmi.metadata.name.partition(".")[0])[:MAX_HOSTNAME]
