"""The scheduler: bind each pod without a node to the node with the fewest pods among those that it fits.

Nodes have no taints and no limits; one that is cordoned gets no pods. A pod that must not be on a node with certain
other pods waits while every node has some, as the target pod of a migration does where there is one node.
Next: `kubelet.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lab.node.objects import FINAL_PHASES, Object
from lab.node.resources import NODES, PODS, Key, find
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, NotFound
from services.common.reconcile import Attempt


def is_unscheduled(pod: Object) -> bool:
    """Return whether `pod` waits for the default scheduler."""
    spec = pod.get("spec", {})
    if spec.get("nodeName") or pod["metadata"].get("deletionTimestamp"):
        return False
    return bool(spec.get("schedulerName", "default-scheduler") == "default-scheduler")


def fits(pod: Object, node: Object) -> bool:
    """Return whether the default scheduler would bind `pod` to `node`."""
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    selector: Mapping[str, str] = pod.get("spec", {}).get("nodeSelector") or {}
    cordoned = node.get("spec", {}).get("unschedulable", False)
    return not cordoned and all(labels.get(key) == value for key, value in selector.items())


def emptiest(nodes: Iterable[str], pods: Iterable[Object]) -> str:
    """Return the node with the fewest of these pods, of several such nodes the first by name."""
    count = Counter(pod.get("spec", {}).get("nodeName") for pod in pods if not _has_ended(pod))
    return min(nodes, key=lambda node: (count[node], node))


def avoided_pods(pod: Object) -> list[str]:
    """Return label selectors of the pods of its namespace that `pod` must not share a node with."""
    affinity = (pod.get("spec", {}).get("affinity") or {}).get("podAntiAffinity") or {}
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []
    labels = [(term.get("labelSelector") or {}).get("matchLabels") or {} for term in terms]
    return [",".join(f"{key}={value}" for key, value in sorted(wanted.items())) for wanted in labels if wanted]


def _has_ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in FINAL_PHASES


class Scheduler:
    """Binds pods to nodes."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Bind the pod of `key` if it is unscheduled and fits a node."""
        pod = await find(self._kube, PODS, key)
        if pod is None or not is_unscheduled(pod):
            return
        nodes = {node["metadata"]["name"] for node in (await self._kube.list(NODES)).items if fits(pod, node)}
        for labels in avoided_pods(pod):
            found = await self._kube.list(PODS, key[0], labels=labels)
            nodes -= {other["spec"].get("nodeName") for other in found.items if not _has_ended(other)}
        if not nodes:
            return
        # The other pods do not matter where there is no choice.
        pods = (await self._kube.list(PODS)).items if len(nodes) > 1 else []
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key[1], "namespace": key[0]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": emptiest(nodes, pods)},
        }
        try:
            await self._kube.request("POST", PODS.path(*key, "binding"), body=binding)
        except (Conflict, NotFound):
            # Bound or deleted meanwhile; the watch event of that change triggers the key again.
            return
