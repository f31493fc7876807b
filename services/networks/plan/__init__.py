"""Plan which networks to attach to a pod and which to detach from it. Pure.

The annotation ``networks`` is the desired state. The observed state is ``network-status`` and, if the multus daemon
serves one, the record of the pod's sandbox. Both are matched by ``namespace/name/interface``. Then the settings that an
attachment was made with are compared with those that its element has now. The cluster network, the node's default
networks and everything of unknown origin are left alone (ADR 9). What multus-cni attached for the annotation is known
by a hashed name, which only KubeVirt requests, or because the annotation listed it when it was last applied.
The parts: ``attachments`` (the parsed state), ``actions``, ``matching``, ``messages``.
Next: :mod:`services.networks.apply`.
"""

from collections.abc import Iterable

import msgspec

from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import Operation, derive_operation_id, is_hashed, is_operation_key
from schemas.stages import OperationKind
from services.networks.plan import messages
from services.networks.plan.actions import Action, Attach, Detach, Observed, RecordEvent
from services.networks.plan.attachments import (
    REQUESTED_BY_POD,
    MalformedAnnotation,
    PodAttachments,
    element_digest,
)
from services.networks.plan.matching import ElementMatch, PlacedElement, match_elements, unlisted_attachments


def plan(observed: Observed) -> list[Action]:
    """Return the actions for a pod, in the order in which to apply them."""
    pod, attachments = observed.pod, observed.attachments
    if not is_eligible(pod, observed.node):
        return []
    if pod.spec.host_network:
        rejected = RecordEvent(messages.REJECTED, messages.host_network(pod), "host-network")
        # Its network namespace is the node's. Upstream's controller rejects such a pod with the same text.
        return [rejected] if pod.metadata.annotations.get(NETWORKS) else []
    if isinstance(attachments, MalformedAnnotation):
        message = messages.unreadable(pod, attachments.key, attachments.error)
        return [RecordEvent(messages.UNREADABLE, message, attachments.key)]
    found = match_elements(pod.metadata.namespace, attachments)
    repeated = [
        _reject(messages.link_requested_twice(pod, placed.element, placed.link), placed.element.name, placed.link)
        for placed in found.repeated
    ]
    missing, isolated = _plan_missing(observed, attachments, (*found.missing, *found.unnamed))
    replacements, refused = _plan_replacements(pod, attachments, found.listed)
    detaches = _plan_detaches(pod, attachments, found)
    ordered = _order_actions(pod, attachments, missing, detaches)
    return [*repeated, *isolated, *refused, *replacements, *ordered]


def needs_sandbox_record(observed: Observed, compared: str | None) -> bool:
    """Return whether the record of the pod's sandbox could change the plan.

    The pod's annotations describe what this role attached. The record is needed for everything else, such as networks
    that the pod got at its creation.

    :param observed: without the record.
    :param compared: the networks annotation that was last compared with the record; ``None`` if none was.
    """
    pod, attachments = observed.pod, observed.attachments
    if not is_eligible(pod, observed.node) or pod.spec.host_network or isinstance(attachments, MalformedAnnotation):
        return False
    text = pod.metadata.annotations.get(NETWORKS) or ""
    if compared is None:
        # An earlier process may have made an attachment and ended before it wrote it to the pod. If the element was
        # removed since, only the record shows that attachment, and the operation's annotation hints at it.
        has_operation = any(is_operation_key(key) for key in pod.metadata.annotations)
        return bool(text) or has_operation or any(not status.default for status in attachments.statuses)
    found = match_elements(pod.metadata.namespace, attachments)
    # The record has the number of default networks, which determines the names of unnamed elements.
    if found.unnamed:
        return True
    return text != compared and (
        any(not attachments.has_known_settings(placed.link) for placed in found.listed)
        or any(attachments.has_unknown_origin(status) for status in found.unmatched)
    )


def is_eligible(pod: Pod, node: str) -> bool:
    """Return whether attachments of this pod may change now: it runs on this node and is not terminating."""
    # The DEL of its sandbox undoes a terminating pod's attachments. A change meanwhile could leave the pod in
    # Terminating (cluster-network-addons-operator#1543).
    return pod.spec.node_name == node and pod.metadata.deletion_timestamp is None and pod.status.phase == "Running"


