"""What one look at VMs, their pods and their node has shown, as frozen values, and what can be said about it.

Every part that could not be looked at is :class:`Unknown` and says why; a check that needs it then says nothing.
No I/O and no judgement here. Next: :mod:`services.common.domain.invariants.nics`, the same by NIC.
"""

from typing import TypeAlias

import msgspec

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.ladder import Kept


class Unknown(msgspec.Struct, frozen=True):
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


class Lease(msgspec.Struct, frozen=True):
    """An address that the ``host-local`` plugin keeps for a link of a sandbox.

    :ivar network: the name in its CNI configuration. :ivar container: sandbox id.
    """

    network: str
    ip: str
    container: str
    link: str


class Card(msgspec.Struct, frozen=True):
    """A NIC in a guest's domain; ``mac`` in lower case."""

    interface: str
    mac: str


class Attached(msgspec.Struct, frozen=True):
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


class Record(msgspec.Struct, frozen=True):
    """The multus daemon's record of a sandbox. ``released``: the runtime has asked to undo the whole sandbox."""

    sandbox: str
    netns: str
    pod: str
    pod_uid: str
    attached: tuple[Attached, ...] = ()
    released: bool = False

    def find(self, link: str) -> Attached | None:
        """The attachment under a link's name."""
        return next((one for one in self.attached if one.link == link), None)


class Inside(msgspec.Struct, frozen=True):
    """What the pod's own node knows of a pod.

    :ivar sandbox: id; ``None`` when the runtime has no ready one. :ivar netns: path of its network namespace.
    :ivar taps: names of the taps that processes in the pod hold open, which is how a guest uses one.
    :ivar cards: of the guest's domain, of interfaces of the spec.
    """

    sandbox: str | None
    netns: str = ""
    links: tuple[SeenLink, ...] | Unknown = Unknown("not looked at")
    taps: frozenset[str] | Unknown = Unknown("not looked at")
    cards: tuple[Card, ...] | Unknown = Unknown("not looked at")


class Namespace(msgspec.Struct, frozen=True):
    """A network namespace that stands under a path. ``sandbox``: whose it is; ``None`` when nobody's."""

    path: str
    sandbox: str | None
    links: tuple[SeenLink, ...] | Unknown = Unknown("not looked at")


class Node(msgspec.Struct, frozen=True):
    """What belongs to a node as a whole.

    :ivar sandboxes: ids of all that the runtime knows; :ivar ready: of those that run.
    :ivar links: of the node's own network namespace.
    """

    name: str
    sandboxes: frozenset[str] | Unknown
    ready: frozenset[str] | Unknown
    records: tuple[Record, ...] | Unknown
    links: tuple[SeenLink, ...] | Unknown
    leases: tuple[Lease, ...] | Unknown
    namespaces: tuple[Namespace, ...] | Unknown


class Machine(msgspec.Struct, frozen=True):
    """One VM.

    :ivar inside: by the UID of a pod. :ivar ladder: what the bus keeps of its ladder, by hotnic's api.
    """

    namespace: str
    name: str
    vm: VirtualMachine | Unknown | None
    vmi: VirtualMachineInstance | None
    pods: tuple[Pod, ...] = ()
    inside: dict[str, Inside | Unknown] = {}
    ladder: tuple[Kept, ...] | Unknown = Unknown("not looked at")

    @property
    def subject(self) -> str:
        """How it is called in a report."""
        return f"{self.namespace}/{self.name}"


class World(msgspec.Struct, frozen=True):
    """One snapshot."""

    machines: tuple[Machine, ...]
    node: Node | Unknown = Unknown("not looked at")


class Disagreement(msgspec.Struct, frozen=True):
    """Two witnesses that contradict each other.

    :ivar code: CamelCase, stable. :ivar subject: what it is about: ``namespace/vm``, ``…/interface``, or a node.
    :ivar what: who says what, in one sentence. :ivar repair: what ends it, and who does it.
    """

    code: str
    subject: str
    what: str
    repair: str


class InProgress(msgspec.Struct, frozen=True):
    """Something under way: what is said about it is expected to differ until it is over.

    :ivar since: RFC 3339; ``None`` when objects do not tell. :ivar reason: CamelCase; what it waits for.
    """

    subject: str
    what: str
    since: str | None = None
    reason: str | None = None


class NotSeen(msgspec.Struct, frozen=True):
    """A part that no check could use."""

    subject: str
    part: str
    why: str


Finding: TypeAlias = Disagreement | InProgress | NotSeen


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """What the checks found; ``looked_at`` counts the NICs that they compared to the end."""

    disagreements: tuple[Disagreement, ...]
    in_progress: tuple[InProgress, ...]
    not_seen: tuple[NotSeen, ...]
    looked_at: int
