"""Checks of a pod against its node: sandbox, multus record, links, the node's ends of veths, leases, guest devices.

Parts that are not visible are skipped here; :func:`services.cli.doctor.examine.examine` reports them.
Next: :mod:`services.cli.doctor.checks.leftovers`, the checks of what belongs to no pod.
"""

from collections.abc import Iterator

from services.cli.doctor.checks.nics import CheckedVmi, hash_of_link, listed
from services.cli.doctor.checks.objects import NETWORKS_REPAIR, replug_repair
from services.cli.doctor.fix import choose
from services.cli.doctor.snapshot import (
    AttachmentRecord,
    Finding,
    GuestDevice,
    NotVisible,
    ObservedLink,
    SandboxRecords,
)
from services.common.domain.nic import Nic

MULTUS_REPAIR = (
    "the multus daemon removes the record with the sandbox; its CNI DEL may leave resources behind until then"
)
RESTART_REPAIR = "restart the VM, which creates a new pod"
BY_HAND = "hotnic does not use it; remove it by hand"
# The kernel reports the kind `tun` for a tap, too.
_BRIDGE_KINDS, _TAP_KINDS = frozenset({"bridge"}), frozenset({"tun"})
# Where the kernel has no dummy driver, the handler creates a bridge without ports instead.
_DUMMY_KINDS = frozenset({"dummy", "bridge"})


