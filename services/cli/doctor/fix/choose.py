"""Decide which finding carries a change: only one whose subject nothing uses, as far as the snapshot shows.

An interface may be in use if the spec or the template has it, the VMI's status lists it, or, where the node is visible,
the pod has links of it, a process holds its tap open, or the domain has its device.
Pure. Next: :mod:`services.cli.doctor.fix.plan`.
"""

from collections.abc import Collection
from datetime import datetime

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_networks
from schemas.kubernetes.objects import ObjectMeta, Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import hotplug_mark_key, pod_nic_key_of_link, read_operation_of_link
from schemas.names import interface_hash
from services.cli.doctor.checks.nics import CheckedVmi, hash_of_link
from services.cli.doctor.fix.changes import (
    AnnotationRemoval,
    ElementRemoval,
    FixTarget,
    LeaseRemoval,
    LinkRemoval,
    RecordRemoval,
)
from services.cli.doctor.snapshot import IpamLease, NodeSnapshot, NotVisible, ObservedLink, SandboxRecords
from services.common.domain.operations import ABSENT

OPERATION_GRACE = 120.0
"""Seconds after its request in which an operation may not have reached all objects."""
SANDBOX_GRACE = 300.0
"""Seconds after the last change of a record or lease in which the runtime may not list its sandbox yet: it lists one
after CNI ADD, for which the kubelet waits up to 4 minutes."""

_LEFT_BY_A_TAP_NETWORK = frozenset({"tun", "bridge", "dummy"})
"""Kinds of links that the handler creates. A veth is the plugin's, whose DEL deletes it."""


def remove_element(checked: CheckedVmi, link: str) -> ElementRemoval | None:
    """Return the removal of an element that belongs to no interface.

    If it is attached, networks detaches it then. Whether a guest uses an attachment is visible on its node only.

    :param link: a hashed pod interface.
    """
    digits = link.removeprefix("pod")
    vm = checked.vm_snapshot.vm
    if isinstance(vm, NotVisible) or _shifts_names(checked.pod, link):
        # A template that cannot be read may have the interface.
        return None
    unused = _is_unused_attachment if link in checked.statuses else _is_not_attached
    if not unused(checked, digits):
        return None
    annotations = checked.pod.metadata.annotations
    expected = tuple((key, annotations.get(key)) for key in (NETWORKS, NETWORK_STATUS))
    holders = (checked.pod, checked.vmi, *((vm,) if vm is not None else ()))
    grace_end = max(_grace_end(one.metadata.annotations, digits) for one in holders)
    return ElementRemoval(fix_target("Pod", checked.pod.metadata), link, expected, grace_end)


def remove_pod_annotation(checked: CheckedVmi, key: str) -> AnnotationRemoval | None:
    """Return the removal of a pod NIC record or hot-plug mark that belongs to no attachment."""
    for digits in _digits_in_use(checked):
        if key in (pod_nic_key_of_link(f"pod{digits}"), hotplug_mark_key(f"pod{digits}")):
            return None
    annotations = checked.pod.metadata.annotations
    expected = tuple((one, annotations.get(one)) for one in (key, NETWORKS, NETWORK_STATUS))
    return AnnotationRemoval(fix_target("Pod", checked.pod.metadata), key, expected)


def remove_operation(
    holder: VirtualMachine | VirtualMachineInstance | Pod, key: str, in_use: Collection[str]
) -> AnnotationRemoval | None:
    """Return the removal of an operation that belongs to no interface.

    :param in_use: hashes of the interfaces that may be in use.
    """
    digits = key.rpartition(".")[2]
    if digits in in_use:
        return None
    annotations = holder.metadata.annotations
    target = fix_target(type(holder).__name__, holder.metadata)
    return AnnotationRemoval(target, key, ((key, annotations[key]),), _grace_end(annotations, digits))


def remove_link(checked: CheckedVmi, link: ObservedLink) -> LinkRemoval | None:
    """Return the removal of a link of a tap network that belongs to no interface and that no guest uses."""
    digits, on_node, record = hash_of_link(link.name), checked.pod_on_node, checked.sandbox_record
    if digits is None or isinstance(on_node, NotVisible) or isinstance(record, NotVisible):
        return None
    if isinstance(on_node.links, NotVisible) or isinstance(on_node.taps, NotVisible):
        return None
    names = {one.name for one in on_node.links}
    attached = f"{digits}-nic" in names or (record is not None and record.find(f"pod{digits}") is not None)
    devices = () if isinstance(on_node.guest_devices, NotVisible) else on_node.guest_devices
    guest_has_it = f"tap{digits}" in on_node.taps or any(interface_hash(one.interface) == digits for one in devices)
    if attached or guest_has_it or digits in _digits_in_objects(checked) or link.kind not in _LEFT_BY_A_TAP_NETWORK:
        return None
    return LinkRemoval(checked.pod_subject, on_node.netns, link.index, link.name, link.kind, f"tap{digits}")


