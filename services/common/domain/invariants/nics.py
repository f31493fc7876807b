"""A machine by its NICs: for each one what every witness says of it, side by side, and whether it has come to rest.

What is still under way is listed as such and not judged. Next: :mod:`services.common.domain.invariants.objects`,
the first of the checks.
"""

from collections.abc import Iterable, Iterator

import msgspec

from schemas.hotplug_status import InterfaceHotplugStatus
from schemas.kube import Interface, Network, Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash, is_ordinal
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    parse_network_status,
    parse_networks,
)
from schemas.operations import PodNic, is_hashed, operation_of, pod_nic_key, pod_nic_of
from schemas.stages import OperationKind
from services.common.domain.attachments import nad_reference, pod_interface_names, secondary
from services.common.domain.hotplug_status import fold
from services.common.domain.invariants.world import (
    NodeSnapshot,
    NotVisible,
    OperationInProgress,
    PodOnNode,
    SandboxRecords,
    VmSnapshot,
)
from services.common.domain.operations import ABSENT, acting_pod, migrating
from services.common.domain.status_interfaces import Entry, entry_of

FINAL_PHASES = frozenset({"Succeeded", "Failed"})


class BridgedLinkNames(msgspec.Struct, frozen=True):
    """What the links of a bridged NIC are called: the stand-in bears the pod interface's name."""

    stand_in: str
    nic: str
    bridge: str
    tap: str


class CheckedNic(msgspec.Struct, frozen=True):
    """One NIC of a VMI's spec that has come to rest: plugged, and in the guest as far as the VMI's status tells."""

    subject: str
    interface: Interface
    network: Network
    nic_status: InterfaceHotplugStatus
    names: BridgedLinkNames
    element: NetworkSelectionElement | None
    status: NetworkStatus | None
    record: PodNic | None
    entry: Entry

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.interface.name


class CheckedVmi(msgspec.Struct, frozen=True):
    """A running machine, ready to be checked.

    :ivar elements: of the networks annotation, by link, those without a name numbered as multus does it.
    :ivar busy: links of NICs that are under way. :ivar inside: of the acting pod.
    """

    machine: VmSnapshot
    vmi: VirtualMachineInstance
    pod: Pod
    nics: tuple[CheckedNic, ...]
    elements: dict[str, NetworkSelectionElement]
    statuses: dict[str, NetworkStatus]
    busy: frozenset[str]
    inside: PodOnNode | NotVisible
    node: NodeSnapshot | NotVisible

    @property
    def pod_subject(self) -> str:
        """How the pod is called in a report."""
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}"

    @property
    def sandbox_record(self) -> SandboxRecords | NotVisible | None:
        """The multus daemon's record of the pod's sandbox."""
        if isinstance(self.inside, NotVisible):
            return self.inside
        if isinstance(self.node, NotVisible):
            return self.node
        if isinstance(self.node.records, NotVisible):
            return self.node.records
        return next((record for record in self.node.records if record.sandbox == self.inside.sandbox), None)

    def known_hash(self, digits: str) -> bool:
        """Whether an interface of the spec, or a link that stands in the pod's annotations, has this hash."""
        here = {interface_hash(interface.name) for interface in self.vmi.spec.interface_items()}
        return digits in here or any(link == f"pod{digits}" for link in (*self.elements, *self.statuses))


def link_names(pod_interface: str) -> BridgedLinkNames:
    """The links that go with a pod interface, hashed (``pod<h>``) or ordinal (``net<i>``)."""
    if is_ordinal(pod_interface):
        return BridgedLinkNames(
            pod_interface, f"{pod_interface}-nic", f"k6t-{pod_interface}", f"tap{pod_interface[3:]}"
        )
    digits = pod_interface.removeprefix("pod")
    return BridgedLinkNames(pod_interface, f"{digits}-nic", f"k6t-{digits}", f"tap{digits}")


def hash_of(link: str) -> str | None:
    """The ``<h>`` of a link that is called as the wiring calls its links; ``None`` for any other."""
    for digits in (link[3:], link[4:] if link.startswith("k6t-") else "", link.removesuffix("-nic")):
        if is_hashed(f"pod{digits}") and link in {f"pod{digits}", f"tap{digits}", f"k6t-{digits}", f"{digits}-nic"}:
            return digits
    return None


