"""Checks among Kubernetes objects: the VM's and the VMI's spec, the pod's annotations, the VMI's status.

Each check is a generator of disagreements of one running machine. Next:
:mod:`services.common.domain.invariants.node_state`, the same against the node.
"""

from collections.abc import Iterator, Mapping

from schemas.kube import VirtualMachine
from schemas.names import colliding, interface_hash
from schemas.operations import (
    PREFIX,
    hotplug_mark_key,
    is_hashed,
    nic_slots_of,
    operation_of,
    pod_nic_key_of_link,
    stale_operations,
)
from schemas.stages import OperationKind
from services.common.domain.invariants.nics import CheckedVmi, listed, wanted_network
from services.common.domain.invariants.world import Finding, NotVisible
from services.common.domain.operations import ABSENT
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, tokens

CONTROLLER = "the controller mends this within a minute; if it stays, see whether the controller is ready"
NETWORKS_ROLE = "the networks role of the node mends this within a minute; if it stays, see whether it is ready"
HANDLER = "the handler of the node mends this within a minute; if it stays, see whether it is ready"

_POD_NIC = f"{PREFIX}pod-nic."
_ATTACHED = f"{PREFIX}attached."


def names(case: CheckedVmi) -> Iterator[Finding]:
    """No two interfaces of the spec have links that would be called alike."""
    pair = colliding(interface.name for interface in case.vmi.spec.interface_items())
    if pair is not None:
        yield Finding(
            "NamesCollide",
            case.machine.subject,
            f"interfaces {pair[0]} and {pair[1]} have the same hash, so their links in the pod would be one",
            "call one of them otherwise, in the VM's template, and restart the VM",
        )


def elements(case: CheckedVmi) -> Iterator[Finding]:
    """The networks annotation asks for the attachments of the spec and for none of an interface that is not there."""
    for nic in case.nics:
        wanted = wanted_network(nic, case.machine.namespace)
        element = nic.element
        if element is None:
            what = f"the spec has it on {wanted}, the pod's networks annotation has no element {nic.names.stand_in}"
            yield Finding("ElementMissing", nic.subject, what, CONTROLLER)
            continue
        asked = f"{element.namespace or case.pod.metadata.namespace}/{element.name}"
        if asked != wanted:
            what = f"the spec has it on {wanted}, the pod's networks annotation on {asked}"
            yield Finding("ElementDiffers", nic.subject, what, _replug(case, nic.name))
        mac = nic.interface.mac_address
        if mac and (element.mac or "").lower() != mac.lower():
            what = f"the spec has MAC {mac}, the pod's networks annotation {element.mac or 'none'}"
            yield Finding("ElementDiffers", nic.subject, what, _replug(case, nic.name))
    mine = {interface_hash(interface.name) for interface in case.vmi.spec.interface_items()}
    for link in case.elements:
        if is_hashed(link) and link[3:] not in mine:
            what = f"the pod's networks annotation asks for {link}, which belongs to no interface of the spec"
            yield Finding(
                "ElementLeftOver", case.machine.subject, what, "take the element out of the pod's networks annotation"
            )


def network_status(case: CheckedVmi) -> Iterator[Finding]:
    """The pod's network status has an entry for each element that is at rest, and for nothing else."""
    subjects = {nic.names.stand_in: nic.subject for nic in case.nics}
    for link, element in case.elements.items():
        if link in case.busy:
            continue
        subject = subjects.get(link, case.machine.subject)
        asked = f"{element.namespace or case.pod.metadata.namespace}/{element.name}"
        status = case.statuses.get(link)
        if status is None:
            what = f"the pod's networks annotation asks for {link} on {asked}, its network status has no such entry"
            yield Finding("StatusEntryMissing", subject, what, NETWORKS_ROLE)
        elif status.name != asked:
            what = f"the pod's networks annotation has {link} on {asked}, its network status on {status.name}"
            yield Finding("StatusEntryDiffers", subject, what, NETWORKS_ROLE)
    for link, status in case.statuses.items():
        if not status.default and link not in case.elements and link not in case.busy:
            what = f"the pod's network status has {link} on {status.name}, its networks annotation does not ask for it"
            yield Finding("StatusEntryLeftOver", subjects.get(link, case.machine.subject), what, NETWORKS_ROLE)


