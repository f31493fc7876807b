"""What a sandbox's pod is told of its networks, and whether it is the pod that the runtime means.

Pure. The patch is sent by :mod:`services.multus.calls`.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from schemas import cni
from schemas.kube import Pod
from schemas.networks import NETWORK_STATUS, NetworkStatus, encode_network_status, parse_network_status
from schemas.operations import AnnotationTooLarge, encode, pod_nic_key_of_link
from services.common.domain.pod_nic import network_statuses, pod_nic
from services.multus.call import PodId
from services.multus.errors import CniError
from services.multus.records import Attachment, Owner, Sandbox

STATIC_POD_SOURCE: Final = "kubernetes.io/config.source"


def check_pod(pod: Pod, asked: PodId) -> None:
    """Whether the pod is the one that the runtime means; a static pod has another UID in the API.

    :raises CniError: it is another pod of the same name.
    """
    static = pod.metadata.annotations.get(STATIC_POD_SOURCE, "api") != "api"
    if asked.uid and pod.metadata.uid != asked.uid and not static:
        raise CniError(
            cni.Code.UNKNOWN_CONTAINER, f"expected pod UID {asked.uid!r} but got {pod.metadata.uid!r} from Kube API"
        )


def pod_patch(sandbox: Sandbox, pod: Pod, attachments: Sequence[Attachment]) -> dict[str, Any]:
    """The merge patch that tells what the pod has: network-status in full, and the record of every hashed pod NIC.

    It holds for that pod at that version only. What was plugged into this sandbox at run time keeps its entry.

    :param attachments: in the order of the networks, the cluster network first.
    """
    statuses: list[NetworkStatus] = []
    annotations: dict[str, str] = {}
    for attachment in attachments:
        if attachment.owner is Owner.AUXILIARY:
            continue  # it changes the pod's other links and is no network of its own
        result = attachment.result or cni.CniResult()
        default = attachment.owner is Owner.CLUSTER
        made = network_statuses(attachment.network, attachment.ifname, result, default)
        statuses += [msgspec.structs.replace(status, device_info=attachment.device_info) for status in made]
        key = pod_nic_key_of_link(attachment.ifname)
        nic = pod_nic(
            pod.metadata.uid, sandbox.sandbox_id, attachment.ifname, result, mac=attachment.mac, mtu=attachment.mtu
        )
        if key and nic:
            # Without a record the handler looks for itself, and says what is the matter.
            with contextlib.suppress(AnnotationTooLarge):
                annotations[key] = encode(nic)
    annotations[NETWORK_STATUS] = encode_network_status([*statuses, *_plugged(sandbox, pod)])
    meta = {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "annotations": annotations}
    return {"metadata": meta}


def _plugged(sandbox: Sandbox, pod: Pod) -> list[NetworkStatus]:
    """The entries of network-status that the networks controller has written for this sandbox."""
    try:
        present = parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))
    except ValueError:
        return []
    plugged = {one.ifname for one in sandbox.attachments if one.owner is Owner.DELEGATE}
    return [status for status in present if status.interface in plugged]
