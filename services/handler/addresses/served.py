"""Which NICs of a guest are to be told their addresses, from records and domain. Pure.

Next: :mod:`services.handler.addresses.service`, which brings it about.
"""

import msgspec

from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import device_alias
from schemas.operations import PodNic, pod_nic_key, pod_nic_of
from services.handler.addresses.offer import NO_RESOLVER, Offer, Resolver, offer_of
from services.handler.guest.port import GuestView
from services.handler.nics import attached_nics, leaving_nics
from services.handler.pod_network import bridge_address, bridge_mac
from services.handler.records import Nic, record_of

MAX_HOSTNAME = 63


class Wish(msgspec.Struct, frozen=True):
    """That a NIC be served. ``tap``: the link to the guest, ``bridge``: the one to the network."""

    interface: str
    tap: str
    bridge: str
    offer: Offer


def wish_of(
    vmi: VirtualMachineInstance, nic: Nic, record: PodNic, mac: str, resolver: Resolver = NO_RESOLVER
) -> Wish | None:
    """What is wished for one NIC; ``None`` without IPAM.

    :param mac: of the guest's card.
    """
    offer = offer_of(
        record,
        mac=mac,
        server=bridge_address(nic.position),
        server_mac=bridge_mac(record.pod_uid, nic.names.nic),
        hostname=hostname_of(vmi),
        resolver=resolver,
    )
    return None if offer is None else Wish(nic.name, nic.names.tap, nic.names.bridge, offer)


def with_addresses(vmi: VirtualMachineInstance, pod: Pod, guest: GuestView) -> list[Nic]:
    """The NICs with a card in the domain, and with a record of addresses, of whatever sandbox.

    Also those that the guest is letting go of: as long as it has the card, it has the address.

    :raises Reject: spec or annotations cannot be understood.
    """
    nics = (*attached_nics(vmi, pod), *leaving_nics(vmi, pod))
    annotations = pod.metadata.annotations
    found = []
    for nic in nics:
        record = pod_nic_of(annotations, pod_nic_key(nic.name)) if device_alias(nic.name) in guest.cards else None
        if record is not None and record.ips:
            found.append(nic)
    return found


def wishes(
    vmi: VirtualMachineInstance, pod: Pod, guest: GuestView, sandbox_id: str, resolver: Resolver = NO_RESOLVER
) -> list[tuple[Nic, Wish]]:
    """What is wished for the NICs in the domain.

    :raises Reject: spec or annotations cannot be understood.
    """
    found = []
    for nic in with_addresses(vmi, pod, guest):
        record = record_of(pod, nic, sandbox_id)
        mac = guest.cards[device_alias(nic.name)].mac
        wish = wish_of(vmi, nic, record, mac, resolver) if record is not None else None
        if wish is not None:
            found.append((nic, wish))
    return found


def hostname_of(vmi: VirtualMachineInstance) -> str:
    """The guest's host name, as KubeVirt has it: the spec's, else the VMI's name up to its first dot."""
    return (vmi.spec.hostname or vmi.metadata.name.partition(".")[0])[:MAX_HOSTNAME]