def pod_nics(case: CheckedVmi) -> Iterator[Finding]:
    """The record of each pod NIC is there and tells what the network status tells; there are no others."""
    for nic in case.nics:
        record, status = nic.record, nic.status
        if not is_hashed(nic.names.stand_in):
            continue
        if record is None:
            what = "the pod has no readable record of what its pod NIC was before it was wired"
            yield Finding("PodNicRecordMissing", nic.subject, what, HANDLER)
            continue
        if record.pod_uid != case.pod.metadata.uid or record.interface != nic.names.stand_in:
            what = f"the pod NIC record speaks of {record.interface} of pod {record.pod_uid}, not of this pod's link"
            yield Finding("PodNicRecordDiffers", nic.subject, what, _replug(case, nic.name))
            continue
        if not isinstance(case.inside, NotVisible) and case.inside.sandbox not in {None, record.sandbox_id}:
            what = f"the pod NIC record speaks of sandbox {record.sandbox_id}, the pod runs in {case.inside.sandbox}"
            yield Finding("PodNicRecordDiffers", nic.subject, what, _replug(case, nic.name))
        if status is None:
            continue
        recorded = sorted(ip.partition("/")[0] for ip in record.ips)
        shown = sorted(status.ips or ())
        if recorded != shown:
            what = f"the pod NIC record has the addresses {listed(recorded)}, the network status {listed(shown)}"
            yield Finding("PodNicRecordDiffers", nic.subject, what, _replug(case, nic.name))
        if status.mac and status.mac.lower() != record.mac.lower():
            what = f"the pod NIC record has MAC {record.mac}, the network status {status.mac}"
            yield Finding("PodNicRecordDiffers", nic.subject, what, _replug(case, nic.name))
    yield from _notes_left_over(case)


def _notes_left_over(case: CheckedVmi) -> Iterator[Finding]:
    links = {*case.elements, *case.statuses, *case.busy}
    known = {pod_nic_key_of_link(link) for link in links}
    marks = {hotplug_mark_key(link) for link in links}
    for key in case.pod.metadata.annotations:
        if (key.startswith(_POD_NIC) and key not in known) or (key.startswith(_ATTACHED) and key not in marks):
            what = f"the pod has the annotation {key}, but no attachment it could speak of"
            yield Finding(
                "PodAnnotationLeftOver",
                case.machine.subject,
                what,
                f"kubectl annotate pod {case.pod.metadata.name} {key}-",
            )


def vmi_status(case: CheckedVmi) -> Iterator[Finding]:
    """The VMI's status tells of each NIC what the spec and the pod tell, and of no interface that is not there."""
    for nic in case.nics:
        entry = nic.entry
        if MULTUS_STATUS not in tokens(entry):
            what = "the VMI's status does not say that Multus has attached it"
            yield Finding("VmiStatusDiffers", nic.subject, what, CONTROLLER)
        if entry.get("podInterfaceName") != nic.names.stand_in:
            what = f"its link is {nic.names.stand_in}, the VMI's status says {entry.get('podInterfaceName') or 'none'}"
            yield Finding("VmiStatusDiffers", nic.subject, what, CONTROLLER)
        wanted = nic.interface.mac_address or (nic.record.mac if nic.record else None)
        mac = str(entry.get("mac") or "")
        if wanted and mac.lower() != wanted.lower().replace("-", ":"):
            what = f"its MAC should be {wanted}, the VMI's status says {mac or 'none'}"
            yield Finding("VmiStatusDiffers", nic.subject, what, HANDLER)
        cable, shown = "down" if nic.interface.state == "down" else "up", entry.get("linkState")
        if shown not in {None, cable}:
            what = f"its cable should be {cable}, the VMI's status says {shown}"
            yield Finding("VmiStatusDiffers", nic.subject, what, HANDLER)
    known = {interface.name for interface in case.vmi.spec.interface_items()}
    for entry in case.vmi.status.interfaces or ():
        name = entry.get("name")
        # The guest agent also reports devices that are no interface of a spec; those have no name.
        if known and name and name not in known:
            what = f"the VMI's status lists the interface {name}, the spec does not"
            yield Finding("VmiStatusLeftOver", f"{case.machine.subject}/{name}", what, CONTROLLER)


