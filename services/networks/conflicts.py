"""Refuse to start beside upstream's dynamic networks controller: both would attach the networks of this node's pods.

Next: :mod:`services.networks.role`.
"""

from collections.abc import Iterable
from functools import partial
from typing import Final

from schemas.kubernetes.pod_volumes import PODS_WITH_VOLUMES, PodWithVolumes
from services.common.kube.client import Kube
from services.common.kube.denials import Denials
from services.common.runtime.process import StartRefused
from services.common.telemetry.logs import Log

UPSTREAM_LABEL: Final = "app=dynamic-networks-controller"
"""Label of upstream's pods, as its manifest sets it."""


async def refuse_upstream_controller(kube: Kube, node: str, log: Log, denials: Denials) -> None:
    """Check whether upstream's controller runs on the node; wait until the API server answers.

    :param denials: told while the API server forbids the list.
    :raises StartRefused: it does.
    """
    list_pods = partial(kube.list, PODS_WITH_VOLUMES, labels=UPSTREAM_LABEL, fields=f"spec.nodeName={node}")
    found = await denials.retry(list_pods, log=log)
    if conflict := find_upstream_controller(found.items):
        raise StartRefused(conflict)


def find_upstream_controller(pods: Iterable[PodWithVolumes]) -> str:
    """Return which of the labelled pods is in the way; empty if none is. Pure."""
    for pod in pods:
        # Any user may set the label. Only a privileged one may mount the socket of a multus daemon.
        if pod.status.phase == "Running" and any("multus" in path for path in pod.host_paths()):
            return (
                f"upstream's dynamic networks controller runs on this node (pod {pod.metadata.namespace}/"
                f"{pod.metadata.name}), and two controllers must not attach one network; remove its DaemonSet "
                "(dynamic-networks-controller-ds)"
            )
    return ""
