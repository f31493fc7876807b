"""Which NICs of a VMI are the handler's business, read off its spec and its acting pod. Pure.

Those to be plugged stand in the pod's network status; those to be unplugged are absent in the spec, attached or not.
Next: :mod:`services.handler.plan` and :mod:`services.handler.unplug`, which decide what is done with them.
"""

import msgspec

from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import device_alias, is_ordinal
from schemas.networks import NETWORK_STATUS, NETWORKS, NetworkStatus, parse_network_status, parse_networks
from schemas.stages import OperationKind
from services.common.domain.attachments import pod_interface_names, secondary
from services.common.domain.operations import migrating, operation_for
from services.common.reconcile import Reject
from services.handler.guest.port import GuestView
from services.handler.pod_network import link_names
from services.handler.records import Nic


def acts_here(vmi: VirtualMachineInstance, pod: Pod | None, node: str) -> bool:
    """Whether this node's handler has anything to do with the VMI now: it runs here and stays here.

    While a migration is under way nothing is plugged, unplugged or reported; afterwards the target's handler acts.
    """
    return (
        pod is not None
        and vmi.status.phase == "Running"
        and vmi.status.node_name == node
        and vmi.metadata.deletion_timestamp is None
        and pod.metadata.deletion_timestamp is None
        and not migrating(vmi)
    )


def attached_nics(vmi: VirtualMachineInstance, pod: Pod) -> list[Nic]:
    """The bridge-bound NICs of the spec, not absent, whose pod NIC Multus reports.

    One whose plug has failed for good is none of them: it waits for being taken out of the spec.

    :raises Reject: spec or annotations cannot be understood; someone has to change them first.
    """
    return [
        nic
        for nic, reported in _secondary(vmi, pod)
        if reported
        and nic.interface.bridge is not None
        and nic.operation.kind is OperationKind.PLUG
        and nic.operation.failed is None
    ]


def leaving_nics(vmi: VirtualMachineInstance, pod: Pod) -> list[Nic]:
    """The NICs that the spec says are absent, and that this pod's handler has not released or the domain may have.

    :raises Reject: spec or annotations cannot be understood.
    """
    return [nic for nic, _ in _secondary(vmi, pod) if nic.operation.kind is OperationKind.UNPLUG]


def cannot_leave(nic: Nic) -> tuple[str, str] | None:
    """Why a NIC cannot be unplugged while the VM runs: reason and message; ``None`` when it can be."""
    if is_ordinal(nic.names.nic):
        return (
            "OrdinalPodInterface",
            f"the pod was made with numbered interface names ({nic.names.nic}); restart the VM to unplug from it",
        )
    if nic.interface.bridge is None:
        return "UnsupportedBinding", "only an interface with the binding bridge can be unplugged from a running VM"
    return None


def in_domain(nic: Nic, guest: GuestView) -> bool:
    """Whether the domain has the NIC's card."""
    return device_alias(nic.name) in guest.cards


def macs(nics: list[Nic], guest: GuestView) -> set[str]:
    """The MACs of the NICs' cards in the domain."""
    return {guest.cards[device_alias(nic.name)].mac for nic in nics if in_domain(nic, guest)}


def missing(nics: list[Nic], guest: GuestView) -> list[Nic]:
    """The NICs without a card in the domain."""
    return [nic for nic in nics if not in_domain(nic, guest)]


def _secondary(vmi: VirtualMachineInstance, pod: Pod) -> list[tuple[Nic, bool]]:
    """The NICs on a NAD, in the spec's order, and whether Multus reports them."""
    annotations = pod.metadata.annotations
    try:
        statuses = parse_network_status(annotations.get(NETWORK_STATUS))
        names = pod_interface_names(vmi.spec, parse_networks(annotations.get(NETWORKS)), statuses)
        positions = {interface.name: i for i, interface in enumerate(vmi.spec.interface_items())}
        pairs = secondary(vmi.spec)
    except (ValueError, msgspec.ValidationError) as error:
        raise Reject("MalformedObject", f"{vmi.metadata.namespace}/{vmi.metadata.name}: {error}") from error
    present = {status.interface: status for status in statuses}
    found = []
    for interface, _ in pairs:
        link = names[interface.name]
        status = present.get(link, NetworkStatus(name="", interface=link))
        operation = operation_for(vmi, interface)
        nic = Nic(interface, positions[interface.name], link_names(link), operation, status)
        found.append((nic, link in present))
    return found
