"""The scheduler: bind each pod without a node to this node, if its node selector matches.

There is one node without taints and limits, so nothing is scored. A pod that must not be on a node with certain other
pods waits while they are there, as the target pod of a migration does. Next: `kubelet.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.node.objects import FINAL_PHASES, Object
from lab.node.resources import PODS, Key, find
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, NotFound
from services.common.reconcile import Attempt


def is_schedulable(pod: Object, node_labels: Mapping[str, str]) -> bool:
    """Return whether the default scheduler would bind `pod` to a node with these labels."""
    spec = pod.get("spec", {})
    if spec.get("nodeName") or pod["metadata"].get("deletionTimestamp"):
        return False
    if spec.get("schedulerName", "default-scheduler") != "default-scheduler":
        return False
    selector: Mapping[str, str] = spec.get("nodeSelector") or {}
    return all(node_labels.get(key) == value for key, value in selector.items())


def avoided_pods(pod: Object) -> list[str]:
    """Return label selectors of the pods of its namespace that `pod` must not share a node with."""
    affinity = (pod.get("spec", {}).get("affinity") or {}).get("podAntiAffinity") or {}
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []
    labels = [(term.get("labelSelector") or {}).get("matchLabels") or {} for term in terms]
    return [",".join(f"{key}={value}" for key, value in sorted(wanted.items())) for wanted in labels if wanted]


def _has_ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in FINAL_PHASES


class Scheduler:
    """Binds pods to `node`."""

    def __init__(self, kube: Kube, node: str, node_labels: Mapping[str, str]) -> None:
        self._kube = kube
        self._node = node
        self._labels = node_labels

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Bind the pod of `key` if it is unscheduled and fits."""
        pod = await find(self._kube, PODS, key)
        if pod is None or not is_schedulable(pod, self._labels):
            return
        for labels in avoided_pods(pod):
            found = await self._kube.list(PODS, key[0], labels=labels)
            if any(other["spec"].get("nodeName") and not _has_ended(other) for other in found.items):
                return
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": key[1], "namespace": key[0]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self._node},
        }
        try:
            await self._kube.request("POST", PODS.path(*key, "binding"), body=binding)
        except (Conflict, NotFound):
            # Bound or deleted meanwhile; the watch event of that change triggers the key again.
            return
