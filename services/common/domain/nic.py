"""The NICs of a VMI: each secondary interface with its network, its operation and its state in the acting pod.

A VMI and its pod are parsed here once, when a role observes them. Plans, the hot-plug status and the doctor read
:class:`VmiNics` and never parse an annotation. Not here: the pod's links and the guest's devices, which only a node can
observe, and the interfaces of a VM's template (:mod:`services.common.domain.template`).
Next: :mod:`services.common.domain.attachments`, the attachments that the pod should have.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from schemas.kubernetes.limits import MAX_NAME, MAX_STATUS_INTERFACES, check_count, check_length
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.objects import Interface, Network, Pod, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, PodNic, pod_nic_key, read_pod_nic
from schemas.names import is_ordinal, pod_interface
from schemas.stages import OperationKind
from services.common.domain.operations import (
    ABSENT,
    owning_vm_uid,
    read_operations,
    read_unplugs,
    resolve_operation,
)
from services.common.domain.status_interfaces import Entry, entries_by_name, parse_tokens, readable


class LinkNames(msgspec.Struct, frozen=True):
    """The names of one NIC's links in the pod's network namespace.

    :ivar pod_interface: the link that CNI creates; while it is bridged, the dummy interface has this name.
    :ivar bridged: the real link while it is a port of the in-pod bridge.
    :ivar bridge: the in-pod bridge.
    :ivar tap: the tap behind the guest NIC.
    """

    pod_interface: str
    bridged: str
    bridge: str
    tap: str


def link_names(pod_interface: str) -> LinkNames:
    """Return the link names of a pod interface, hashed (``pod<h>``) or ordinal (``net<i>``, KubeVirt before 1.0)."""
    # KubeVirt's names: net1 has the links net1-nic, k6t-net1 and tap1.
    if is_ordinal(pod_interface):
        return LinkNames(pod_interface, f"{pod_interface}-nic", f"k6t-{pod_interface}", f"tap{pod_interface[3:]}")
    suffix = pod_interface.removeprefix("pod")
    return LinkNames(pod_interface, f"{suffix}-nic", f"k6t-{suffix}", f"tap{suffix}")


class Nic(msgspec.Struct, frozen=True):
    """One secondary interface of a VMI's spec.

    :ivar interface: the interface in the spec.
    :ivar network: the network in the spec; it names a NAD.
    :ivar position: index of the interface in the spec, from 0, primary interfaces included.
    :ivar nad: the NAD as ``namespace/name``.
    :ivar names: the names of its links in the pod.
    :ivar operation: the operation that the desired state belongs to; derived when ``written`` is for another.
    :ivar written: the operation in the VMI's annotation, of whatever kind; ``None`` when there is none, and when it is
        for another NAD than the spec has: KubeVirt has still to follow a change of the NAD.
    :ivar element: its element in the pod's networks annotation.
    :ivar status: its entry in the pod's network-status annotation.
    :ivar record: the pod NIC record, of whatever pod and sandbox it names.
    :ivar entry: what is readable of its entry in the VMI's ``status.interfaces``; empty when there is none.
    """

    interface: Interface
    network: Network
    position: int
    nad: str
    names: LinkNames
    operation: Operation
    written: Operation | None
    element: NetworkSelectionElement | None
    status: NetworkStatus | None
    record: PodNic | None
    entry: Entry

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.interface.name

    @property
    def link(self) -> str:
        """The name of the pod interface."""
        return self.names.pod_interface

    @property
    def absent(self) -> bool:
        """Whether the spec requests that the interface be unplugged."""
        return self.operation.kind is OperationKind.UNPLUG

    @property
    def has_operation(self) -> bool:
        """Whether the operation is in the VMI's annotation; otherwise it is derived."""
        return self.written is not None and self.written.kind is self.operation.kind

    @property
    def in_pod(self) -> bool:
        """Whether an annotation of the pod lists the attachment, as desired or as present."""
        return self.element is not None or self.status is not None

    @property
    def tokens(self) -> frozenset[str]:
        """The tokens of ``infoSource`` in the VMI's status."""
        return parse_tokens(self.entry)


class VmiNics(msgspec.Struct, frozen=True):
    """The interfaces of a VMI and the attachments of its acting pod. Iterating it yields its NICs.

    :ivar vmi: the VMI.
    :ivar pod: the acting pod; ``None`` when there is none (yet).
    :ivar interfaces: all interfaces of the spec by name, primary ones included.
    :ivar networks: all networks of the spec by name.
    :ivar nics: the secondary interfaces by name, in spec order; of two with a hash collision only the first.
    :ivar operations: the operations in the VMI's annotations by interface, also of interfaces no longer in the spec. Of
        an interface with two, beside KubeVirt, the unplug unless the spec has the interface and not as ``absent``.
    :ivar entries: all operations in the VMI's annotations by interface and kind.
    :ivar elements: the pod's networks annotation.
    :ivar statuses: the pod's network-status annotation.
    :ivar status_entries: the VMI's ``status.interfaces`` by interface.
    :ivar ordinal: whether the VM's pod interfaces have ordinal names; then no interface can be unplugged from the pod.
    """

    vmi: VirtualMachineInstance
    pod: Pod | None
    interfaces: dict[str, Interface]
    networks: dict[str, Network]
    nics: dict[str, Nic]
    operations: dict[str, Operation]
    entries: dict[tuple[str, OperationKind], Operation]
    elements: tuple[NetworkSelectionElement, ...]
    statuses: tuple[NetworkStatus, ...]
    status_entries: dict[str, Entry]
    ordinal: bool

    def __iter__(self) -> Iterator[Nic]:
        return iter(self.nics.values())

    def written(self, name: str, kind: OperationKind) -> Operation | None:
        """Return the operation of this kind in the VMI's annotations; ``None`` when there is none."""
        return self.entries.get((name, kind))

    def released(self, nic: Nic) -> bool:
        """Return whether the handler has torn down the NIC's pod network in the acting pod, for its unplug.

        A teardown in an earlier pod, such as before a migration, does not count.
        """
        return nic.absent and self.pod is not None and nic.operation.released == self.pod.metadata.uid


