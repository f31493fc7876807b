"""network-status of the pod of a new sandbox: the patch, and the write, which reaches only the pod that was read.

The patch also holds the record of every pod interface with a hashed name; the handler reads it.
Next: :mod:`services.multus.pod.events`.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status, parse_network_status
from schemas.kubernetes.objects import PODS, Pod
from schemas.kubernetes.operations import AnnotationTooLarge, encode_annotation, pod_nic_key_of_link
from services.common.domain.pod_nic import build_network_statuses, build_pod_nic
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, KubeError, NotFound
from services.common.telemetry.logs import Log
from services.multus.cni.call import PodId
from services.multus.cni.errors import CniError
from services.multus.pod.reader import PodReader
from services.multus.records.sandbox import Attachment, AttachmentOrigin, SandboxState

WRITES: Final = 5
"""The maximum number of attempts on a pod that others change at the same time, as upstream's."""


class StatusWriter:
    """Writes network-status.

    :param kube: the Kubernetes client.
    :param pods: reads a pod again after a conflict.
    :param log: the daemon's log.
    """

    def __init__(self, kube: Kube, pods: PodReader, log: Log) -> None:
        self._kube = kube
        self._pods = pods
        self._log = log

    async def write(self, pod_id: PodId, pod: Pod, sandbox: SandboxState, attachments: Sequence[Attachment]) -> None:
        """Write the attachments to the pod. After a conflict, read the pod again and retry.

        :param pod_id: the pod's identity.
        :param pod: the pod as it was read.
        :param sandbox: the sandbox's record.
        :param attachments: the attachments in the order of the networks, the cluster network first.
        :raises CniError: the status cannot be written, or another pod of the same name has replaced the pod.
        """
        for _ in range(WRITES):
            try:
                patch = pod_patch(sandbox, pod, attachments)
                # Through the status, as upstream: the right to patch whole pods includes their images.
                await self._kube.merge_patch(PODS, pod_id.namespace, pod_id.name, patch, subresource="status")
            except NotFound:
                # As upstream: the sandbox of a pod that was just deleted is not a failure.
                self._log.info("network status not written, pod is gone", pod=str(pod_id))
            except Conflict:
                # A new pod of this name must not get the status of this sandbox.
                uid, pod = pod.metadata.uid, await self._pods.get(pod_id)
                if pod.metadata.uid != uid:
                    message = f"pod {pod_id} has been replaced by another pod of its name"
                    raise CniError(cni.CniErrorCode.UNKNOWN_CONTAINER, message) from None
                continue
            except KubeError as error:
                message = f"cannot write the network status of pod {pod_id}: {error.message}"
                raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from error
            return
        message = f"cannot write the network status of pod {pod_id}: {WRITES} conflicts in a row"
        raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message)


def pod_patch(sandbox: SandboxState, pod: Pod, attachments: Sequence[Attachment]) -> dict[str, Any]:
    """Return the merge patch with the whole network-status and the record of every pod interface with a hashed name.

    The patch names the pod's UID and version, so it applies to exactly the pod that was read. Entries of attachments
    that were hot-plugged into this sandbox stay.

    :param sandbox: the sandbox's record.
    :param pod: the pod.
    :param attachments: the attachments in the order of the networks, the cluster network first.
    """
    statuses: list[NetworkStatus] = []
    annotations: dict[str, str] = {}
    for attachment in attachments:
        if attachment.origin is AttachmentOrigin.AUXILIARY:
            continue  # an auxiliary chain changes the pod's other links and is not a network of its own
        result = attachment.result or cni.CniResult()
        default = attachment.origin is AttachmentOrigin.CLUSTER
        made = build_network_statuses(attachment.network, attachment.ifname, result, default)
        statuses += [msgspec.structs.replace(status, device_info=attachment.device_info) for status in made]
        key = pod_nic_key_of_link(attachment.ifname)
        nic = build_pod_nic(
            pod.metadata.uid, sandbox.sandbox_id, attachment.ifname, result, mac=attachment.mac, mtu=attachment.mtu
        )
        if key and nic:
            # Without this annotation the handler reads the link itself and reports what is missing.
            with contextlib.suppress(AnnotationTooLarge):
                annotations[key] = encode_annotation(nic)
    plugged = _plugged(sandbox, pod)
    present = pod.metadata.annotations.get(NETWORK_STATUS) if plugged else None
    annotations[NETWORK_STATUS] = encode_network_status([*statuses, *plugged], present)
    # A write from an older pod object loses what others wrote (multus-dynamic-networks-controller#157).
    meta = {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "annotations": annotations}
    return {"metadata": meta}


def _plugged(sandbox: SandboxState, pod: Pod) -> list[NetworkStatus]:
    """Return the network-status entries that the networks controller wrote for this sandbox."""
    try:
        present = parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))
    # A status that cannot be parsed is replaced.
    except ValueError:
        return []
    plugged = {one.ifname for one in sandbox.attachments if one.origin is AttachmentOrigin.DELEGATE}
    return [status for status in present if status.interface in plugged]
