"""Which NICs that Multus has attached are wired and given to the guest, and which cannot be: pure.

From the VMI, its acting pod, the links in the pod and the domain.
Next: :mod:`services.handler.unplug`, the way out of the guest, and :mod:`services.handler.report`, what the VMI says.
"""

import msgspec

from schemas.kube import Pod, VirtualMachineInstance
from schemas.operations import AnnotationTooLarge, PodNic
from services.common.domain.spec_patch import Op
from services.common.domain.status_interfaces import entry_of
from services.handler.addresses.offer import NO_RESOLVER, Resolver
from services.handler.addresses.served import Wish, wish_of
from services.handler.guest.agent import GuestNic
from services.handler.guest.port import GuestView, NewCard
from services.handler.link_state import wants_link
from services.handler.netlink_operations import Seen, Step
from services.handler.nics import attached_nics, in_domain, leaving_nics, missing
from services.handler.pending_unplug import Asked
from services.handler.pod_network import (
    PodNetworkConflict,
    bridge_binding,
    cannot_be_bridged,
    pod_nic_link,
    steps,
)
from services.handler.records import Nic, record_from_links, record_of, write_record

MAX_QUEUES = 256
_MODELS = (None, "", "virtio")
TERMINAL = frozenset({"NoFreeSlot", "UnsupportedPodLink", "UnsupportedModel", "PodNicRecordTooLarge"})
"""Refusals that end the operation: they are written down with it, and the NIC is taken out of the spec."""


class Observed(msgspec.Struct, frozen=True):
    """One VMI that runs here.

    :ivar seen: the links in the pod; ``None`` when no NIC is missing or to be released, so nobody looked.
    :ivar agent: what the guest agent answered last; ``None`` when it never did.
    :ivar tap_owner: user id of the guest's process, where the VMI's status does not say.
    :ivar tap_label: its SELinux label, where one is enforced.
    :ivar resolver: whom the pod asks for names.
    :ivar unconfirmed: interfaces whose card was attached by us, and is not told to be used by the guest's driver.
    :ivar asked: by interface, what the guest was asked to let go of. :ivar now: seconds, of a monotonic clock.
    """

    vmi: VirtualMachineInstance
    pod: Pod
    guest: GuestView
    seen: Seen | None = None
    sandbox_id: str = ""
    agent: tuple[GuestNic, ...] | None = None
    tap_owner: int = 0
    tap_label: str | None = None
    resolver: Resolver = NO_RESOLVER
    unconfirmed: frozenset[str] = frozenset()
    asked: dict[str, Asked] = {}
    now: float = 0.0


class Plug(msgspec.Struct, frozen=True):
    """Wire a NIC and attach its card.

    :ivar record: to be written on the pod before the first step; ``None`` when it is there.
    :ivar addresses: what the guest is to be told of them; ``None`` where there was no IPAM.
    """

    nic: Nic
    record: list[Op] | None
    steps: list[Step]
    card: NewCard
    slot: str
    addresses: Wish | None = None


class Refuse(msgspec.Struct, frozen=True):
    """A NIC that cannot be plugged or unplugged.

    :ivar final: trying again will not help. Who takes such a NIC out of the spec is not decided here.
    """

    nic: Nic
    reason: str
    message: str
    final: bool = True


def plug(observed: Observed) -> list[Plug | Refuse]:
    """What to do for each NIC that has no card yet, in the spec's order.

    :raises Reject: spec or annotations cannot be understood.
    """
    if observed.seen is None:
        return []
    slots = list(observed.guest.free_slots)
    # Slots of cards that the guest is letting go of are as good as free, only later.
    going = sum(in_domain(nic, observed.guest) for nic in leaving_nics(observed.vmi, observed.pod))
    actions: list[Plug | Refuse] = []
    for nic in missing(attached_nics(observed.vmi, observed.pod), observed.guest):
        action = _plug_one(observed, observed.seen, nic, slots[0] if slots else None)
        if isinstance(action, Plug):
            slots.remove(action.slot)
        elif action.reason == "NoFreeSlot" and going:
            going -= 1
            action = Refuse(nic, "WaitingForSlot", "it gets the slot of a card that the guest is letting go of", False)
        actions.append(action)
    return actions


def _plug_one(observed: Observed, seen: Seen, nic: Nic, slot: str | None) -> Plug | Refuse:
    if nic.interface.model not in _MODELS:
        return Refuse(nic, "UnsupportedModel", f"a card of model {nic.interface.model} cannot be plugged; virtio can")
    if slot is None:
        return Refuse(nic, "NoFreeSlot", "all slots for cards of the running VM are taken; restart it to get more")
    try:
        link = pod_nic_link(seen, nic.names)
        if link is None:
            return Refuse(nic, "PodLinkMissing", f"pod link ({nic.names.nic}) is missing", final=False)
        if cannot_be_bridged(link):
            return Refuse(
                nic,
                "UnsupportedPodLink",
                f"{nic.names.nic} is a {link.kind}: a guest behind it gets no traffic; use a bridge network",
            )
        record, known = record_of(observed.pod, nic, observed.sandbox_id), True
        if record is None:
            record, known = record_from_links(observed.pod, observed.sandbox_id, seen, nic, link), False
        if record is None:
            return Refuse(
                nic,
                "PodNicRecordLost",
                f"{nic.names.bridged} is wired already and nothing tells the addresses it had; unplug and plug again",
            )
        to_write = None if known else write_record(observed.pod, nic, record)
        queues, runs_as = queues_of(observed), observed.vmi.status.runtime_user
        binding = bridge_binding(
            record,
            nic.names,
            link,
            position=nic.position,
            owner=observed.tap_owner if runs_as is None else runs_as,
            queues=queues,
            label=observed.tap_label,
        )
        todo = steps(seen, binding)
    except PodNetworkConflict as conflict:
        return Refuse(nic, "PodNetworkConflict", str(conflict), final=False)
    except AnnotationTooLarge as error:
        return Refuse(nic, "PodNicRecordTooLarge", str(error))
    mac = guest_mac(observed.vmi, nic, record)
    return Plug(
        nic,
        to_write,
        todo,
        NewCard(
            nic.name,
            mac,
            nic.names.tap,
            record.mtu,
            queues,
            up=wants_link(nic.interface),
        ),
        slot,
        wish_of(observed.vmi, nic, record, mac, observed.resolver),
    )


def guest_mac(vmi: VirtualMachineInstance, nic: Nic, record: PodNic) -> str:
    """The MAC of the guest's card: the spec's, else the one the VMI's status shows, else the pod NIC's own."""
    entry = entry_of(vmi.status.interfaces, nic.name) or {}
    return (nic.interface.mac_address or entry.get("mac") or record.mac).lower().replace("-", ":")


def queues_of(observed: Observed) -> int:
    """How many queues a card of this VMI has."""
    multi = observed.vmi.spec.domain.devices.network_interface_multiqueue
    return max(1, min(observed.guest.cpus, MAX_QUEUES)) if multi else 1
