"""A running VMI for the checks: its NICs without an operation in progress, with everything they are compared with.

NICs with an operation in progress are reported as such and are not checked.
Next: :mod:`services.cli.doctor.checks.objects`, the first checks.
"""

from collections.abc import Iterable, Iterator

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.networks import NetworkSelectionElement, NetworkStatus
from schemas.kubernetes.objects import Interface, Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import is_hashed
from schemas.names import HASH_DIGITS, interface_hash
from schemas.stages import OperationKind
from services.cli.doctor.snapshot import (
    NodeSnapshot,
    NotVisible,
    OperationInProgress,
    PodOnNode,
    SandboxRecords,
    VmSnapshot,
)
from services.common.domain.kubevirt.reasons import STRAY_ELEMENT
from services.common.domain.kubevirt.strays import is_stray_link
from services.common.domain.nic import Nic, link_names, parse_nics
from services.common.domain.operations import ABSENT, find_acting_pod, is_migrating, read_operations
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.template import FINAL_PHASES


class CheckedVmi(msgspec.Struct, frozen=True):
    """A running VMI with all that the checks compare.

    :ivar nics: the plugged NICs without an operation in progress.
    :ivar spec_hashes: hashes of all interfaces of the spec.
    :ivar nic_statuses: the hot-plug status of all interfaces, derived from the objects; by interface.
    :ivar elements: elements of the pod's networks annotation, by link name.
    :ivar statuses: entries of the pod's network status, by link name.
    :ivar pending_links: pod interfaces of the NICs that are not checked.
    :ivar pod_on_node: the acting pod on its node.
    """

    vm_snapshot: VmSnapshot
    vmi: VirtualMachineInstance
    pod: Pod
    nics: tuple[Nic, ...]
    spec_hashes: frozenset[str]
    nic_statuses: dict[str, InterfaceHotplugStatus]
    elements: dict[str, NetworkSelectionElement]
    statuses: dict[str, NetworkStatus]
    pending_links: frozenset[str]
    pod_on_node: PodOnNode | NotVisible
    node: NodeSnapshot | NotVisible

    @property
    def owned_by_kubevirt(self) -> bool:
        """Whether KubeVirt plugs and unplugs; hotnic then writes only operations on the VMI."""
        return self.vm_snapshot.beside is not None

    @property
    def pod_subject(self) -> str:
        """The pod's name in a report."""
        return f"{self.pod.metadata.namespace}/{self.pod.metadata.name}"

    @property
    def sandbox_record(self) -> SandboxRecords | NotVisible | None:
        """The multus daemon's record of the pod's sandbox."""
        if isinstance(self.pod_on_node, NotVisible):
            return self.pod_on_node
        if isinstance(self.node, NotVisible):
            return self.node
        if isinstance(self.node.records, NotVisible):
            return self.node.records
        return next((record for record in self.node.records if record.sandbox == self.pod_on_node.sandbox), None)

    def subject_of(self, interface: str) -> str:
        """Return the name of an interface in a report."""
        return f"{self.vm_snapshot.subject}/{interface}"

    def subject_of_link(self, link: str) -> str:
        """Return the name of the checked NIC with this pod interface in a report, or of the VM when there is none."""
        return next((self.subject_of(nic.name) for nic in self.nics if nic.link == link), self.vm_snapshot.subject)

    def is_stray_link(self, link: str) -> bool:
        """Return whether a pod interface has the name of an interface that the spec does not have."""
        return is_stray_link(link, self.spec_hashes)

    def is_known_hash(self, digits: str) -> bool:
        """Return whether an interface of the spec, or a link in the pod's annotations, has this hash."""
        return digits in self.spec_hashes or any(link == f"pod{digits}" for link in (*self.elements, *self.statuses))


def hash_of_link(link: str) -> str | None:
    """Return the ``<h>`` in the name of a link of the pod network; ``None`` for any other link."""
    digits = link.removesuffix("-nic")[-HASH_DIGITS:]
    pod_interface = f"pod{digits}"
    return digits if is_hashed(pod_interface) and link in msgspec.structs.astuple(link_names(pod_interface)) else None


