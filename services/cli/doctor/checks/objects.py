"""Checks of the Kubernetes objects: the specs of VM and VMI, the pod's annotations, the VMI's status.

Each check yields the findings of one running VMI.
Next: :mod:`services.cli.doctor.checks.node_state`, the checks against the node.
"""

from collections.abc import Iterator, Set

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    PREFIX,
    hotplug_mark_key,
    is_hashed,
    pod_nic_key_of_link,
    read_nic_slots,
    stale_operation_keys,
)
from schemas.names import find_colliding_names, interface_hash
from schemas.stages import OperationKind
from services.cli.doctor.checks.nics import CheckedVmi, listed
from services.cli.doctor.fix import choose
from services.cli.doctor.fix.changes import AnnotationRemoval
from services.cli.doctor.snapshot import Finding, NotVisible
from services.common.domain.operations import ABSENT, read_operations
from services.common.domain.status_interfaces import DOMAIN, MULTUS_STATUS, parse_tokens

CONTROLLER_REPAIR = (
    "the controller corrects this within two minutes; if it remains, check whether the controller is ready"
)
NETWORKS_REPAIR = (
    "the networks role of the node corrects this within two minutes; if it remains, check whether that role is ready"
)
KUBEVIRT_REPAIR = (
    "KubeVirt writes the annotation only when an interface is plugged or unplugged; migrate the VM, or restart it"
)
HANDLER_REPAIR = "the handler of the node corrects this within two minutes; if it remains, check whether it is ready"

_POD_NIC = f"{PREFIX}pod-nic."
_ATTACHED = f"{PREFIX}attached."


