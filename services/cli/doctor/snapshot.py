"""The types of a snapshot of VMs, their pods and their node, and of what the checks report about it.

All values are immutable. A part that could not be read is :class:`NotVisible` with the cause; checks skip it.
Pure. Next: :mod:`services.cli.doctor.collect.objects`, which takes a snapshot.
"""

from typing import TypeAlias

import msgspec

from schemas.bus.hotplug_status import StoredEntry
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.cli.doctor.fix.changes import Fix
from services.common.bus.settings import StoreUsage, StreamUsage
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Surroundings


class NotVisible(msgspec.Struct, frozen=True):
    """A part of the snapshot that could not be read.

    :ivar message: the cause.
    """

    message: str


class ObservedLink(msgspec.Struct, frozen=True):
    """A link of a network namespace.

    :ivar kind: link type of the kernel (``veth``, ``bridge``, ``tun``, …).
    :ivar master: index of the bridge that the link is a port of.
    :ivar peer: index of a veth's other end, in the namespace of that end.
    :ivar addresses: in CIDR form, without link-local addresses.
    """

    index: int
    name: str
    kind: str | None = None
    mac: str = ""
    up: bool = False
    master: int | None = None
    peer: int | None = None
    addresses: tuple[str, ...] = ()


class IpamLease(msgspec.Struct, frozen=True):
    """An address that the ``host-local`` plugin has reserved for a link of a sandbox.

    :ivar network: name in the network's CNI configuration.
    :ivar container: sandbox id.
    :ivar file: its path on the node.
    :ivar changed_at: when the file was last written, in seconds since the epoch.
    """

    network: str
    ip: str
    container: str
    link: str
    file: str = ""
    changed_at: float = 0.0


class GuestDevice(msgspec.Struct, frozen=True):
    """A guest NIC in a domain.

    :ivar mac: in lower case.
    """

    interface: str
    mac: str


class AttachmentRecord(msgspec.Struct, frozen=True):
    """One attachment in the multus daemon's record of a sandbox.

    :ivar finished: whether its CNI ADD has completed.
    :ivar ips: without prefix length, as in the CNI result.
    :ivar ifindex: index of the link in the sandbox; 0 where there is none.
    :ivar bridge: the node's bridge that the plugin added the link to; ``None`` for any other plugin.
    :ivar leased: whether ``host-local`` assigned the addresses.
    """

    link: str
    network: str
    finished: bool = True
    ips: tuple[str, ...] = ()
    mac: str = ""
    ifindex: int = 0
    kind: str | None = None
    bridge: str | None = None
    leased: bool = False


class SandboxRecords(msgspec.Struct, frozen=True):
    """The multus daemon's record of a sandbox.

    :ivar deletion_requested: whether the container runtime has requested CNI DEL for the whole sandbox.
    :ivar files: the files that hold the record.
    :ivar changed_at: when they were last written, in seconds since the epoch.
    """

    sandbox: str
    netns: str
    pod: str
    pod_uid: str
    attached: tuple[AttachmentRecord, ...] = ()
    deletion_requested: bool = False
    files: tuple[str, ...] = ()
    changed_at: float = 0.0

    def find(self, link: str) -> AttachmentRecord | None:
        """Return the attachment with this link name."""
        return next((one for one in self.attached if one.link == link), None)


class PodOnNode(msgspec.Struct, frozen=True):
    """The state of a pod on its node.

    :ivar sandbox: id; ``None`` when the runtime has no ready sandbox.
    :ivar netns: path of the pod's network namespace.
    :ivar taps: names of the taps that processes in the pod hold open; a guest uses a tap by holding it open.
    :ivar guest_devices: those guest NICs that are named after interfaces of the spec.
    """

    sandbox: str | None
    netns: str = ""
    links: tuple[ObservedLink, ...] | NotVisible = NotVisible("not read")
    taps: frozenset[str] | NotVisible = NotVisible("not read")
    guest_devices: tuple[GuestDevice, ...] | NotVisible = NotVisible("not read")


class NetnsPath(msgspec.Struct, frozen=True):
    """A network namespace that is mounted at a path.

    :ivar sandbox: id of its owner; ``None`` when no known sandbox owns it.
    """

    path: str
    sandbox: str | None
    links: tuple[ObservedLink, ...] | NotVisible = NotVisible("not read")