def vm_in_transition(vm_snapshot: VmSnapshot) -> OperationInProgress | None:
    """Return why a VM cannot be checked as a whole: it starts, stops or migrates; ``None`` when it can."""
    vmi = vm_snapshot.vmi
    subject = vm_snapshot.subject
    if vmi is None:
        deleted = [pod for pod in vm_snapshot.pods if pod.metadata.deletion_timestamp is not None]
        if deleted:
            return OperationInProgress(subject, "its pod is being deleted", deleted[0].metadata.deletion_timestamp)
        return None
    if vmi.metadata.deletion_timestamp is not None:
        return OperationInProgress(subject, "the VM is being stopped", vmi.metadata.deletion_timestamp)
    if vmi.status.phase not in {"Running", *FINAL_PHASES}:
        message = f"the VM is being started (phase {vmi.status.phase or 'unset'})"
        return OperationInProgress(subject, message, vmi.metadata.creation_timestamp)
    if is_migrating(vmi):
        return OperationInProgress(subject, "a live migration is in progress", reason="Migrating")
    pod = find_acting_pod(vmi, vm_snapshot.pods)
    if pod is not None and pod.metadata.deletion_timestamp is not None:
        return OperationInProgress(subject, "its pod is being deleted", pod.metadata.deletion_timestamp)
    return None


def is_settled(nic_status: InterfaceHotplugStatus, interface: Interface | None) -> bool:
    """Return whether a NIC is plugged and has no operation in progress."""
    return (
        interface is not None
        and nic_status.kind is OperationKind.PLUG
        and nic_status.complete
        and nic_status.failed is None
    )


def is_stray(nic_status: InterfaceHotplugStatus) -> bool:
    """Return whether a status is that of an element in the pod that belongs to no interface."""
    return nic_status.reason == STRAY_ELEMENT


def build_checked_vmi(
    vm_snapshot: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod, node: NodeSnapshot | NotVisible
) -> CheckedVmi:
    """Return a running VM with its acting pod, prepared for the checks.

    :raises ValueError: a spec or an annotation is malformed.
    """
    parsed = parse_nics(vmi, pod)
    # Multus names an element without an interface name after its position in the list.
    elements = {element.requested_interface or f"net{i}": element for i, element in enumerate(parsed.elements, start=1)}
    statuses = {status.interface: status for status in parsed.statuses if status.interface is not None}
    vm = vm_snapshot.vm if isinstance(vm_snapshot.vm, VirtualMachine) else None
    derived = derive_statuses(parsed, vm, vm_snapshot.beside, around=vm_snapshot.around)
    nic_statuses = {nic_status.interface: nic_status for nic_status in derived}
    nics = []
    pending_links = set()
    for name, nic_status in nic_statuses.items():
        if is_stray(nic_status):
            continue
        nic = parsed.nics.get(name)
        if nic is None or not is_settled(nic_status, nic.interface) or nic.interface.bridge is None:
            pending_links.add(nic.link if nic is not None else nic_status.pod_interface or "")
        else:
            nics.append(nic)
    return CheckedVmi(
        vm_snapshot=vm_snapshot,
        vmi=vmi,
        pod=pod,
        nics=tuple(nics),
        spec_hashes=frozenset(interface_hash(name) for name in parsed.interfaces),
        nic_statuses=nic_statuses,
        elements=elements,
        statuses=statuses,
        pending_links=frozenset(pending_links),
        pod_on_node=vm_snapshot.pods_on_node.get(pod.metadata.uid, NotVisible("the pod was not read on its node")),
        node=node,
    )


def operations_in_progress(checked: CheckedVmi) -> Iterator[OperationInProgress]:
    """Yield the operations of a VM that have not completed.

    :raises ValueError: a spec or an annotation is malformed.
    """
    interfaces = {interface.name: interface for interface in checked.vmi.spec.interface_items()}
    for name, nic_status in checked.nic_statuses.items():
        interface = interfaces.get(name)
        if (
            is_settled(nic_status, interface)
            or is_stray(nic_status)
            or (
                # hotnic plugs bridge-bound interfaces only; another binding is not an operation of ours.
                interface is not None and interface.bridge is None and nic_status.kind is OperationKind.PLUG
            )
        ):
            continue
        message = f"the {nic_status.kind} has reached stage {nic_status.stage}"
        yield OperationInProgress(checked.subject_of(name), message, nic_status.requested_at, nic_status.reason)
    vm = checked.vm_snapshot.vm
    if isinstance(vm, VirtualMachine):
        for item in vm.spec.template.spec.interface_items():
            if item.state == ABSENT and item.name not in interfaces:
                operation = read_operations(vm.metadata).get(item.name)
                message = "the interface is unplugged from the running VM, but not yet removed from the VM's template"
                yield OperationInProgress(
                    checked.subject_of(item.name), message, operation.requested_at if operation else None
                )


def listed(values: Iterable[str]) -> str:
    """Return some values as text."""
    return ", ".join(values) or "none"
