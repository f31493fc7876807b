"""Write the outcome of a change to the pod: network-status, the pod NIC record or hot-plug mark, the operation.

The new annotations are computed from the current ones, so that concurrent changes of others survive, in their order.
One merge patch writes them; it is valid only for the resource version that they were computed from. On a conflict the
pod is read and the patch is built again; the CNI call is not repeated (ADR 10).
Next: :mod:`services.networks.reporter`.
"""

import contextlib
from collections.abc import Callable

import msgspec

from schemas import cni
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status, parse_network_status
from schemas.kubernetes.objects import PODS, Pod
from schemas.kubernetes.operations import (
    AnnotationTooLarge,
    HotplugMark,
    Operation,
    encode_annotation,
    hotplug_mark_key,
    operation_key,
    pod_nic_key_of_link,
    read_operation_of_link,
)
from services.common.domain.pod_nic import build_network_status, build_pod_nic
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, KubeError, NotFound
from services.networks.multus_client import AttachmentFailure

Annotations = dict[str, str | None]
"""Annotations to set; ``None`` removes one."""
Change = Callable[[dict[str, str]], Annotations]
"""Maps the current annotations of a pod to those to set."""

MAX_CONFLICTS = 10
"""Number of tries in one attempt; each but the first starts from a new read of the pod."""


class PodGone(Exception):
    """The pod was deleted, or another pod has its name."""


class AttachOutcome(msgspec.Struct, frozen=True):
    """The outcome of a CNI ADD.

    :ivar entry: the entry for network-status.
    :ivar records: the annotation with the pod NIC record or the hot-plug mark.
    """

    entry: NetworkStatus
    records: Annotations


def attach_outcome(
    *, pod_uid: str, sandbox_id: str, network: str, link: str, settings_digest: str, result: cni.CniResult
) -> AttachOutcome:
    """Build the outcome from a CNI result.

    A link gets a hot-plug mark instead of a record if the result lacks its MAC or MTU; then the handler reads them by
    netlink. It also gets a mark if its addresses and routes do not fit into a record; then the handler reports that.

    :param settings_digest: digest of the element's settings; it shows later whether they have changed.
    """
    entry = build_network_status(network, link, result)
    key = pod_nic_key_of_link(link)
    record = build_pod_nic(pod_uid, sandbox_id, link, result) if key is not None else None
    if key is not None and record is not None:
        with contextlib.suppress(AnnotationTooLarge):
            return AttachOutcome(
                entry, {key: encode_annotation(msgspec.structs.replace(record, settings_digest=settings_digest))}
            )
    mark = HotplugMark(pod_uid=pod_uid, interface=link, settings_digest=settings_digest)
    return AttachOutcome(entry, {hotplug_mark_key(link): encode_annotation(mark)})


def annotations_with(annotations: dict[str, str], outcome: AttachOutcome) -> Annotations:
    """Return the annotations to set for a new attachment.

    Its entry replaces an older one of the same link, or is appended.

    :raises ValueError: network-status cannot be parsed.
    """
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    link = outcome.entry.interface
    index = next((i for i, s in enumerate(statuses) if s.interface == link and not s.default), None)
    if index is None:
        statuses.append(outcome.entry)
    else:
        statuses[index] = outcome.entry
    # The record of an earlier attachment of the link does not hold: the new one has another MAC and other addresses.
    earlier = _removed_records(annotations, link) if link else {}
    present = encode_network_status(statuses, annotations.get(NETWORK_STATUS))
    return {NETWORK_STATUS: present, **earlier, **outcome.records}


def annotations_without(
    annotations: dict[str, str], network: str, link: str, operation: Operation | None = None
) -> Annotations:
    """Return the annotations to set for a removed attachment: no entry, no record and no mark.

    :param operation: the unplug that ends with this change; its annotation is removed too, unless a newer operation
        has replaced it.
    :raises ValueError: network-status cannot be parsed.
    """
    statuses = [
        s
        for s in parse_network_status(annotations.get(NETWORK_STATUS))
        if s.default or s.interface != link or s.name != network
    ]
    present = encode_network_status(statuses, annotations.get(NETWORK_STATUS))
    changed: Annotations = {NETWORK_STATUS: present, **_removed_records(annotations, link)}
    written = read_operation_of_link(annotations, link)
    if operation is not None and written is not None and (written.id, written.kind) == (operation.id, operation.kind):
        changed[operation_key(written.interface)] = None
    return changed


def _removed_records(annotations: dict[str, str], link: str) -> Annotations:
    """Return the removal of a link's record and mark, if they exist."""
    keys = (pod_nic_key_of_link(link), hotplug_mark_key(link))
    return {key: None for key in keys if key is not None and key in annotations}


async def patch_annotations(kube: Kube, pods: CachedReader[Pod], pod: Pod, change: Change) -> Pod:
    """Apply a change of annotations and return the updated pod.

    :param pods: the reader of pods, which must expect the version that the patch creates.
    :param change: returns the annotations to set; called again after a conflict.
    :raises PodGone: the pod does not exist any more.
    :raises AttachmentFailure: the pod cannot be written.
    """
    uid = pod.metadata.uid
    for _ in range(MAX_CONFLICTS):
        meta = pod.metadata
        try:
            annotations = change(meta.annotations)
        except ValueError as error:
            raise AttachmentFailure("UnreadableNetworks", f"cannot parse network-status: {error}") from error
        if all(meta.annotations.get(key) == value for key, value in annotations.items()):
            return pod
        body = {"metadata": {"resourceVersion": meta.resource_version, "annotations": annotations}}
        try:
            # Through the status, as upstream's multus: the right to patch whole pods includes their images.
            pod = await kube.merge_patch(PODS, meta.namespace, meta.name, body, subresource="status")
        except NotFound as error:
            raise PodGone from error
        except Conflict:
            # A change from a stale pod would drop entries of others (multus-dynamic-networks-controller#157).
            pod = await _read_live(kube, pod)
        except KubeError as error:
            raise AttachmentFailure("KubeUnavailable", f"cannot write network-status: {error.message}") from error
        else:
            pods.record_written(pod)
            return pod
        if pod.metadata.uid != uid:
            raise PodGone
    raise AttachmentFailure("PodBusy", f"cannot write network-status: the pod changed {MAX_CONFLICTS} times meanwhile")


async def _read_live(kube: Kube, pod: Pod) -> Pod:
    try:
        return await kube.get(PODS, pod.metadata.namespace, pod.metadata.name)
    except NotFound as error:
        raise PodGone from error
    except KubeError as error:
        raise AttachmentFailure("KubeUnavailable", f"cannot read the pod: {error.message}") from error
