"""What is written on the pod after an attachment was made or undone: the annotations of one merge patch. Pure.

Both start from the annotations as they stand at that moment, so that what others wrote meanwhile stays, in its order.
Next: :mod:`services.networks.apply`, which guards the patch with the version it was made from.
"""

import contextlib

import msgspec

from schemas import cni
from schemas.networks import NETWORK_STATUS, NetworkStatus, encode_network_status, parse_network_status
from schemas.operations import (
    AnnotationTooLarge,
    HotplugMark,
    Operation,
    encode,
    hotplug_mark_key,
    operation_key,
    operation_of_link,
    pod_nic_key_of_link,
)
from services.common.domain.pod_nic import network_status, pod_nic

Annotations = dict[str, str | None]
"""Annotations to set; ``None`` takes one away."""


class Outcome(msgspec.Struct, frozen=True):
    """What CNI ADD made: the entry for network-status, and the record or mark that goes with it."""

    entry: NetworkStatus
    records: Annotations


def outcome(*, pod_uid: str, sandbox_id: str, network: str, link: str, asked: str, result: cni.CniResult) -> Outcome:
    """Read a plugin's result. A link whose MAC or MTU it does not tell is only marked: the handler looks for itself.

    So is one with more addresses and routes than a record holds, and the handler says that.

    :param asked: digest of what the element asks, to tell later whether it still asks the same.
    """
    entry = network_status(network, link, result)
    key = pod_nic_key_of_link(link)
    record = pod_nic(pod_uid, sandbox_id, link, result) if key is not None else None
    if key is not None and record is not None:
        with contextlib.suppress(AnnotationTooLarge):
            return Outcome(entry, {key: encode(msgspec.structs.replace(record, asked=asked))})
    mark = HotplugMark(pod_uid=pod_uid, interface=link, asked=asked)
    return Outcome(entry, {hotplug_mark_key(link): encode(mark)})


def attached(annotations: dict[str, str], made: Outcome) -> Annotations:
    """The annotations with an attachment: its entry takes the place of an older one of that link, else comes last.

    The record or mark of an earlier attachment of that link goes: attached again it has another MAC, other addresses.

    :raises ValueError: network-status cannot be read (any more).
    """
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    link = made.entry.interface
    index = next((i for i, s in enumerate(statuses) if s.interface == link and not s.default), None)
    if index is None:
        statuses.append(made.entry)
    else:
        statuses[index] = made.entry
    earlier = _records(annotations, link) if link else {}
    return {NETWORK_STATUS: encode_network_status(statuses), **earlier, **made.records}


def detached(annotations: dict[str, str], network: str, link: str, operation: Operation | None = None) -> Annotations:
    """The annotations without an attachment, its record and its mark.

    :param operation: the unplug that this was the last step of on the pod: it goes, too, unless another has taken its
        place.
    :raises ValueError: network-status cannot be read (any more).
    """
    statuses = [
        s
        for s in parse_network_status(annotations.get(NETWORK_STATUS))
        if s.default or s.interface != link or s.name != network
    ]
    changed: Annotations = {NETWORK_STATUS: encode_network_status(statuses), **_records(annotations, link)}
    written = operation_of_link(annotations, link)
    if operation is not None and written is not None and (written.id, written.kind) == (operation.id, operation.kind):
        changed[operation_key(written.interface)] = None
    return changed


def _records(annotations: dict[str, str], link: str) -> Annotations:
    """The record and the mark of a link, to be taken away."""
    keys = (pod_nic_key_of_link(link), hotplug_mark_key(link))
    return {key: None for key in keys if key is not None and key in annotations}