def _plan_missing(
    observed: Observed, attachments: PodAttachments, elements: Iterable[PlacedElement]
) -> tuple[list[Attach], list[RecordEvent]]:
    """Attach the elements without an entry, except those that namespace isolation rejects."""
    pod = observed.pod
    attaches, rejected = [], []
    for placed in elements:
        if observed.isolation.allows(pod.metadata.namespace, placed.namespace):
            # The attachment may exist without having been written to the pod. With the same settings, ADD returns its
            # result again; with other settings it must be replaced.
            recorded = attachments.find_recorded(placed.link)
            changed = recorded is not None and attachments.has_changed(placed.link, placed.element)
            attaches.append(_attach(pod, attachments, placed, replace=changed))
        else:
            message = messages.isolated(pod, placed.element, placed.namespace, placed.link)
            rejected.append(_reject(message, placed.network, placed.link))
    return attaches, rejected


def _plan_replacements(
    pod: Pod, attachments: PodAttachments, elements: Iterable[PlacedElement]
) -> tuple[list[Attach], list[RecordEvent]]:
    """Replace the attachments whose element has other settings now, except those that a guest may use."""
    replacements, refused = [], []
    for placed in elements:
        if not attachments.has_changed(placed.link, placed.element):
            continue
        if is_hashed(placed.link) and not attachments.shows_use(placed.link):
            # DEL would not be refused for an interface that a guest uses.
            message = messages.change_rejected(pod, placed.element, placed.link, messages.USE_UNKNOWN)
            subject = f"{placed.link} {element_digest(placed.element)}"
            refused.append(RecordEvent(messages.CHANGE_REJECTED, message, subject))
        else:
            replacements.append(_attach(pod, attachments, placed, replace=True))
    return replacements, refused


def _plan_detaches(pod: Pod, attachments: PodAttachments, found: ElementMatch) -> list[Detach]:
    """Detach the entries without an element, then the attachments that have neither element nor entry."""
    detaches = []
    for status in found.unmatched:
        if status.interface and attachments.is_detachable(status):
            namespace, _, name = status.name.partition("/")
            detach = _detach(pod, attachments, namespace, name, status.interface)
            if attachments.is_unrecorded(status.interface):
                detach = msgspec.structs.replace(detach, unrecorded=True, mac=status.mac)
            detaches.append(detach)
    for network, link in unlisted_attachments(found, attachments):
        namespace, _, name = network.rpartition("/")
        detaches.append(_detach(pod, attachments, namespace, name, link))
    return detaches


def _order_actions(
    pod: Pod, attachments: PodAttachments, missing: list[Attach], detaches: list[Detach]
) -> list[Action]:
    """Return attaches in the order of the annotation, then detaches in the order of network-status.

    If a link name moves to another network, its detach goes first, because two links cannot have one name.
    """
    taken = {status.interface for status in attachments.statuses}
    taken |= {one.interface for one in attachments.recorded if one.owner not in REQUESTED_BY_POD}
    by_link = {detach.link: detach for detach in detaches}
    actions: list[Action] = []
    for attach in missing:
        if attach.link in by_link:
            actions += [by_link.pop(attach.link), attach]
        elif attach.link in taken:
            message = messages.link_taken(pod, attach.element, attach.link)
            actions.append(_reject(message, attach.element.name, attach.link))
        else:
            actions.append(attach)
    return [*actions, *by_link.values()]


def _attach(pod: Pod, attachments: PodAttachments, placed: PlacedElement, *, replace: bool) -> Attach:
    operation = _find_operation(pod, attachments, placed.link, OperationKind.PLUG)
    return Attach(placed.element, placed.namespace, placed.link, operation, replace)


def _detach(pod: Pod, attachments: PodAttachments, namespace: str, name: str, link: str) -> Detach:
    return Detach(namespace, name, link, _find_operation(pod, attachments, link, OperationKind.UNPLUG))


def _reject(message: str, network: str, link: str) -> RecordEvent:
    return RecordEvent(messages.REJECTED, message, f"{network}@{link}")


def _find_operation(pod: Pod, attachments: PodAttachments, link: str, kind: OperationKind) -> Operation:
    """Return the operation that a change of a link belongs to: that of the pod's annotation, else a derived one.

    The id of a derived operation depends only on pod, link and kind, so every attempt derives the same one.
    """
    written = attachments.operations.get(link)
    if written is not None and written.kind == kind:
        return written
    return Operation(id=derive_operation_id(pod.metadata.uid, link, kind, 0), kind=kind, interface=link)
