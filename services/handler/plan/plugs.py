"""Plan the plug of each NIC that Multus has attached and that the domain does not have. Pure.

Each NIC is plugged, or refused with a reason.
Next: :mod:`services.handler.pod_network.setup`, the links and netlink operations.
"""

from collections.abc import Iterable

from schemas.kubernetes.operations import AnnotationTooLarge, PodNic
from services.common.domain.eligibility import (
    explain_duplicate_mac,
    find_mac_holder,
    find_spec_obstacle,
    requested_bus,
)
from services.common.domain.mac_address import normalize_mac
from services.common.domain.nic import Nic
from services.common.domain.operations import ABSENT
from services.common.guest.port import GuestView, NetDeviceSpec
from services.handler.addresses.served import addresses_of_nic
from services.handler.plan.actions import Observed, PublishFailure, SetUpAndAttach
from services.handler.plan.link_state import wants_link_up
from services.handler.plan.nics import absent_nics, attached_nics, in_domain, not_in_domain
from services.handler.pod_network.operations import ObservedLinks
from services.handler.pod_network.records import record_from_links, record_of, record_patch
from services.handler.pod_network.setup import (
    PodNetworkConflict,
    bridge_binding,
    cannot_be_bridged,
    pod_nic_link,
    setup_operations,
)

MAX_QUEUES = 256
"""The limit of KubeVirt, and of the kernel for one tap (``MAX_TAP_QUEUES``, drivers/net/tun.c)."""


def plan_plugs(observed: Observed) -> list[SetUpAndAttach | PublishFailure]:
    """Return the action for each attached NIC that the domain does not have, in the spec's order."""
    if observed.pod_links is None:
        return []
    nics = not_in_domain(attached_nics(observed.nics), observed.guest)
    # A NIC that requests a slot gets it, whatever its place in the spec.
    requested = _requested_slots(nics, observed.guest)
    slots = [slot for slot in observed.guest.free_slots if slot not in requested.values()]
    # A pending unplug will free its slot, so as many plugs wait for a slot instead of having a final failure.
    releasing = sum(in_domain(nic, observed.guest) for nic in absent_nics(observed.nics))
    actions: list[SetUpAndAttach | PublishFailure] = []
    for nic in nics:
        by_address = requested_bus(nic.interface) is not None
        slot = requested.get(nic.name) if by_address else next(iter(slots), None)
        try:
            action = _plan_plug(observed, observed.pod_links, nic, slot)
        except ValueError as error:
            # A value that nobody expected stops its own NIC only.
            action = PublishFailure(nic, "MalformedNic", f"cannot plug interface {nic.name!r}: {error}", final=False)
        if isinstance(action, SetUpAndAttach):
            slots = [slot for slot in slots if slot != action.slot]
        elif action.reason == "NoFreeSlot" and releasing:
            releasing -= 1
            message = "no free PCIe port; the plug waits for the port of a NIC that the guest is releasing"
            action = PublishFailure(nic, "WaitingForSlot", message, final=False)
        actions.append(action)
    return actions


