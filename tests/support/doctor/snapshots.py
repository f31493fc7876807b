"""Builds consistent snapshots of any size: a cluster in which no operation is in progress.

The objects have the form in which the roles write them. Next: `tests.support.doctor.snapshot_changes`, which break one
part.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.bus.hotplug_status import StageHistory, StageReached, StatusEntry, StoredEntry
from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    encode_network_status,
    encode_networks,
)
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    PodNic,
    encode_annotation,
    operation_key,
    pod_nic_key,
)
from schemas.names import interface_hash, pod_interface
from schemas.stages import OperationKind, Stage
from services.cli.doctor.snapshot import (
    AttachmentRecord,
    GuestDevice,
    IpamLease,
    NetnsPath,
    NodeSnapshot,
    ObservedLink,
    PodOnNode,
    SandboxRecords,
    Snapshot,
    VmSnapshot,
)
from services.common.domain.nic import parse_nics
from services.common.domain.operations import find_acting_pod
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.status.stage_history import with_history

NODE = "node1"
NAD = "bridge-net"
NODE_BRIDGE = "br1"

PLUGGED = StageHistory({Stage.GUEST_ATTACHED: StageReached("2026-01-01T00:00:01.000Z")})

Names = Sequence[Sequence[str]]
"""The names of the secondary interfaces of each VM."""


class _Counter:
    """Numbers for addresses and link indices, each used once."""

    def __init__(self) -> None:
        self._next = 10

    def __call__(self) -> int:
        self._next += 1
        return self._next


def mac(number: int) -> str:
    """Return a unicast MAC for a number."""
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


def build_snapshot(names: Names) -> Snapshot:
    """Return a consistent snapshot of one node with these VMs."""
    count = _Counter()
    bridge = ObservedLink(index=2, name=NODE_BRIDGE, kind="bridge", mac=mac(2), up=True)
    host: list[ObservedLink] = [ObservedLink(index=1, name="lo", up=True), bridge]
    vms, records, leases, namespaces = [], [], [], []
    for position, interfaces in enumerate(names):
        built = _VmBuilder(f"vm{position}", list(interfaces), count)
        vms.append(built.vm_snapshot)
        records.append(built.record)
        leases += built.leases
        host += built.host
        namespaces.append(NetnsPath(f"/run/netns/cni-{position}", built.sandbox, built.links))
    sandboxes = frozenset(record.sandbox for record in records)
    node = NodeSnapshot(NODE, sandboxes, sandboxes, tuple(records), tuple(host), tuple(leases), tuple(namespaces))
    return Snapshot(tuple(vms), node)


def with_derived_status(vm_snapshot: VmSnapshot) -> VmSnapshot:
    """Return the VM with the stored hot-plug status that the controller would write for its objects.

    A VM with malformed objects is returned unchanged: the controller cannot derive a status from them.
    """
    assert vm_snapshot.vmi is not None
    assert vm_snapshot.vm is None or isinstance(vm_snapshot.vm, VirtualMachine)
    pod = find_acting_pod(vm_snapshot.vmi, vm_snapshot.pods)
    try:
        nic_statuses = derive_statuses(parse_nics(vm_snapshot.vmi, pod), vm_snapshot.vm)
    except ValueError:
        return vm_snapshot
    vmi_uid, pod_uid = vm_snapshot.vmi.metadata.uid, pod.metadata.uid if pod is not None else ""
    entries = [
        StoredEntry(
            interface_hash(nic_status.interface),
            StatusEntry(vmi_uid, pod_uid, with_history(nic_status, PLUGGED), PLUGGED),
        )
        for nic_status in nic_statuses
    ]
    return msgspec.structs.replace(vm_snapshot, hotplug_status=tuple(entries))


class _VmBuilder:
    """Builds one VM and its parts of the node."""

    def __init__(self, name: str, interfaces: list[str], count: _Counter) -> None:
        self.sandbox = f"sandbox-of-{name}"
        self.leases: list[IpamLease] = []
        self.host: list[ObservedLink] = []
        self._links: list[ObservedLink] = [ObservedLink(index=1, name="lo", up=True)]
        self._index = 1
        self._attached: list[AttachmentRecord] = []
        self._statuses: list[NetworkStatus] = []
        self._elements: list[NetworkSelectionElement] = []
        pod_uid, vmi_uid = f"pod-uid-{name}", f"vmi-uid-{name}"
        pod_annotations: dict[str, str] = {}
        vmi_annotations: dict[str, str] = {}
        entries: list[dict[str, Any]] = [
            {"name": "default", "mac": mac(count()), "infoSource": "domain, guest-agent"},
        ]
        devices = [GuestDevice("default", entries[0]["mac"])]
        self._attach("eth0", "cluster", count, default=True)
        for interface in interfaces:
            link = pod_interface(interface)
            status = self._attach(link, f"default/{NAD}", count)
            self._elements.append(NetworkSelectionElement(name=NAD, namespace="default", interface=link))
            assert status.mac is not None
            assert status.ips is not None
            self._set_up_pod_network(interface, status)
            operation = Operation(
                f"op-{name}-{interface}", OperationKind.PLUG, interface, requested_at="2026-01-01T00:00:00Z"
            )
            record = PodNic(pod_uid, self.sandbox, link, status.mac, 1500, tuple(f"{ip}/24" for ip in status.ips))
            vmi_annotations[operation_key(interface)] = pod_annotations[operation_key(interface)] = encode_annotation(
                operation
            )
            pod_annotations[pod_nic_key(interface)] = encode_annotation(record)
            entries.append(
                {
                    "name": interface,
                    "mac": status.mac,
                    "podInterfaceName": link,
                    "infoSource": "domain, guest-agent, multus-status",
                }
            )
            devices.append(GuestDevice(interface, status.mac))
        pod_annotations[NETWORKS] = encode_networks(self._elements)
        pod_annotations[NETWORK_STATUS] = encode_network_status(self._statuses)
        vmi_annotations[NIC_SLOTS] = encode_annotation(NicSlots(free=3, nics=len(devices), pod_uid=pod_uid))
        spec: dict[str, Any] = {
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}]}},
            "networks": [{"name": "default", "pod": {}}],
        }
        spec["domain"]["devices"]["interfaces"] += [{"name": name, "bridge": {}} for name in interfaces]
        spec["networks"] += [{"name": name, "multus": {"networkName": NAD}} for name in interfaces]
        vm = {
            "metadata": {"name": name, "namespace": "default", "uid": f"vm-uid-{name}"},
            "spec": {"template": {"spec": spec}},
        }
        owner = {"apiVersion": "kubevirt.io/v1", "controller": True, "name": name}
        vmi = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": vmi_uid,
                "annotations": vmi_annotations,
                "ownerReferences": [{**owner, "kind": "VirtualMachine", "uid": f"vm-uid-{name}"}],
            },
            "spec": spec,
            "status": {"phase": "Running", "nodeName": NODE, "activePods": {pod_uid: NODE}, "interfaces": entries},
        }
        pod = {
            "metadata": {
                "name": f"virt-launcher-{name}-abcde",
                "namespace": "default",
                "uid": pod_uid,
                "annotations": pod_annotations,
                "labels": {"kubevirt.io/created-by": vmi_uid},
                "ownerReferences": [{**owner, "kind": "VirtualMachineInstance", "uid": vmi_uid}],
            },
            "spec": {"nodeName": NODE},
            "status": {"phase": "Running"},
        }
        netns = f"/var/run/netns/cni-{name}"
        taps = frozenset(f"tap{interface_hash(interface)}" for interface in interfaces)
        self.links = tuple(self._links)
        self.record = SandboxRecords(
            self.sandbox, netns, f"default/virt-launcher-{name}-abcde", pod_uid, tuple(self._attached)
        )
        self.vm_snapshot = with_derived_status(
            VmSnapshot(
                "default",
                name,
                msgspec.convert(vm, VirtualMachine),
                msgspec.convert(vmi, VirtualMachineInstance),
                (msgspec.convert(pod, Pod),),
                {pod_uid: PodOnNode(self.sandbox, netns, self.links, taps, tuple(devices))},
            )
        )

    def _add(self, name: str, kind: str, **fields: Any) -> ObservedLink:
        self._index += 1
        link = ObservedLink(index=self._index, name=name, kind=kind, **fields)
        self._links.append(link)
        return link

    def _attach(self, link: str, network: str, count: _Counter, *, default: bool = False) -> NetworkStatus:
        number = count()
        ip, address = f"10.0.{number >> 8}.{number & 255}", mac(number)
        outer = ObservedLink(
            index=number, name=f"veth{number:08x}", kind="veth", up=True, master=2, peer=self._index + 1
        )
        inner = self._add(link, "veth", mac=address, up=True, peer=number, addresses=(f"{ip}/24",))
        self.host.append(outer)
        self.leases.append(IpamLease(network.rpartition("/")[2], ip, self.sandbox, link))
        self._attached.append(
            AttachmentRecord(link, network, True, (ip,), address, inner.index, "veth", bridge=NODE_BRIDGE, leased=True)
        )
        status = NetworkStatus(name=network, interface=link, ips=[ip], mac=address, default=default)
        self._statuses.append(status)
        return status

    def _set_up_pod_network(self, interface: str, status: NetworkStatus) -> None:
        digits = interface_hash(interface)
        link_in_pod = self._links.pop()
        bridge = self._add(f"k6t-{digits}", "bridge", mac=mac(1), up=True)
        self._links.append(
            msgspec.structs.replace(link_in_pod, name=f"{digits}-nic", mac=mac(1), master=bridge.index, addresses=())
        )
        self._add(f"tap{digits}", "tun", mac=mac(3), up=True, master=bridge.index)
        self._add(f"pod{digits}", "dummy", mac=status.mac, addresses=link_in_pod.addresses)