def check_names(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that no two interfaces of the spec have a hash collision."""
    pair = find_colliding_names(interface.name for interface in checked.vmi.spec.interface_items())
    if pair is not None:
        yield Finding(
            "NamesCollide",
            checked.vm_snapshot.subject,
            f"interfaces {pair[0]} and {pair[1]} have the same hash, so their links in the pod have the same names",
            "rename one of them in the VM's template and restart the VM",
        )


def check_elements(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the networks annotation has the attachments of the spec, and none of an unknown interface."""
    for nic in checked.nics:
        desired, element, subject = nic.nad, checked.elements.get(nic.link), checked.subject_of(nic.name)
        if element is None:
            message = f"the spec has network {desired}, the pod's networks annotation has no element {nic.link}"
            repair = KUBEVIRT_REPAIR if checked.owned_by_kubevirt else CONTROLLER_REPAIR
            yield Finding("ElementMissing", subject, message, repair)
            continue
        requested = f"{element.namespace or checked.pod.metadata.namespace}/{element.name}"
        if requested != desired:
            message = f"the spec has network {desired}, the pod's networks annotation has {requested}"
            yield Finding("ElementDiffers", subject, message, replug_repair(checked, nic.name))
        mac = nic.interface.mac_address
        if mac and (element.mac or "").lower() != mac.lower():
            message = f"the spec has MAC {mac}, the pod's networks annotation has {element.mac or 'none'}"
            yield Finding("ElementDiffers", subject, message, replug_repair(checked, nic.name))
    for link in checked.elements:
        if checked.is_stray_link(link):
            message = f"the pod's networks annotation has element {link}, which belongs to no interface of the spec"
            repair = (
                "remove the element from the pod's networks annotation if the guest does not use its link; as root on "
                f"node {checked.pod.spec.node_name} the doctor checks that, too"
            )
            fix = choose.remove_element(checked, link)
            yield Finding("ElementLeftOver", checked.vm_snapshot.subject, message, repair, fix)


def check_network_status(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the pod's network status has an entry for each element, and no others."""
    for link, element in checked.elements.items():
        if link in checked.pending_links or (checked.is_stray_link(link) and link not in checked.statuses):
            # A stray element that is not attached is one finding: it has to go, not to be attached.
            continue
        subject = checked.subject_of_link(link)
        requested = f"{element.namespace or checked.pod.metadata.namespace}/{element.name}"
        status = checked.statuses.get(link)
        if status is None:
            message = f"the pod's networks annotation has {link} on {requested}, its network status has no such entry"
            yield Finding("StatusEntryMissing", subject, message, NETWORKS_REPAIR)
        elif status.name != requested:
            message = f"the pod's networks annotation has {link} on {requested}, its network status on {status.name}"
            yield Finding("StatusEntryDiffers", subject, message, NETWORKS_REPAIR)
    for link, status in checked.statuses.items():
        if not status.default and link not in checked.elements and link not in checked.pending_links:
            message = (
                f"the pod's network status has {link} on {status.name}, its networks annotation has no such element"
            )
            subject = checked.subject_of_link(link)
            yield Finding("StatusEntryLeftOver", subject, message, NETWORKS_REPAIR)


def check_pod_nics(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that each pod NIC has a record that agrees with the network status, and that there are no others."""
    for nic in checked.nics:
        record, status, subject = nic.record, nic.status, checked.subject_of(nic.name)
        repair = replug_repair(checked, nic.name)
        if not is_hashed(nic.link):
            # Only NICs with hashed names have a record.
            continue
        if record is None and checked.owned_by_kubevirt:
            # Neither virt-handler nor another networks controller than hotnic's writes one.
            continue
        if record is None:
            message = "the pod has no readable record of the pod interface"
            yield Finding("PodNicRecordMissing", subject, message, HANDLER_REPAIR)
            continue
        if record.pod_uid != checked.pod.metadata.uid or record.interface != nic.link:
            message = f"the pod NIC record is of {record.interface} in pod {record.pod_uid}, not of this pod interface"
            yield Finding("PodNicRecordDiffers", subject, message, repair)
            continue
        pod_on_node = checked.pod_on_node
        if not isinstance(pod_on_node, NotVisible) and pod_on_node.sandbox not in {None, record.sandbox_id}:
            message = f"the pod NIC record is of sandbox {record.sandbox_id}, the pod runs in {pod_on_node.sandbox}"
            yield Finding("PodNicRecordDiffers", subject, message, repair)
        if status is None:
            continue
        recorded = sorted(ip.partition("/")[0] for ip in record.ips)
        reported = sorted(status.ips or ())
        if recorded != reported:
            message = (
                f"the pod NIC record has the addresses {listed(recorded)}, the network status has {listed(reported)}"
            )
            yield Finding("PodNicRecordDiffers", subject, message, repair)
        if status.mac and status.mac.lower() != record.mac.lower():
            message = f"the pod NIC record has MAC {record.mac}, the network status has {status.mac}"
            yield Finding("PodNicRecordDiffers", subject, message, repair)
    yield from _pod_annotations_left_over(checked)


def _pod_annotations_left_over(checked: CheckedVmi) -> Iterator[Finding]:
    links = {*checked.elements, *checked.statuses, *checked.pending_links}
    pod_nic_keys = {pod_nic_key_of_link(link) for link in links}
    mark_keys = {hotplug_mark_key(link) for link in links}
    for key in checked.pod.metadata.annotations:
        if (key.startswith(_POD_NIC) and key not in pod_nic_keys) or (
            key.startswith(_ATTACHED) and key not in mark_keys
        ):
            yield Finding(
                "PodAnnotationLeftOver",
                checked.vm_snapshot.subject,
                f"the pod has the annotation {key}, but no attachment that it belongs to",
                f"kubectl annotate pod {checked.pod.metadata.name} -n {checked.pod.metadata.namespace} {key}-",
                choose.remove_pod_annotation(checked, key),
            )


def check_vmi_status(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the VMI's status agrees with spec and pod for each NIC, and lists no unknown interface."""
    if checked.owned_by_kubevirt:
        # KubeVirt writes it, in its own order.
        return
    for nic in checked.nics:
        entry, subject = nic.entry, checked.subject_of(nic.name)
        if MULTUS_STATUS not in parse_tokens(entry):
            message = f"the entry of the VMI's status lacks the info source {MULTUS_STATUS}"
            yield Finding("VmiStatusDiffers", subject, message, CONTROLLER_REPAIR)
        if entry.get("podInterfaceName") != nic.link:
            shown = entry.get("podInterfaceName") or "none"
            message = f"the pod interface is {nic.link}, the VMI's status has {shown}"
            yield Finding("VmiStatusDiffers", subject, message, CONTROLLER_REPAIR)
        desired_mac = nic.interface.mac_address or (nic.record.mac if nic.record else None)
        mac = str(entry.get("mac") or "")
        if desired_mac and mac.lower() != desired_mac.lower().replace("-", ":"):
            message = f"the MAC should be {desired_mac}, the VMI's status has {mac or 'none'}"
            yield Finding("VmiStatusDiffers", subject, message, HANDLER_REPAIR)
        desired_state = "down" if nic.interface.state == "down" else "up"
        link_state = entry.get("linkState")
        if link_state not in {None, desired_state}:
            message = f"the link state should be {desired_state}, the VMI's status has {link_state}"
            yield Finding("VmiStatusDiffers", subject, message, HANDLER_REPAIR)
    known = {interface.name for interface in checked.vmi.spec.interface_items()}
    for entry in checked.vmi.status.interfaces or ():
        name = entry.get("name")
        # The guest agent also reports devices that are no interface of a spec; their entries have no name.
        if known and name and name not in known:
            message = f"the VMI's status lists interface {name}, the spec does not"
            yield Finding("VmiStatusLeftOver", checked.subject_of(name), message, CONTROLLER_REPAIR)


def check_operations(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that every recorded operation belongs to an interface, and is the same on VMI and pod."""
    subject, in_status = checked.vm_snapshot.subject, choose.hashes_in_status(checked.vmi)
    in_spec = checked.spec_hashes
    vm = checked.vm_snapshot.vm
    if not isinstance(vm, NotVisible):
        known = {interface_hash(name) for name in _unplugged_from_vmi_only(checked, vm)}
        if checked.owned_by_kubevirt and vm is not None:
            # The operation is written before the template, and KubeVirt copies that to the VMI afterwards.
            known |= _hashes_in_template(vm)
        yield from _stale_operations(subject, checked.vmi, in_spec | known, in_status)
    if isinstance(vm, VirtualMachine):
        yield from _stale_operations(subject, vm, in_spec | _hashes_in_template(vm), in_status)
    if checked.owned_by_kubevirt:
        # The operations on pods are copies that KubeVirt makes at a migration; every reader ignores them.
        return
    links = {link[3:] for link in (*checked.elements, *checked.statuses) if is_hashed(link)}
    yield from _stale_operations(subject, checked.pod, in_spec | links, in_status)
    of_vmi, of_pod = read_operations(checked.vmi.metadata), read_operations(checked.pod.metadata)
    for nic in checked.nics:
        on_vmi, on_pod = of_vmi.get(nic.name), of_pod.get(nic.name)
        if on_vmi is not None and on_pod is not None and on_vmi.id != on_pod.id:
            message = f"the VMI has operation {on_vmi.id}, the pod has {on_pod.id}"
            yield Finding("OperationDiffers", checked.subject_of(nic.name), message, replug_repair(checked, nic.name))


def check_stopped_vm(subject: str, vm: VirtualMachine) -> Iterator[Finding]:
    """Check that every operation of a VM that does not run belongs to an interface of its template."""
    yield from _stale_operations(subject, vm, _hashes_in_template(vm), set())


def _stale_operations(
    subject: str, holder: VirtualMachine | VirtualMachineInstance | Pod, known: Set[str], in_status: Set[str]
) -> Iterator[Finding]:
    owner = {VirtualMachine: "the VM", VirtualMachineInstance: "the VMI", Pod: "the pod"}[type(holder)]
    for key in stale_operation_keys(holder.metadata.annotations, known):
        message = f"{owner} has an operation in annotation {key}, which belongs to no interface"
        fix = choose.remove_operation(holder, key, in_status)
        yield Finding("OperationLeftOver", subject, message, CONTROLLER_REPAIR, fix)


def _hashes_in_template(vm: VirtualMachine) -> set[str]:
    items = vm.spec.template.spec.domain.devices.interfaces or ()
    return {interface_hash(str(item.get("name"))) for item in items}


def _unplugged_from_vmi_only(checked: CheckedVmi, vm: VirtualMachine | None) -> Iterator[str]:
    """Yield the interfaces that were unplugged from this VMI but remain in the template.

    Their operations stay on the VMI, so that the controller does not plug them again from the template.
    """
    operations = read_operations(checked.vmi.metadata)
    for item in (vm.spec.template.spec.domain.devices.interfaces or ()) if vm is not None else ():
        name = str(item.get("name"))
        operation = operations.get(name)
        if item.get("state") != ABSENT and operation is not None and operation.kind is OperationKind.UNPLUG:
            yield name


def check_slots(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the count of free slots is of the acting pod, and of as many NICs as the VMI's status lists."""
    slots = read_nic_slots(checked.vmi.metadata.annotations)
    if slots is None or checked.pending_links:
        return
    if slots.pod_uid != checked.pod.metadata.uid:
        message = f"the count of free slots is of pod {slots.pod_uid}, the VMI runs in {checked.pod.metadata.uid}"
        vmi = checked.vmi.metadata
        target = choose.fix_target("VirtualMachineInstance", vmi)
        fix = AnnotationRemoval(target, NIC_SLOTS, ((NIC_SLOTS, vmi.annotations[NIC_SLOTS]),))
        yield Finding("SlotsDiffer", checked.vm_snapshot.subject, message, HANDLER_REPAIR, fix)
        return
    entries = checked.vmi.status.interfaces or ()
    in_domain = sum(1 for entry in entries if entry.get("name") and DOMAIN in parse_tokens(entry))
    if slots.nics != in_domain:
        message = f"the count of free slots is of {slots.nics} NICs, the VMI's status lists {in_domain} in the domain"
        yield Finding("SlotsDiffer", checked.vm_snapshot.subject, message, HANDLER_REPAIR)


def replug_repair(checked: CheckedVmi, interface: str) -> str:
    """Return the repair for a NIC that no role corrects: they change nothing under a NIC that the guest uses."""
    namespace, vm = checked.vm_snapshot.namespace, checked.vm_snapshot.name
    return (
        f"unplug the interface and plug it again: hotnic removeinterface {vm} --name {interface} -n {namespace}, "
        "then hotnic addinterface"
    )