def parse_nics(vmi: VirtualMachineInstance, pod: Pod | None) -> VmiNics:
    """Parse a VMI and its acting pod.

    If one of the VM's pod interfaces has an ordinal name, all of them have, in the order of the spec's networks
    (KubeVirt's rule). Other links of the pod are foreign, whatever their names are.

    :raises ValueError: an item of the spec or an annotation of the pod is malformed, or a list or name is too long.
    """
    annotations = pod.metadata.annotations if pod is not None else {}
    elements = parse_networks(annotations.get(NETWORKS))
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    interfaces, networks = vmi.spec.interface_items(), {network.name: network for network in vmi.spec.network_items()}
    check_length("status.nodeName", vmi.status.node_name, MAX_NAME)
    check_count("entries of status.interfaces", vmi.status.interfaces, MAX_STATUS_INTERFACES)
    status_entries = entries_by_name(vmi.status.interfaces)
    vm = owning_vm_uid(vmi)
    plugs, unplugs = read_operations(vmi.metadata, vm), read_unplugs(vmi.metadata, vm)
    present = {interface.name for interface in interfaces if interface.state != ABSENT}
    operations = plugs | {name: operation for name, operation in unplugs.items() if name not in present}
    element_by_link = {element.requested_interface: element for element in elements}
    status_by_link = {status.interface: status for status in statuses}
    nics = {}
    for position, network, hashed in _secondary(interfaces, networks):
        interface = interfaces[position]
        assert network.multus is not None
        nad = qualified_nad(network.multus.network_name, vmi.metadata.namespace)
        found = operations.get(interface.name)
        written = found if found is None or found.network in (None, nad) else None
        nics[interface.name] = Nic(
            interface=interface,
            network=network,
            position=position,
            nad=nad,
            names=link_names(hashed),
            operation=resolve_operation(vmi, interface, written),
            written=written,
            element=element_by_link.get(hashed),
            status=status_by_link.get(hashed),
            record=read_pod_nic(annotations, pod_nic_key(interface.name)),
            entry=readable(status_entries.get(interface.name, {})),
        )
    ordinal = None
    if not any(nic.in_pod for nic in nics.values()):
        ordinal = _with_ordinal_names(vmi, nics, networks.values(), elements, statuses)
    return VmiNics(
        vmi=vmi,
        pod=pod,
        interfaces={interface.name: interface for interface in interfaces},
        networks=networks,
        nics=ordinal or nics,
        operations=operations,
        entries={(one.interface, one.kind): one for one in (*plugs.values(), *unplugs.values())},
        elements=tuple(elements),
        statuses=tuple(statuses),
        status_entries=status_entries,
        ordinal=ordinal is not None,
    )


def _with_ordinal_names(
    vmi: VirtualMachineInstance,
    nics: Mapping[str, Nic],
    networks: Iterable[Network],
    elements: Iterable[NetworkSelectionElement],
    statuses: Iterable[NetworkStatus],
) -> dict[str, Nic] | None:
    """Return the NICs with ordinal names; ``None`` when none of them has had an ordinal name from the pod's start.

    Multus names foreign attachments ``net<i>``, too. So an attachment is a NIC's only if it is on the NIC's network.
    """
    element_of = {
        (one.requested_interface, qualified_nad(one.name, one.namespace or vmi.metadata.namespace)): one
        for one in elements
    }
    status_of = {(one.interface, one.name): one for one in statuses}
    secondary = [one.name for one in networks if one.multus is not None and not one.multus.default]
    found = {}
    for name, nic in nics.items():
        link = f"net{secondary.index(name) + 1}"
        element, status = element_of.get((link, nic.nad)), status_of.get((link, nic.nad))
        found[name] = msgspec.structs.replace(nic, names=link_names(link), element=element, status=status)
    return found if any(nic.element is not None and _may_be_from_start(nic) for nic in found.values()) else None


def _may_be_from_start(nic: Nic) -> bool:
    """Return whether the pod may have had a NIC from its start, with its ordinal name.

    An element that fits a NIC while it is plugged, or after its pod network was torn down, was in the template: it is
    foreign. No NIC with an ordinal name is torn down.
    """
    written = nic.written
    if nic.entry.get("podInterfaceName", nic.link) != nic.link or (written is not None and written.released):
        return False
    return bool(nic.tokens) or written is None or written.kind is OperationKind.UNPLUG


def qualified_nad(reference: str, namespace: str) -> str:
    """Return a NAD reference, ``name`` or ``namespace/name``, as ``namespace/name``.

    :param namespace: the VMI's namespace, the default.
    """
    return reference if "/" in reference else f"{namespace}/{reference}"


def _secondary(interfaces: Sequence[Interface], networks: Mapping[str, Network]) -> Iterator[tuple[int, Network, str]]:
    """Yield position, network and hashed pod interface of each interface on a NAD that is not the default network."""
    taken: set[str] = set()
    for position, interface in enumerate(interfaces):
        network, link = networks.get(interface.name), pod_interface(interface.name)
        if network is not None and network.multus is not None and not network.multus.default and link not in taken:
            taken.add(link)
            yield position, network, link
