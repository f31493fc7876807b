"""The attachments of one pod: which it should have, which it has, who made them and with which settings. Pure.

The pod's annotations are parsed here once, when the role observes the pod; the plan reads :class:`PodAttachments` and
parses nothing. The other sources are the multus daemon's record of the sandbox, which upstream's daemon does not serve,
and the cache of this process. Next: :mod:`services.networks.plan.actions`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    canonical_address,
    canonical_mac,
    keeps_args,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import (
    HotplugMark,
    Operation,
    PodNic,
    is_hashed,
    is_operation_key,
    pod_nic_key_of_link,
    read_held,
    read_hotplug_mark,
    read_pod_nic,
)
from schemas.multus import RecordedAttachment, SandboxRecord
from schemas.names import pod_interface

REQUESTED_BY_POD: Final = frozenset({"networks", "delegate"})
"""Values of ``owner`` in the record for what the networks annotation requested; nothing else is ever detached."""
HOT_PLUG_OWNER: Final = "delegate"
"""Value of ``owner`` for an attachment that was made by ``/delegate``."""
DEFAULT_NETWORK_OWNER: Final = "default"
"""Value of ``owner`` for one of the node's default networks."""


class MalformedAnnotation(msgspec.Struct, frozen=True):
    """An annotation of the pod that cannot be parsed.

    :ivar key: the key of the annotation.
    :ivar error: why it cannot be parsed.
    """

    key: str
    error: str


class PodAttachments(msgspec.Struct, frozen=True):
    """Everything that is known of a pod's attachments.

    :ivar elements: the networks annotation.
    :ivar statuses: the entries of network-status.
    :ivar marks: what shows that a link was hot-plugged, by link: its pod NIC record, or else its hot-plug mark, if it
        was written for this pod.
    :ivar operations: the operations in the pod's annotations, by link.
    :ivar released: links of which the handler of this pod has torn down the pod network.
    :ivar record: the multus daemon's record of the pod's sandbox; ``None`` if it was not requested, or there is none.
    :ivar unwritten: network and link of attachments that were made and are not yet written to the pod.
    :ivar detached_links: links that were detached and are still listed in network-status.
    :ivar listed_before: network and link of the elements of the annotation that was last applied.
    """

    elements: tuple[NetworkSelectionElement, ...]
    statuses: tuple[NetworkStatus, ...]
    marks: dict[str, PodNic | HotplugMark]
    operations: dict[str, Operation]
    released: frozenset[str]
    record: SandboxRecord | None
    unwritten: tuple[tuple[str, str], ...]
    detached_links: frozenset[str]
    listed_before: frozenset[tuple[str, str]] = frozenset()

    @property
    def recorded(self) -> list[RecordedAttachment]:
        """The attachments of the record."""
        return self.record.attachments if self.record else []

    @property
    def hot_plugged_in_record(self) -> list[tuple[str, str]]:
        """Network and link of the hot-plugged attachments of the record."""
        return [(one.network, one.interface) for one in self.recorded if one.owner == HOT_PLUG_OWNER]

    def find_recorded(self, link: str) -> RecordedAttachment | None:
        """Return the recorded attachment with a link name; ``None`` if there is none."""
        return next((one for one in self.recorded if one.interface == link), None)

    def is_hot_plugged(self, link: str) -> bool:
        """Return whether the pod's annotations show that a link was hot-plugged, or released by the handler."""
        return link in self.marks or link in self.released

    def has_known_settings(self, link: str) -> bool:
        """Return whether it is known with which settings an attachment was made."""
        recorded = self.find_recorded(link)
        if recorded is not None:
            return recorded.owner in REQUESTED_BY_POD
        mark = self.marks.get(link)
        return mark is not None and mark.settings_digest is not None

    def has_changed(self, link: str, element: NetworkSelectionElement) -> bool:
        """Return whether an attachment was made with other settings than its element has now.

        Another notation is no change, and neither are keys that were added to ``cni-args``.
        """
        if not self.has_known_settings(link):
            return False
        recorded = self.find_recorded(link)
        if recorded is None:
            return self.marks[link].settings_digest not in _digests(element)
        before = recorded.requested
        return (
            _settings(before.mac or None, before.ips or None) != _settings(element.mac, element.ips)
        ) or not keeps_args(before.cni_args, element.cni_args)

    def shows_use(self, link: str) -> bool:
        """Return whether multus refuses DEL while a guest uses the link.

        It cannot if it has no record, or if the network made no link in the pod: a device that is passed through.
        """
        recorded = self.find_recorded(link)
        return self.record is not None and (recorded is None or recorded.ifindex > 0)

    def has_unknown_origin(self, status: NetworkStatus) -> bool:
        """Return whether only the sandbox's record can show if an entry may be detached."""
        return _is_from_nad(status) and not self.is_hot_plugged(status.interface or "")

    def is_detachable(self, status: NetworkStatus) -> bool:
        """Return whether an entry without an element may be detached while the pod runs."""
        link = status.interface
        if link is None or not _is_from_nad(status):
            return False
        recorded = self.find_recorded(link)
        if recorded is not None:
            return recorded.owner in REQUESTED_BY_POD
        # Without a record, the annotation requested it if it listed it, or if KubeVirt chose the name.
        return self.is_hot_plugged(link) or is_hashed(link) or (status.name, link) in self.listed_before

    def is_unrecorded(self, link: str) -> bool:
        """Return whether neither the record nor an annotation of hotnic's shows who made an attachment."""
        return self.find_recorded(link) is None and not self.is_hot_plugged(link)


