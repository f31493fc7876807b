"""What a pod has, and who made it: network-status, the marks beside it, and the record of its sandbox. Pure.

The marks are this role's own; the record is the multus daemon's (upstream's keeps none that could be asked).
Next: :mod:`services.networks.plan`, which decides by it.
"""

import msgspec

from schemas.kube import Pod
from schemas.multus import RecordedAttachment, SandboxRecord
from schemas.names import is_ordinal
from schemas.networks import NetworkSelectionElement, NetworkStatus
from schemas.operations import hotplug_mark_of, operation_of_link, pod_nic_key_of_link, pod_nic_of
from services.networks import attachment_settings

NAMED_BY_THE_POD = frozenset({"networks", "delegate"})
"""Owners, in the record, of what the networks annotation asked for; nothing else is ever detached."""
HOT_PLUGGED = "delegate"
DEFAULT_NETWORK = "default"

Place = tuple[NetworkSelectionElement, str, str]
"""An element, the namespace of its network, and its link."""

asked_by = attachment_settings.of_element


class Known(msgspec.Struct, frozen=True):
    """What is known of a pod's attachments beside its annotations.

    :ivar record: of its sandbox; ``None`` when it was not asked for, or the daemon has none.
    :ivar unwritten: network and link of what was made and not yet written on the pod.
    :ivar undone: links that were detached and still stand on the pod.
    """

    record: SandboxRecord | None = None
    unwritten: tuple[tuple[str, str], ...] = ()
    undone: frozenset[str] = frozenset()

    @property
    def attachments(self) -> list[RecordedAttachment]:
        """The attachments of the record."""
        return self.record.attachments if self.record else []

    def find(self, link: str) -> RecordedAttachment | None:
        """The attachment that the record has under a link name."""
        return next((one for one in self.attachments if one.interface == link), None)


class Match(msgspec.Struct, frozen=True):
    """The annotation's elements beside the entries of network-status.

    :ivar kept: elements that have their entry. :ivar missing: named elements that have none.
    :ivar unnamed: elements without a name that have none; they get the name that multus would give them.
    :ivar repeated: elements whose link an earlier one has. :ivar unmatched: entries that no element accounts for.
    """

    present: list[NetworkStatus]
    unmatched: list[NetworkStatus]
    kept: list[Place] = []
    missing: list[Place] = []
    unnamed: list[Place] = []
    repeated: list[tuple[NetworkSelectionElement, str]] = []

    @property
    def wanted(self) -> set[str]:
        """The links that the annotation accounts for."""
        return {link for _, _, link in (*self.kept, *self.missing, *self.unnamed)}


def match(pod: Pod, wanted: list[NetworkSelectionElement], present: list[NetworkStatus], known: Known) -> Match:
    """Set the elements beside the entries. Named ones come first: a name is never guessed away from its owner."""
    found = Match(present=present, unmatched=list(present))
    links: set[str] = set()
    nameless: list[Place] = []
    # multus counts the cluster network and the node's default networks before the annotation's elements.
    first = 1 + sum(one.owner == DEFAULT_NETWORK for one in known.attachments)
    for position, element in enumerate(wanted, first):
        link = element.requested_interface
        place = (element, element.namespace or pod.metadata.namespace, link or f"net{position}")
        if link is None:
            nameless.append(place)
        elif link in links:
            found.repeated.append((element, link))
        else:
            links.add(link)
            (found.kept if link not in known.undone and _claim(found, place) else found.missing).append(place)
    _match_nameless(found, nameless, links, known)
    return found


def _match_nameless(found: Match, nameless: list[Place], links: set[str], known: Known) -> None:
    """An element without a name accounts for the link of its position, else for any ``net<i>`` of its network."""
    left = []
    for place in nameless:
        if place[2] not in known.undone and _claim(found, place):
            found.kept.append(place)
        else:
            left.append(place)
    for element, namespace, link in left:
        status = next((s for s in found.unmatched if _may_be(s, f"{namespace}/{element.name}", known)), None)
        if status is not None:
            found.unmatched.remove(status)
            found.kept.append((element, namespace, status.interface or link))
        elif link in links:
            found.repeated.append((element, link))
        else:
            found.unnamed.append((element, namespace, link))


def _claim(found: Match, place: Place) -> bool:
    element, namespace, link = place
    for status in found.unmatched:
        if status.name == f"{namespace}/{element.name}" and status.interface == link:
            found.unmatched.remove(status)
            return True
    return False


def _may_be(status: NetworkStatus, network: str, known: Known) -> bool:
    link = status.interface
    named_by_multus = link is not None and is_ordinal(link) and link not in known.undone
    return named_by_multus and status.name == network and not status.default


def asked_of(pod: Pod, link: str, known: Known) -> str | None:
    """The digest of what was asked when an attachment was made; ``None`` when nobody knows."""
    recorded = known.find(link)
    if recorded is not None:
        return attachment_settings.of_record(recorded.requested) if recorded.owner in NAMED_BY_THE_POD else None
    annotations, uid = pod.metadata.annotations, pod.metadata.uid
    nic = pod_nic_of(annotations, pod_nic_key_of_link(link))
    if nic is not None and nic.interface == link and nic.pod_uid == uid:
        return nic.asked
    mark = hotplug_mark_of(annotations, link)
    return mark.asked if mark is not None and mark.pod_uid == uid else None


def of_unknown_origin(pod: Pod, status: NetworkStatus) -> bool:
    """Whether only the sandbox's record can tell if an entry may go."""
    return _of_a_nad(status) and not made_at_run_time(pod, status.interface or "")


def detachable(pod: Pod, status: NetworkStatus, known: Known) -> bool:
    """Whether an entry that no element accounts for may go while the pod runs."""
    link = status.interface
    if link is None or not _of_a_nad(status):
        return False
    recorded = known.find(link)
    if recorded is not None:
        return recorded.owner in NAMED_BY_THE_POD
    return made_at_run_time(pod, link)


def _of_a_nad(status: NetworkStatus) -> bool:
    return not status.default and "/" in status.name and bool(status.interface)


def made_at_run_time(pod: Pod, link: str) -> bool:
    """Whether this pod's own records say that the link may be detached while the pod runs."""
    annotations, uid = pod.metadata.annotations, pod.metadata.uid
    nic = pod_nic_of(annotations, pod_nic_key_of_link(link))
    if nic is not None and nic.interface == link and nic.pod_uid == uid:
        return True
    mark = hotplug_mark_of(annotations, link)
    if mark is not None and mark.pod_uid == uid:
        return True
    written = operation_of_link(annotations, link)
    return written is not None and written.released == uid


def never_written(found: Match, known: Known) -> list[tuple[str, str]]:
    """Network and link of what was hot-plugged, is wanted no longer, and never got its entry in network-status."""
    hot_plugged = [(one.network, one.interface) for one in known.attachments if one.owner == HOT_PLUGGED]
    listed = {status.interface for status in found.present} | found.wanted
    links = {link: network for network, link in (*hot_plugged, *known.unwritten) if link not in listed}
    return [(network, link) for link, network in links.items()]
