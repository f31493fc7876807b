"""What to attach to a pod and what to detach: pure.

The networks annotation says what the pod should have; network-status and, where the multus daemon keeps one, the record
of its sandbox say what it has. They are matched by ``namespace/name/interface``; then what was asked when an attachment
was made is compared with what is asked now. The cluster network, the node's default networks and everything unknown are
left alone. What a pod has is read in :mod:`services.networks.current`. Next: :mod:`services.networks.apply`.
"""

import msgspec

from schemas.events import ObjectRef
from schemas.kube import Pod
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    parse_network_status,
    parse_networks,
)
from schemas.operations import Operation, derived_id, is_hashed, is_operation_key, operation_of_link
from schemas.stages import OperationKind
from services.networks import current, messages
from services.networks.current import Known, Match, match

VMI_KIND = "VirtualMachineInstance"


class Isolation(msgspec.Struct, frozen=True):
    """Namespace isolation, as multus keeps it when a pod is made.

    :ivar shared: the namespaces whose networks every pod may use.
    """

    on: bool = False
    shared: frozenset[str] = frozenset({"default"})

    def allows(self, pod: str, network: str) -> bool:
        """Whether a pod of one namespace may use a network of another."""
        return not self.on or pod == network or network in self.shared


class Observed(msgspec.Struct, frozen=True):
    """One pod, the node this process works for, and what is known of the pod's attachments beside its annotations."""

    pod: Pod
    node: str
    known: Known = Known()
    isolation: Isolation = Isolation()


class Attach(msgspec.Struct, frozen=True):
    """CNI ADD, then an entry in network-status.

    :ivar namespace: of the NAD. :ivar link: the interface name asked for.
    :ivar anew: it is there, made from other wishes: DEL before.
    """

    element: NetworkSelectionElement
    namespace: str
    link: str
    operation: Operation
    anew: bool = False

    @property
    def network(self) -> str:
        """How network-status calls the network."""
        return f"{self.namespace}/{self.element.name}"