def parse_attachments(
    pod: Pod,
    *,
    record: SandboxRecord | None,
    unwritten: Iterable[tuple[str, str]],
    detached_links: Iterable[str],
    earlier: str | None = None,
) -> PodAttachments | MalformedAnnotation:
    """Parse the annotations of a pod.

    Only the two annotations of Multus can be malformed: their author has to correct them. A malformed annotation of
    hotnic counts as absent.

    :param record: as in :class:`PodAttachments`.
    :param unwritten: as in :class:`PodAttachments`.
    :param detached_links: as in :class:`PodAttachments`.
    :param earlier: the networks annotation that was last applied; ``None`` if none was.
    """
    annotations, uid = pod.metadata.annotations, pod.metadata.uid
    key = NETWORKS
    try:
        elements = parse_networks(annotations.get(NETWORKS))
        key = NETWORK_STATUS
        statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    except ValueError as error:
        return MalformedAnnotation(key, str(error))
    marks = {link: _find_mark(annotations, link, uid) for link in (status.interface for status in statuses) if link}
    found = (read_held(pod.metadata, name) for name in annotations if is_operation_key(name))
    # One that names a VM is a copy, too: KubeVirt copies a VMI's annotations to the pods it makes later.
    operations = {
        pod_interface(operation.interface): operation
        for operation in found
        if operation is not None and operation.vm is None
    }
    return PodAttachments(
        elements=tuple(elements),
        statuses=tuple(statuses),
        marks={link: mark for link, mark in marks.items() if mark is not None},
        operations=operations,
        released=frozenset(link for link, operation in operations.items() if operation.released == uid),
        record=record,
        unwritten=tuple(unwritten),
        detached_links=frozenset(detached_links),
        listed_before=_listed(earlier, pod.metadata.namespace),
    )


def _listed(networks: str | None, namespace: str) -> frozenset[tuple[str, str]]:
    """Return network and link of the elements of an annotation that was applied, without those that name no link."""
    return frozenset(
        (f"{element.namespace or namespace}/{element.name}", element.requested_interface)
        for element in parse_networks(networks)
        if element.requested_interface is not None
    )


def _find_mark(annotations: dict[str, str], link: str, uid: str) -> PodNic | HotplugMark | None:
    """Return the pod NIC record of a link, else its hot-plug mark; ``None`` if neither was written for this pod."""
    nic = read_pod_nic(annotations, pod_nic_key_of_link(link))
    if nic is not None and nic.interface == link and nic.pod_uid == uid:
        return nic
    mark = read_hotplug_mark(annotations, link)
    return mark if mark is not None and mark.pod_uid == uid else None


def _is_from_nad(status: NetworkStatus) -> bool:
    return not status.default and "/" in status.name and bool(status.interface)


def element_digest(element: NetworkSelectionElement) -> str:
    """Return 16 hex digits for the settings of an element of the networks annotation, equal for every notation.

    The digest is stored in annotations, so the encoding must not change between versions.
    """
    return _digest(*_settings(element.mac, element.ips), element.cni_args)


def _digests(element: NetworkSelectionElement) -> set[str]:
    """Return the digests with which an attachment for this element may have been marked."""
    # Earlier versions only changed the MAC to lower case.
    earlier = ((element.mac or "").lower(), element.ips or [])
    return {
        _digest(mac, ips, args)
        for mac, ips in (_settings(element.mac, element.ips), earlier)
        for args in (element.cni_args, None)
    }


def _settings(mac: str | None, ips: Sequence[str] | msgspec.UnsetType | None) -> tuple[str, list[str]]:
    return canonical_mac(mac), [canonical_address(ip) for ip in ips or ()]


def _digest(mac: str, ips: Sequence[str], cni_args: Mapping[str, Any] | None) -> str:
    settings = msgspec.json.encode([mac, list(ips), dict(cni_args or {})], order="deterministic")
    return hashlib.sha256(settings).hexdigest()[:16]