class NodeSnapshot(msgspec.Struct, frozen=True):
    """The state of a node.

    :ivar sandboxes: ids of all sandboxes that the container runtime knows.
    :ivar ready: ids of those that run.
    :ivar links: links of the node's own network namespace.
    :ivar has_multus: whether hotnic's multus daemon runs here, or may run again: its shim is installed, and no other
        daemon serves its socket. Read only if a record or a lease belongs to no sandbox.
    :ivar addresses: the addresses of all links in all network namespaces, without prefix length. Read only if a lease
        belongs to no sandbox.
    """

    name: str
    sandboxes: frozenset[str] | NotVisible
    ready: frozenset[str] | NotVisible
    records: tuple[SandboxRecords, ...] | NotVisible
    links: tuple[ObservedLink, ...] | NotVisible
    leases: tuple[IpamLease, ...] | NotVisible
    namespaces: tuple[NetnsPath, ...] | NotVisible
    has_multus: bool = True
    addresses: frozenset[str] | NotVisible = NotVisible("not read")


class VmSnapshot(msgspec.Struct, frozen=True):
    """The state of one VM.

    :ivar pods_on_node: by pod UID.
    :ivar hotplug_status: the entries of the VM in the key-value bucket, as hotnic's api returns them.
    :ivar beside: what the KubeVirt that owns the VM can do; ``None`` where hotnic owns it.
    :ivar around: what stands around the VM beside KubeVirt.
    """

    namespace: str
    name: str
    vm: VirtualMachine | NotVisible | None
    vmi: VirtualMachineInstance | None
    pods: tuple[Pod, ...] = ()
    pods_on_node: dict[str, PodOnNode | NotVisible] = {}
    hotplug_status: tuple[StoredEntry, ...] | NotVisible = NotVisible("not read")
    beside: Capabilities | None = None
    around: Surroundings = NOTHING_READ

    @property
    def subject(self) -> str:
        """The VM's name in a report."""
        return f"{self.namespace}/{self.name}"


class BusSnapshot(msgspec.Struct, frozen=True):
    """The usage of hotnic's streams, and of the stores that hold them, as far as those can be read."""

    streams: tuple[StreamUsage, ...] = ()
    stores: tuple[StoreUsage | NotVisible, ...] = ()


class Snapshot(msgspec.Struct, frozen=True):
    """The state of some VMs, of the node that the snapshot was taken on, and of the streams of the bus.

    :ivar bus: empty if no address of NATS is set.
    """

    vms: tuple[VmSnapshot, ...]
    node: NodeSnapshot | NotVisible = NotVisible("not read")
    bus: BusSnapshot | NotVisible = BusSnapshot()


class Finding(msgspec.Struct, frozen=True):
    """A failed consistency check.

    :ivar code: CamelCase, stable.
    :ivar subject: ``namespace/vm``, ``namespace/vm/interface``, a node, or a stream of the bus.
    :ivar message: what differs, in one sentence.
    :ivar repair: what resolves it, and who does that.
    :ivar fix: the change that ``hotnic doctor --fix`` makes; ``None`` if the subject may be in use, or if it takes more
        than removing it.
    """

    code: str
    subject: str
    message: str
    repair: str
    fix: Fix | None = None


class OperationInProgress(msgspec.Struct, frozen=True):
    """A change in progress; its objects may differ until it completes, so they are not checked.

    :ivar since: RFC 3339; ``None`` when the objects have no time.
    :ivar reason: CamelCase; what it waits for.
    """

    subject: str
    message: str
    since: str | None = None
    reason: str | None = None


class NotChecked(msgspec.Struct, frozen=True):
    """A part of the snapshot that was not checked.

    :ivar message: the cause.
    """

    subject: str
    part: str
    message: str


CheckResult: TypeAlias = Finding | OperationInProgress | NotChecked


class DoctorReport(msgspec.Struct, frozen=True, rename="camel"):
    """The result of all checks.

    :ivar checked_nics: number of NICs that all checks were run for.
    """

    findings: tuple[Finding, ...]
    in_progress: tuple[OperationInProgress, ...]
    not_checked: tuple[NotChecked, ...]
    checked_nics: int