def check_sandbox(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the container runtime has a ready sandbox for the pod."""
    if not isinstance(checked.pod_on_node, NotVisible) and checked.pod_on_node.sandbox is None:
        message = f"pod {checked.pod_subject} runs, but the container runtime has no ready sandbox for it"
        repair = "the kubelet terminates the pod; restart the VM"
        yield Finding("SandboxMissing", checked.vm_snapshot.subject, message, repair)


def check_record(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the multus daemon's record has the attachments of the network status, and no others."""
    record, pod_on_node = checked.sandbox_record, checked.pod_on_node
    if isinstance(record, NotVisible) or isinstance(pod_on_node, NotVisible) or pod_on_node.sandbox is None:
        return
    subject = checked.vm_snapshot.subject
    if record is None:
        if checked.statuses:
            message = f"pod {checked.pod_subject} has attachments, but the multus daemon has no record of its sandbox"
            repair = "restart the VM; its addresses may have to be released by hand"
            yield Finding("RecordMissing", subject, message, repair)
        return
    if record.pod_uid != checked.pod.metadata.uid or _basename(record.netns) != _basename(pod_on_node.netns):
        message = (
            f"the record of sandbox {record.sandbox} names pod {record.pod_uid} and namespace {record.netns}, "
            "not those of this pod"
        )
        yield Finding("RecordDiffers", subject, message, MULTUS_REPAIR)
    if record.deletion_requested:
        message = f"by its record, the runtime has requested DEL of sandbox {record.sandbox}, but the pod still runs"
        yield Finding("RecordDiffers", subject, message, "the multus daemon detaches all networks; restart the VM")
    yield from _check_attachments(checked, record)


def _check_attachments(checked: CheckedVmi, record: SandboxRecords) -> Iterator[Finding]:
    subject = checked.vm_snapshot.subject
    for link, status in checked.statuses.items():
        attached = record.find(link)
        about = checked.subject_of_link(link)
        if link in checked.pending_links:
            continue
        if attached is None:
            message = f"the network status has {link} on {status.name}, but the multus daemon has no record of it"
            yield Finding("AttachmentMissing", about, message, NETWORKS_REPAIR)
        elif not attached.finished:
            message = f"the network status has {link}, but the multus daemon's record has no completed ADD of it"
            yield Finding("AttachmentUnfinished", about, message, NETWORKS_REPAIR)
        elif sorted(attached.ips) != sorted(status.ips or ()):
            message = (
                f"the multus daemon's record has the addresses {listed(attached.ips)} for {link}, "
                f"the network status has {listed(status.ips or ())}"
            )
            yield Finding("AttachmentDiffers", about, message, NETWORKS_REPAIR)
    for attached in record.attached:
        if attached.link not in checked.statuses and attached.link not in checked.pending_links:
            message = (
                f"the multus daemon's record has {attached.link} on {attached.network}, the network status does not"
            )
            yield Finding("AttachmentLeftOver", subject, message, NETWORKS_REPAIR)


def check_links(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the pod has the links of every attachment, and no other links of hotnic."""
    if isinstance(checked.pod_on_node, NotVisible) or isinstance(checked.pod_on_node.links, NotVisible):
        return
    links = {link.name: link for link in checked.pod_on_node.links}
    for nic in checked.nics:
        yield from _check_pod_network(checked, nic, links)
    bridged = {nic.link for nic in checked.nics} | checked.pending_links
    for name, status in checked.statuses.items():
        if name not in bridged and name not in links:
            message = f"the network status has {name} on {status.name}, but the pod has no such link"
            yield Finding("LinkMissing", checked.vm_snapshot.subject, message, RESTART_REPAIR)
    for name, link in links.items():
        digits = hash_of_link(name)
        if digits is not None and not checked.is_known_hash(digits):
            message = f"link {name} in pod {checked.pod_subject} belongs to no interface"
            repair, fix = f"{BY_HAND} (ip link del {name})", choose.remove_link(checked, link)
            yield Finding("LinkLeftOver", checked.vm_snapshot.subject, message, repair, fix)


def _check_pod_network(checked: CheckedVmi, nic: Nic, links: dict[str, ObservedLink]) -> Iterator[Finding]:
    names, subject = nic.names, checked.subject_of(nic.name)
    repair = replug_repair(checked, nic.name)
    parts = (
        ("PodNic", names.bridged, None),
        ("Bridge", names.bridge, _BRIDGE_KINDS),
        ("Tap", names.tap, _TAP_KINDS),
        ("DummyInterface", names.pod_interface, _DUMMY_KINDS),
    )
    for part, name, kinds in parts:
        link = links.get(name)
        if link is None:
            yield Finding(f"{part}Missing", subject, f"link {name} is not in the pod", repair)
        elif kinds is not None and link.kind not in kinds:
            message = f"link {name} in the pod is a {link.kind or 'device'}, not a {' or '.join(sorted(kinds))}"
            yield Finding(f"{part}Differs", subject, message, repair)
        # As in KubeVirt, the dummy interface is never set up.
        elif part != "DummyInterface" and not link.up:
            yield Finding(f"{part}Down", subject, f"link {name} in the pod is down", repair)
    bridge, dummy = links.get(names.bridge), links.get(names.pod_interface)
    if bridge is not None:
        for part, name in (("PodNic", names.bridged), ("Tap", names.tap)):
            port = links.get(name)
            if port is not None and port.master != bridge.index:
                message = f"link {name} is not a port of bridge {names.bridge}"
                yield Finding(f"{part}OffBridge", subject, message, repair)
    if dummy is not None and nic.record is not None:
        if dummy.mac != nic.record.mac.lower():
            message = f"{names.pod_interface} has MAC {dummy.mac}, the pod NIC record has {nic.record.mac}"
            yield Finding("DummyInterfaceDiffers", subject, message, repair)
        if sorted(dummy.addresses) != sorted(nic.record.ips):
            message = (
                f"{names.pod_interface} has the addresses {listed(dummy.addresses)}, "
                f"the pod NIC record has {listed(nic.record.ips)}"
            )
            yield Finding("DummyInterfaceDiffers", subject, message, repair)


def check_veths(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the node's end of each veth is up and a port of the bridge that its plugin added it to."""
    record, pod_on_node, node = checked.sandbox_record, checked.pod_on_node, checked.node
    if (
        not isinstance(record, SandboxRecords)
        or isinstance(pod_on_node, NotVisible)
        or isinstance(pod_on_node.links, NotVisible)
        or isinstance(node, NotVisible)
        or isinstance(node.links, NotVisible)
    ):
        return
    pod_links = {link.index: link for link in pod_on_node.links}
    node_links = {link.index: link for link in node.links}
    for attached in record.attached:
        if attached.kind != "veth" or attached.link in checked.pending_links or not attached.finished:
            continue
        subject = checked.subject_of_link(attached.link)
        # By index: the link of a bridged NIC has been renamed.
        link = pod_links.get(attached.ifindex)
        if link is None or link.kind != "veth":
            message = f"the pod has no veth with index {attached.ifindex}, which was created for {attached.link}"
            yield Finding("VethMissing", subject, message, RESTART_REPAIR)
            continue
        end = node_links.get(link.peer or 0)
        if end is None or end.kind != "veth" or end.peer != link.index:
            message = f"the other end of {link.name} ({attached.link}) is not on the node"
            yield Finding("HostVethMissing", subject, message, RESTART_REPAIR)
            continue
        yield from _check_host_veth(attached, end, node_links, subject)


def _check_host_veth(
    attached: AttachmentRecord, end: ObservedLink, node_links: dict[int, ObservedLink], subject: str
) -> Iterator[Finding]:
    if not end.up:
        message = f"the node's end of {attached.link}, {end.name}, is down"
        yield Finding("HostVethDown", subject, message, f"ip link set {end.name} up")
    master = node_links.get(end.master or 0)
    if attached.bridge is not None and (master is None or master.name != attached.bridge):
        actual = f"a port of bridge {master.name}" if master is not None else "not a port of any bridge"
        message = (
            f"the node's end of {attached.link}, {end.name}, is {actual}; the plugin added it to {attached.bridge}"
        )
        yield Finding("HostVethOffBridge", subject, message, f"ip link set {end.name} master {attached.bridge}")


def check_leases(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that every address that ``host-local`` assigned has a lease, and that the sandbox has no other leases."""
    record, node = checked.sandbox_record, checked.node
    if not isinstance(record, SandboxRecords) or isinstance(node, NotVisible) or isinstance(node.leases, NotVisible):
        return
    leases = {(lease.link, lease.ip): lease for lease in node.leases if lease.container == record.sandbox}
    assigned = set()
    for attached in record.attached:
        for ip in attached.ips:
            assigned.add((attached.link, ip))
            if attached.leased and attached.link not in checked.pending_links and (attached.link, ip) not in leases:
                message = f"{attached.link} has address {ip} of {attached.network}, but host-local has no lease for it"
                repair = "the address may be assigned twice: unplug the interface and plug it again"
                subject = checked.subject_of_link(attached.link)
                yield Finding("LeaseMissing", subject, message, repair)
    for key, lease in leases.items():
        if key not in assigned and lease.link not in checked.pending_links:
            message = (
                f"host-local has a lease of {lease.ip} on network {lease.network} for {lease.link}, "
                "which does not have the address"
            )
            repair = (
                f"remove the file {lease.ip} of network {lease.network} from host-local's directory "
                "when nothing uses the address"
            )
            yield Finding("LeaseLeftOver", checked.vm_snapshot.subject, message, repair)


def check_guest_devices(checked: CheckedVmi) -> Iterator[Finding]:
    """Check that the guest holds the taps, and the domain has the devices, of the checked NICs and no others."""
    if isinstance(checked.pod_on_node, NotVisible):
        return
    taps, devices = checked.pod_on_node.taps, checked.pod_on_node.guest_devices
    if not isinstance(taps, NotVisible):
        yield from _check_taps(checked, taps)
    if not isinstance(devices, NotVisible):
        yield from _check_devices(checked, devices)


def _check_taps(checked: CheckedVmi, taps: frozenset[str]) -> Iterator[Finding]:
    for nic in checked.nics:
        if nic.names.tap not in taps:
            message = (
                f"the VMI's status has the NIC in the domain, but no process in the pod holds {nic.names.tap} open"
            )
            repair = replug_repair(checked, nic.name)
            yield Finding("TapNotHeld", checked.subject_of(nic.name), message, repair)
    for tap in sorted(taps):
        digits = hash_of_link(tap)
        if digits is not None and not checked.is_known_hash(digits):
            message = f"the guest of pod {checked.pod_subject} holds {tap} open, which belongs to no interface"
            yield Finding("GuestDeviceLeftOver", checked.vm_snapshot.subject, message, "restart the VM")


def _check_devices(checked: CheckedVmi, devices: tuple[GuestDevice, ...]) -> Iterator[Finding]:
    by_interface = {device.interface: device for device in devices}
    for nic in checked.nics:
        device, mac = by_interface.get(nic.name), str(nic.entry.get("mac") or "").lower()
        if device is None:
            message = "the VMI's status has the NIC in the domain, but the domain has no such device"
            repair = "the handler plugs it again within two minutes"
            yield Finding("GuestDeviceMissing", checked.subject_of(nic.name), message, repair)
        elif device.mac != mac:
            message = f"the guest NIC has MAC {device.mac}, the VMI's status has {mac or 'none'}"
            repair = "the handler corrects the status within two minutes"
            yield Finding("GuestDeviceDiffers", checked.subject_of(nic.name), message, repair)
    known = {interface.name for interface in checked.vmi.spec.interface_items()}
    for name in sorted(by_interface.keys() - known):
        message = f"the domain has a device of interface {name}, the spec has no such interface"
        yield Finding("GuestDeviceLeftOver", checked.subject_of(name), message, "restart the VM")


def _basename(path: str) -> str:
    """Return the last part of a path: /run and /var/run are the same directory on every node."""
    return path.rpartition("/")[2]
