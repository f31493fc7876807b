"""Which NICs of a VMI the handler plugs and unplugs, and whether it may change the VMI now. Pure.

A NIC is plugged once the pod's network status has it. A NIC that is absent in the spec is unplugged, attached or not.
Next: :mod:`services.handler.plan.plugs` and :mod:`services.handler.plan.unplugs`.
"""

from collections.abc import Iterable

from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.names import device_alias, is_ordinal
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.operations import is_migrating
from services.common.domain.status_interfaces import DOMAIN
from services.common.guest.port import GuestView


def is_eligible(vmi: VirtualMachineInstance, pod: Pod | None, node: str) -> bool:
    """Return whether this node's handler may change the VMI now: it runs on the node and is not migrating.

    During a migration nothing is plugged, unplugged or reported. Afterwards the target's handler does it.
    """
    return (
        pod is not None
        and vmi.status.phase == "Running"
        and vmi.status.node_name == node
        and vmi.metadata.deletion_timestamp is None
        and pod.metadata.deletion_timestamp is None
        # QEMU's migration requires the same devices on both sides.
        and not is_migrating(vmi)
    )


def attached_nics(nics: VmiNics) -> list[Nic]:
    """Return the NICs of the spec with the binding ``bridge`` that are not absent and that Multus has attached.

    A NIC whose plug has a final failure is left out: it is to be removed from the spec.
    """
    return [
        nic
        for nic in nics
        if nic.status is not None
        and nic.interface.bridge is not None
        and not nic.absent
        and nic.operation.failed is None
    ]


def desired_state(nics: VmiNics) -> frozenset[tuple[str, ...]]:
    """Return an item for each interface. It changes with what users and the cluster do, and never by a guest.

    The id of an operation that is not written follows from the VMI's generation, which the guest's status changes.
    """
    attached = {nic.name for nic in nics if nic.status is not None}
    ids = {name: operation.id for name, operation in nics.operations.items()}
    return frozenset(
        (name, interface.state, ids.get(name, ""), "attached" if name in attached else "")
        for name, interface in nics.interfaces.items()
    )


def absent_nics(nics: VmiNics) -> list[Nic]:
    """Return the NICs that are absent in the spec."""
    return [nic for nic in nics if nic.absent]


def waiting_nics(nics: VmiNics) -> list[Nic]:
    """Return the NICs that wait for the handler, as far as the VMI shows it."""
    plugs = [nic for nic in attached_nics(nics) if DOMAIN not in nic.tokens]
    return plugs + [nic for nic in absent_nics(nics) if not nics.released(nic)]


def nics_needing_links(nics: VmiNics) -> list[Nic]:
    """Return the NICs whose links are needed when the domain does not have their devices."""
    unplugs = [nic for nic in absent_nics(nics) if unplug_obstacle(nic) is None and not nics.released(nic)]
    return attached_nics(nics) + unplugs


def unplug_obstacle(nic: Nic) -> tuple[str, str] | None:
    """Return why a NIC cannot be unplugged from a running VM, as reason and message; ``None`` when it can be."""
    if is_ordinal(nic.link):
        return (
            "OrdinalPodInterface",
            f"the pod has ordinal interface names ({nic.link}), which do not support hot-unplug;"
            " restart the VM to remove the interface",
        )
    if nic.interface.bridge is None:
        return (
            "UnsupportedBinding",
            "only the binding bridge supports hot-unplug; restart the VM to remove the interface",
        )
    return None


def in_domain(nic: Nic, guest: GuestView) -> bool:
    """Return whether the domain has the NIC's device."""
    return device_alias(nic.name) in guest.devices


def not_in_domain(nics: Iterable[Nic], guest: GuestView) -> list[Nic]:
    """Return the NICs whose device the domain does not have."""
    return [nic for nic in nics if not in_domain(nic, guest)]


def guest_macs(nics: Iterable[Nic], guest: GuestView) -> frozenset[str]:
    """Return the MACs of the NICs' devices in the domain."""
    return frozenset(guest.devices[device_alias(nic.name)].mac for nic in nics if in_domain(nic, guest))
