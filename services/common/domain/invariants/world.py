"""What one look at VMs, their pods and their node has shown, as frozen values, and what can be said about it.

Every part that could not be looked at is :class:`NotVisible` and says why; a check that needs it then says nothing.
No I/O and no judgement here. Next: :mod:`services.common.domain.invariants.nics`, the same by NIC.
"""

from typing import TypeAlias

import msgspec

from schemas.hotplug_status import StoredEntry
from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance


class NotVisible(msgspec.Struct, frozen=True):
    """A part that could not be looked at from here, and why."""

    why: str


class SeenLink(msgspec.Struct, frozen=True):
    """A link of a network namespace.

    :ivar kind: driver kind (``veth``, ``bridge``, ``tun``, …). :ivar master: index of the bridge it is a port of.
    :ivar peer: index of a veth's other end, in whatever namespace that is.
    :ivar addresses: in CIDR form, without link-local ones.
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
    """An address that the ``host-local`` plugin keeps for a link of a sandbox.

    :ivar network: the name in its CNI configuration. :ivar container: sandbox id.
    """

    network: str
    ip: str
    container: str
    link: str


class GuestDevice(msgspec.Struct, frozen=True):
    """A NIC in a guest's domain; ``mac`` in lower case."""

    interface: str
    mac: str


class AttachmentRecord(msgspec.Struct, frozen=True):
    """One attachment in the multus daemon's record of a sandbox.

    :ivar finished: its CNI ADD is done. :ivar ips: without prefix length, as the plugin gave them.
    :ivar ifindex: of the link in the sandbox; 0 where there is none.
    :ivar bridge: of the node, when the plugin made the link a port of one. :ivar leased: whether ``host-local`` did.
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
    """The multus daemon's record of a sandbox. ``released``: the runtime has asked to undo the whole sandbox."""

    sandbox: str
    netns: str
    pod: str
    pod_uid: str
    attached: tuple[AttachmentRecord, ...] = ()
    released: bool = False

    def find(self, link: str) -> AttachmentRecord | None:
        """The attachment under a link's name."""
        return next((one for one in self.attached if one.link == link), None)


class PodOnNode(msgspec.Struct, frozen=True):
    """What the pod's own node knows of a pod.

    :ivar sandbox: id; ``None`` when the runtime has no ready one. :ivar netns: path of its network namespace.
    :ivar taps: names of the taps that processes in the pod hold open, which is how a guest uses one.
    :ivar cards: of the guest's domain, of interfaces of the spec.
    """

    sandbox: str | None
    netns: str = ""
    links: tuple[SeenLink, ...] | NotVisible = NotVisible("not looked at")
    taps: frozenset[str] | NotVisible = NotVisible("not looked at")
    cards: tuple[GuestDevice, ...] | NotVisible = NotVisible("not looked at")


class NetnsPath(msgspec.Struct, frozen=True):
    """A network namespace that stands under a path. ``sandbox``: whose it is; ``None`` when nobody's."""

    path: str
    sandbox: str | None
    links: tuple[SeenLink, ...] | NotVisible = NotVisible("not looked at")


class NodeSnapshot(msgspec.Struct, frozen=True):
    """What belongs to a node as a whole.

    :ivar sandboxes: ids of all that the runtime knows; :ivar ready: of those that run.
    :ivar links: of the node's own network namespace.
    """

    name: str
    sandboxes: frozenset[str] | NotVisible
    ready: frozenset[str] | NotVisible
    records: tuple[SandboxRecords, ...] | NotVisible
    links: tuple[SeenLink, ...] | NotVisible
    leases: tuple[IpamLease, ...] | NotVisible
    namespaces: tuple[NetnsPath, ...] | NotVisible


class VmSnapshot(msgspec.Struct, frozen=True):
    """One VM.

    :ivar inside: by the UID of a pod. :ivar hotplug_status: what the bus keeps of its ladder, by hotnic's api.
    """

    namespace: str
    name: str
    vm: VirtualMachine | NotVisible | None
    vmi: VirtualMachineInstance | None
    pods: tuple[Pod, ...] = ()
    inside: dict[str, PodOnNode | NotVisible] = {}
    hotplug_status: tuple[StoredEntry, ...] | NotVisible = NotVisible("not looked at")

    @property
    def subject(self) -> str:
        """How it is called in a report."""
        return f"{self.namespace}/{self.name}"


class Snapshot(msgspec.Struct, frozen=True):
    """One snapshot."""

    machines: tuple[VmSnapshot, ...]
    node: NodeSnapshot | NotVisible = NotVisible("not looked at")


class Finding(msgspec.Struct, frozen=True):
    """Two witnesses that contradict each other.

    :ivar code: CamelCase, stable. :ivar subject: what it is about: ``namespace/vm``, ``…/interface``, or a node.
    :ivar what: who says what, in one sentence. :ivar repair: what ends it, and who does it.
    """

    code: str
    subject: str
    what: str
    repair: str


class OperationInProgress(msgspec.Struct, frozen=True):
    """Something under way: what is said about it is expected to differ until it is over.

    :ivar since: RFC 3339; ``None`` when objects do not tell. :ivar reason: CamelCase; what it waits for.
    """

    subject: str
    what: str
    since: str | None = None
    reason: str | None = None


class NotChecked(msgspec.Struct, frozen=True):
    """A part that no check could use."""

    subject: str
    part: str
    why: str


CheckResult: TypeAlias = Finding | OperationInProgress | NotChecked


class DoctorReport(msgspec.Struct, frozen=True, rename="camel"):
    """What the checks found; ``looked_at`` counts the NICs that they compared to the end."""

    disagreements: tuple[Finding, ...]
    in_progress: tuple[OperationInProgress, ...]
    not_seen: tuple[NotChecked, ...]
    looked_at: int