def remove_record(node: NodeSnapshot, record: SandboxRecords) -> RecordRemoval | None:
    """Return the removal of the record of a sandbox that is gone, where no daemon of hotnic is left to do it."""
    if node.has_multus or not record.files or _has_netns(node, record.sandbox):
        return None
    reserved = tuple(
        f"{ip} of {one.network}" for one in record.attached if one.network and not one.leased for ip in one.ips
    )
    return RecordRemoval(
        record.sandbox, record.pod, record.files, record.changed_at, reserved, record.changed_at + SANDBOX_GRACE
    )


def remove_lease(node: NodeSnapshot, lease: IpamLease) -> LeaseRemoval | None:
    """Return the removal of a lease of a sandbox that is gone, if no link on the node has the address."""
    # The daemon runs DEL for a sandbox with a record, which frees the lease.
    recorded = isinstance(node.records, NotVisible) or any(one.sandbox == lease.container for one in node.records)
    if (
        not lease.file
        or (node.has_multus and recorded)
        or isinstance(node.addresses, NotVisible)
        or lease.ip in node.addresses
        or _has_netns(node, lease.container)
    ):
        return None
    return LeaseRemoval(
        lease.network,
        lease.ip,
        lease.file,
        lease.container,
        lease.link,
        lease.changed_at,
        lease.changed_at + SANDBOX_GRACE,
    )


def fix_target(kind: str, metadata: ObjectMeta) -> FixTarget:
    """Return the reference to an object."""
    return FixTarget(kind, metadata.namespace, metadata.name, metadata.uid)


def hashes_in_status(vmi: VirtualMachineInstance) -> set[str]:
    """Return the hashes of the interfaces that the VMI's status lists."""
    return {interface_hash(str(entry["name"])) for entry in vmi.status.interfaces or () if entry.get("name")}


def _digits_in_objects(checked: CheckedVmi) -> frozenset[str]:
    """Return the hashes of the interfaces of spec, template and status."""
    vm = checked.vm_snapshot.vm
    found = checked.spec_hashes | hashes_in_status(checked.vmi)
    if isinstance(vm, VirtualMachine):
        found |= {interface_hash(one.name) for one in vm.spec.template.spec.interface_items() if one.state != ABSENT}
    return found


def _digits_in_use(checked: CheckedVmi) -> frozenset[str]:
    """Return the hashes of the interfaces that may be in use, by the objects and by what is visible of the node."""
    digits, on_node = _digits_in_objects(checked), checked.pod_on_node
    if not isinstance(on_node, NotVisible):
        links = () if isinstance(on_node.links, NotVisible) else [one.name for one in on_node.links]
        taps = () if isinstance(on_node.taps, NotVisible) else on_node.taps
        digits |= {found for name in (*links, *taps) if (found := hash_of_link(name)) is not None}
        devices = () if isinstance(on_node.guest_devices, NotVisible) else on_node.guest_devices
        digits |= {interface_hash(device.interface) for device in devices}
    return digits


def _is_not_attached(checked: CheckedVmi, digits: str) -> bool:
    record = checked.sandbox_record
    being_attached = isinstance(record, SandboxRecords) and record.find(f"pod{digits}") is not None
    return not being_attached and digits not in _digits_in_use(checked)


def _is_unused_attachment(checked: CheckedVmi, digits: str) -> bool:
    """Return whether the pod has the plugin's link alone, without a tap network between it and a guest."""
    on_node = checked.pod_on_node
    if isinstance(on_node, NotVisible) or isinstance(on_node.links, NotVisible) or isinstance(on_node.taps, NotVisible):
        return False
    links = [(one.name, one.kind) for one in on_node.links if hash_of_link(one.name) == digits]
    devices = () if isinstance(on_node.guest_devices, NotVisible) else on_node.guest_devices
    guest_has_it = f"tap{digits}" in on_node.taps or any(interface_hash(one.interface) == digits for one in devices)
    # Beside a tap network the link of this name is a dummy interface.
    plain = all(name == f"pod{digits}" and kind not in _LEFT_BY_A_TAP_NETWORK for name, kind in links)
    return plain and not guest_has_it and digits not in _digits_in_objects(checked)


def _shifts_names(pod: Pod, link: str) -> bool:
    """Return whether an element after this one has no interface name: it is named after its position in the list."""
    elements = [one.requested_interface for one in parse_networks(pod.metadata.annotations.get(NETWORKS))]
    return None in elements[elements.index(link) + 1 :]


def _has_netns(node: NodeSnapshot, sandbox: str) -> bool:
    """Return whether the network namespace of a sandbox may exist."""
    return isinstance(node.namespaces, NotVisible) or any(one.sandbox == sandbox for one in node.namespaces)


def _grace_end(annotations: dict[str, str], digits: str) -> float:
    """Return the end of the grace period of an operation, in seconds since the epoch; 0 if it has no time."""
    operation = read_operation_of_link(annotations, f"pod{digits}")
    if operation is None:
        return 0.0
    try:
        # A time without a zone in the year 1 has no time stamp.
        return datetime.fromisoformat(operation.requested_at or "").timestamp() + OPERATION_GRACE
    except (ValueError, OverflowError):
        return 0.0