def under_way(machine: VmSnapshot) -> OperationInProgress | None:
    """Why a machine as a whole cannot be judged now; ``None`` when it runs."""
    vmi = machine.vmi
    if vmi is None:
        going = [pod for pod in machine.pods if pod.metadata.deletion_timestamp is not None]
        if going:
            return OperationInProgress(
                machine.subject, "its pod is being deleted", going[0].metadata.deletion_timestamp
            )
        return None
    if vmi.metadata.deletion_timestamp is not None:
        return OperationInProgress(machine.subject, "it is being stopped", vmi.metadata.deletion_timestamp)
    if vmi.status.phase not in {"Running", *FINAL_PHASES}:
        what = f"it is being started (phase {vmi.status.phase or 'unset'})"
        return OperationInProgress(machine.subject, what, vmi.metadata.creation_timestamp)
    if migrating(vmi):
        return OperationInProgress(machine.subject, "a live migration is under way", reason="Migrating")
    pod = acting_pod(vmi, machine.pods)
    if pod is not None and pod.metadata.deletion_timestamp is not None:
        return OperationInProgress(machine.subject, "its pod is being deleted", pod.metadata.deletion_timestamp)
    return None


def hotplug_status_of(machine: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod) -> list[InterfaceHotplugStatus]:
    """The ladder.

    :raises ValueError: a spec or an annotation is malformed.
    """
    return fold(vmi, pod, machine.vm if isinstance(machine.vm, VirtualMachine) else None)


def at_rest(nic_status: InterfaceHotplugStatus, interface: Interface | None) -> bool:
    """Whether a NIC is plugged and nothing more is to come for it."""
    return (
        interface is not None
        and nic_status.kind is OperationKind.PLUG
        and nic_status.complete
        and nic_status.failed is None
    )


def checked_vmi(
    machine: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod, node: NodeSnapshot | NotVisible
) -> CheckedVmi:
    """A running machine with its acting pod, by NIC.

    :raises ValueError: a spec or an annotation is malformed.
    """
    annotations = pod.metadata.annotations
    asked = parse_networks(annotations.get(NETWORKS))
    reported = parse_network_status(annotations.get(NETWORK_STATUS))
    names = pod_interface_names(vmi.spec, asked, reported)
    pairs = {interface.name: (interface, network) for interface, network in secondary(vmi.spec)}
    # multus calls an element without a name after its place in the list.
    elements = {element.requested_interface or f"net{i}": element for i, element in enumerate(asked, start=1)}
    statuses = {status.interface: status for status in reported if status.interface is not None}
    nics = []
    busy = set()
    for nic_status in hotplug_status_of(machine, vmi, pod):
        interface, network = pairs.get(nic_status.interface, (None, None))
        link = names.get(nic_status.interface, nic_status.pod_interface or "")
        if interface is None or network is None or not at_rest(nic_status, interface) or interface.bridge is None:
            busy.add(link)
            continue
        nics.append(
            CheckedNic(
                subject=f"{machine.subject}/{interface.name}",
                interface=interface,
                network=network,
                nic_status=nic_status,
                names=link_names(link),
                element=elements.get(link),
                status=statuses.get(link),
                record=pod_nic_of(annotations, pod_nic_key(interface.name)),
                entry=entry_of(vmi.status.interfaces, interface.name) or {},
            )
        )
    inside = machine.inside.get(pod.metadata.uid, NotVisible("nobody looked into the pod"))
    return CheckedVmi(machine, vmi, pod, tuple(nics), elements, statuses, frozenset(busy), inside, node)


def progress(machine: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod) -> Iterator[OperationInProgress]:
    """The operations that are not over.

    :raises ValueError: a spec or an annotation is malformed.
    """
    interfaces = {interface.name: interface for interface in vmi.spec.interface_items()}
    for nic_status in hotplug_status_of(machine, vmi, pod):
        interface = interfaces.get(nic_status.interface)
        if at_rest(nic_status, interface) or (
            interface is not None and interface.bridge is None and nic_status.kind is OperationKind.PLUG
        ):
            continue
        what = f"its {nic_status.kind} has reached {nic_status.stage}"
        yield OperationInProgress(
            f"{machine.subject}/{nic_status.interface}", what, nic_status.requested_at, nic_status.reason
        )
    if isinstance(machine.vm, VirtualMachine):
        for item in machine.vm.spec.template.spec.interface_items():
            if item.state == ABSENT and item.name not in interfaces:
                wished = operation_of(machine.vm.metadata.annotations, item.name)
                what = "its unplug has left the running VM, and not the VM's template yet"
                yield OperationInProgress(
                    f"{machine.subject}/{item.name}", what, wished.requested_at if wished else None
                )


def wanted_network(nic: CheckedNic, namespace: str) -> str:
    """The NAD of the spec as ``namespace/name``."""
    assert nic.network.multus is not None
    return "/".join(nad_reference(nic.network.multus.network_name, namespace))


def listed(values: Iterable[str]) -> str:
    """Some values, for people."""
    return ", ".join(values) or "none"