class Detach(msgspec.Struct, frozen=True):
    """CNI DEL, then the entry leaves network-status."""

    namespace: str
    name: str
    link: str
    operation: Operation

    @property
    def network(self) -> str:
        """How network-status calls the network."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Report(msgspec.Struct, frozen=True):
    """Something in the annotations that nobody but their author can put right: an Event, once."""

    reason: str
    message: str
    about: str
    """Sets this report apart from others of the same reason."""


Action = Attach | Detach | Report


def plan(seen: Observed) -> list[Action]:
    """Decide what to do for a pod, in the order it is to be done; nothing to do is ``[]``."""
    pod = seen.pod
    if not acts(pod, seen.node):
        return []
    if pod.spec.host_network:
        if not pod.metadata.annotations.get(NETWORKS):
            return []
        return [Report(messages.REJECTED, messages.host_network(pod), "host-network")]
    read = _read(pod)
    if isinstance(read, Report):
        return [read]
    return _difference(seen, match(pod, *read, seen.known))


def asks_for_record(seen: Observed, compared: str | None) -> bool:
    """Whether the record of the pod's sandbox could change the plan.

    Annotations and marks say enough of what this role has made itself; the record is asked of what it has not.

    :param compared: the networks annotation that was compared with the record before; ``None``: none was yet.
    """
    pod = seen.pod
    if not acts(pod, seen.node) or pod.spec.host_network:
        return False
    read = _read(pod)
    if isinstance(read, Report):
        return False
    text = pod.metadata.annotations.get(NETWORKS) or ""
    if compared is None:
        # An attachment of an earlier process may never have been written down, and be unwanted by now.
        unwritten = any(is_operation_key(key) for key in pod.metadata.annotations)
        return bool(text) or unwritten or any(not status.default for status in read[1])
    found = match(pod, *read, seen.known)
    if found.unnamed:
        return True
    return text != compared and (
        any(current.asked_of(pod, link, seen.known) is None for _, _, link in found.kept)
        or any(current.of_unknown_origin(pod, status) for status in found.unmatched)
    )


def acts(pod: Pod, node: str) -> bool:
    """Whether attachments of this pod may change now: it runs on this node and does not go away."""
    return pod.spec.node_name == node and pod.metadata.deletion_timestamp is None and pod.status.phase == "Running"


def vmi_of(pod: Pod) -> ObjectRef | None:
    """The VMI that owns a pod; ``None`` for an ordinary pod."""
    owner = next((o for o in pod.metadata.owner_references if o.kind == VMI_KIND), None)
    return ObjectRef(pod.metadata.namespace, owner.name, owner.uid) if owner else None


def _read(pod: Pod) -> tuple[list[NetworkSelectionElement], list[NetworkStatus]] | Report:
    annotations = pod.metadata.annotations
    at = NETWORKS
    try:
        wanted = parse_networks(annotations.get(NETWORKS))
        at = NETWORK_STATUS
        return wanted, parse_network_status(annotations.get(NETWORK_STATUS))
    except ValueError as error:
        return Report(messages.UNREADABLE, messages.unreadable(pod, at, error), at)


def _difference(seen: Observed, found: Match) -> list[Action]:
    pod, known = seen.pod, seen.known
    reports = [
        Report(messages.REJECTED, messages.named_twice(pod, element, link), f"{element.name}@{link}")
        for element, link in found.repeated
    ]
    missing: list[Attach] = []
    for element, namespace, link in (*found.missing, *found.unnamed):
        if seen.isolation.allows(pod.metadata.namespace, namespace):
            # Made, perhaps, and never written down; if so, from the same wishes or from others.
            before = current.asked_of(pod, link, known) if known.find(link) else None
            other = before is not None and before != current.asked_by(element)
            missing.append(Attach(element, namespace, link, operation(pod, link, OperationKind.PLUG), anew=other))
        else:
            message = messages.isolated(pod, element, namespace, link)
            reports.append(Report(messages.REJECTED, message, f"{namespace}/{element.name}@{link}"))
    anew: list[Attach] = []
    for element, namespace, link in found.kept:
        asked = current.asked_of(pod, link, known)
        if asked is None or asked == current.asked_by(element):
            continue
        if known.record is None and is_hashed(link):
            # Nobody would say whether a guest is using it, and DEL would tear it out.
            message = messages.change_rejected(pod, element, link, messages.NO_RECORD)
            reports.append(Report(messages.CHANGE_REJECTED, message, f"{link} {current.asked_by(element)}"))
        else:
            anew.append(Attach(element, namespace, link, operation(pod, link, OperationKind.PLUG), anew=True))
    taken = {status.interface for status in found.present}
    taken |= {one.interface for one in known.attachments if one.owner not in current.NAMED_BY_THE_POD}
    return [*reports, *anew, *_ordered(pod, missing, _removable(pod, found, known), taken)]


def _removable(pod: Pod, found: Match, known: Known) -> list[Detach]:
    going = [
        Detach(namespace, name, status.interface, operation(pod, status.interface, OperationKind.UNPLUG))
        for status in found.unmatched
        if status.interface and current.detachable(pod, status, known)
        for namespace, _, name in [status.name.partition("/")]
    ]
    return going + [
        Detach(namespace, name, link, operation(pod, link, OperationKind.UNPLUG))
        for network, link in current.never_written(found, known)
        for namespace, _, name in [network.rpartition("/")]
    ]


def _ordered(pod: Pod, missing: list[Attach], removable: list[Detach], taken: set[str | None]) -> list[Action]:
    """Attach in the annotation's order, then detach in the status' order.

    Only where a link changes its network does the old one go first: two cannot have one name.
    """
    going = {detach.link: detach for detach in removable}
    actions: list[Action] = []
    for attach in missing:
        if attach.link in going:
            actions += [going.pop(attach.link), attach]
        elif attach.link in taken:
            message = messages.link_taken(pod, attach.element, attach.link)
            actions.append(Report(messages.REJECTED, message, f"{attach.element.name}@{attach.link}"))
        else:
            actions.append(attach)
    return [*actions, *going.values()]


def operation(pod: Pod, link: str, kind: OperationKind) -> Operation:
    """The operation that a link's change belongs to: the pod's annotation of it, else one that all derive alike."""
    written = operation_of_link(pod.metadata.annotations, link)
    if written is not None and written.kind == kind:
        return written
    return Operation(id=derived_id(pod.metadata.uid, link, kind, 0), kind=kind, interface=link)