def _plan_plug(
    observed: Observed, pod_links: ObservedLinks, nic: Nic, slot: str | None
) -> SetUpAndAttach | PublishFailure:
    if (obstacle := find_spec_obstacle(nic.interface)) is not None:
        return PublishFailure(nic, *obstacle, final=True)
    if (holder := find_mac_holder(observed.nics, nic.interface)) is not None:
        message = explain_duplicate_mac(nic.interface, holder)
        # An interface that is being unplugged gives its MAC back.
        return PublishFailure(nic, "DuplicateMacAddress", message, final=holder.state != ABSENT)
    bus, buses = requested_bus(nic.interface), observed.guest.buses
    if bus is not None and slot is None and bus not in buses.values():
        message = f"pciAddress {nic.interface.pci_address} is not behind a PCIe root port of this VM; "
        message += f"free addresses: {_free_addresses(observed.guest)}"
        # The domain reports no bus before the firmware has numbered the buses.
        return PublishFailure(nic, "NoSuchSlot", message, final=bool(buses))
    # Before anything is set up: without a slot the attachment is undone (ADR 20).
    if slot is None:
        message = "no free PCIe port for another NIC; remove an interface or restart the VM"
        if bus is not None:
            message = (
                f"pciAddress {nic.interface.pci_address} is taken; free addresses: {_free_addresses(observed.guest)}"
            )
        return PublishFailure(nic, "NoFreeSlot", message, final=True)
    try:
        link = pod_nic_link(pod_links, nic.names)
        if link is None:
            return PublishFailure(nic, "PodLinkMissing", f"pod link ({nic.link}) is missing", final=False)
        if cannot_be_bridged(link):
            message = f"{nic.link} is a {link.kind}, behind which a guest gets no traffic; use a bridge network"
            return PublishFailure(nic, "UnsupportedPodLink", message, final=True)
        record, known = record_of(observed.pod, nic, observed.sandbox_id), True
        if record is None:
            record, known = record_from_links(observed.pod, observed.sandbox_id, pod_links, nic, link), False
        if record is None:
            message = (
                f"{nic.names.bridged} is bridged already and its addresses are not recorded; unplug and plug again"
            )
            return PublishFailure(nic, "PodNicRecordLost", message, final=True)
        to_write = None if known else record_patch(observed.pod, nic, record)
        # KubeVirt runs a guest as user 107 or as root. Only the owner of a tap, or a process with CAP_NET_ADMIN, may
        # attach to it.
        queues, runs_as = queues_of(observed), observed.vmi.status.runtime_user
        network = bridge_binding(
            record,
            nic.names,
            link,
            position=nic.position,
            owner=observed.tap_owner if runs_as is None else runs_as,
            queues=queues,
            label=observed.tap_label,
        )
        operations = setup_operations(pod_links, network)
    except PodNetworkConflict as conflict:
        return PublishFailure(nic, "PodNetworkConflict", str(conflict), final=False)
    except AnnotationTooLarge as error:
        return PublishFailure(nic, "PodNicRecordTooLarge", str(error), final=True)
    mac = guest_mac(nic, record)
    return SetUpAndAttach(
        nic,
        to_write,
        operations,
        NetDeviceSpec(
            nic.name,
            mac,
            nic.names.tap,
            record.mtu,
            queues,
            up=wants_link_up(nic.interface),
            acpi_index=nic.interface.acpi_index or None,
        ),
        slot,
        addresses_of_nic(observed.vmi, nic, record, mac, observed.resolver),
    )


def _requested_slots(nics: Iterable[Nic], guest: GuestView) -> dict[str, str]:
    """Return the free slots that NICs request by their PCI address, by NIC; of two NICs the first one gets a slot."""
    free = {guest.buses[slot]: slot for slot in guest.free_slots if slot in guest.buses}
    found = {}
    for nic in nics:
        slot = free.pop(requested_bus(nic.interface) or 0, None)
        if slot is not None:
            found[nic.name] = slot
    return found


def _free_addresses(guest: GuestView) -> str:
    buses = sorted(guest.buses[slot] for slot in guest.free_slots if slot in guest.buses)
    return ", ".join(f"0000:{bus:02x}:00.0" for bus in buses) or "none"


def guest_mac(nic: Nic, record: PodNic) -> str:
    """Return the MAC of the guest NIC: the spec's, else the VMI status's, else the pod interface's.

    :raises ValueError: no NIC can have this MAC.
    """
    # The status before the pod interface: after a migration the new pod interface has another MAC (kubevirt#16696).
    return normalize_mac(str(nic.interface.mac_address or nic.entry.get("mac") or record.mac))


def queues_of(observed: Observed) -> int:
    """Return the number of queues of the VMI's NICs: one for each CPU where the spec asks for multi-queue, else one."""
    multi = observed.vmi.spec.domain.devices.network_interface_multiqueue
    return max(1, min(observed.guest.cpus, MAX_QUEUES)) if multi else 1