def operations(case: CheckedVmi) -> Iterator[Finding]:
    """Every operation that is noted belongs to an interface, and is the same on VMI and pod."""
    mine = {interface_hash(interface.name) for interface in case.vmi.spec.interface_items()}
    vm = case.machine.vm
    if not isinstance(vm, NotVisible):
        marked = {interface_hash(name) for name in _kept_for_the_template(case, vm)}
        yield from _stale(case, case.vmi.metadata.annotations, mine | marked, "the VMI")
    if isinstance(vm, VirtualMachine):
        in_template = {str(item.get("name")) for item in vm.spec.template.spec.domain.devices.interfaces or ()}
        yield from _stale(
            case, vm.metadata.annotations, mine | {interface_hash(name) for name in in_template}, "the VM"
        )
    links = {link[3:] for link in (*case.elements, *case.statuses) if is_hashed(link)}
    yield from _stale(case, case.pod.metadata.annotations, mine | links, "the pod")
    for nic in case.nics:
        on_vmi = operation_of(case.vmi.metadata.annotations, nic.name)
        on_pod = operation_of(case.pod.metadata.annotations, nic.name)
        if on_vmi is not None and on_pod is not None and on_vmi.id != on_pod.id:
            what = f"the VMI notes operation {on_vmi.id}, the pod {on_pod.id}"
            yield Finding("OperationDiffers", nic.subject, what, _replug(case, nic.name))


def _stale(case: CheckedVmi, annotations: Mapping[str, str], known: set[str], where: str) -> Iterator[Finding]:
    for key in stale_operations(dict(annotations), known):
        what = f"{where} notes an operation under {key}, which belongs to no interface"
        yield Finding("OperationLeftOver", case.machine.subject, what, CONTROLLER)


def _kept_for_the_template(case: CheckedVmi, vm: VirtualMachine | None) -> Iterator[str]:
    """The interfaces that were unplugged from this VMI alone: what the template still lists is not to come back."""
    for item in (vm.spec.template.spec.domain.devices.interfaces or ()) if vm is not None else ():
        name = str(item.get("name"))
        noted = operation_of(case.vmi.metadata.annotations, name)
        if item.get("state") != ABSENT and noted is not None and noted.kind is OperationKind.UNPLUG:
            yield name


def slots(case: CheckedVmi) -> Iterator[Finding]:
    """The count of free slots speaks of the acting pod, and of as many NICs as the VMI's status lists."""
    noted = nic_slots_of(case.vmi.metadata.annotations)
    if noted is None or case.busy:
        return
    if noted.pod_uid != case.pod.metadata.uid:
        what = f"the count of free slots speaks of pod {noted.pod_uid}, the VM runs in {case.pod.metadata.uid}"
        yield Finding("SlotsDiffer", case.machine.subject, what, HANDLER)
        return
    seen = sum(1 for entry in case.vmi.status.interfaces or () if entry.get("name") and DOMAIN in tokens(entry))
    if noted.nics != seen:
        what = f"the count of free slots speaks of {noted.nics} NICs, the VMI's status lists {seen} in the domain"
        yield Finding("SlotsDiffer", case.machine.subject, what, HANDLER)


def _replug(case: CheckedVmi, interface: str) -> str:
    return replug(case.machine.namespace, case.machine.name, interface)


def replug(namespace: str, vm: str, interface: str) -> str:
    """What to do about a NIC that nobody mends: the roles change nothing under a card that the guest uses."""
    return (
        f"unplug it and plug it again: hotnic removeinterface {vm} --name {interface} -n {namespace}, "
        "then hotnic addinterface"
    )
