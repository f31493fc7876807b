"""A kubelet with Multus and a networks controller, for launcher pods on nodes that do not exist.

Nothing runs: a pod is shown as running, and its network-status follows its networks annotation. Beside hotnic's real
`networks` role this loop is left out.
"""

from __future__ import annotations

from typing import Any

from lab.kubevirt.annotations import read_elements, read_network_status
from lab.kubevirt.loops.play import Play, retrying, set_metadata
from lab.kubevirt.objects import network_status, pod_address, running_pod_status
from lab.node.objects import FINAL_PHASES, now
from lab.node.resources import PODS, Key, find
from schemas.kubernetes.networks import NETWORK_STATUS
from schemas.names import pod_interface
from services.common.reconcile import Attempt

Object = dict[str, Any]


class PlayedPods:
    """Reconciles launcher pods on the played nodes."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Start, update or end the pod of `key`.

        :raises Retry: the pod changed meanwhile.
        """
        async with retrying():
            pod = await find(self._play.kube, PODS, key)
            if pod is None or pod["spec"].get("nodeName") not in self._play.nodes:
                return
            if pod["metadata"].get("deletionTimestamp"):
                await self._play.kube.delete(PODS, *key, grace=0, uid=pod["metadata"]["uid"])
                return
            phase = pod.get("status", {}).get("phase")
            if phase in FINAL_PHASES:
                return
            # Multus attaches the networks of a new pod without any controller, so nothing is held back there.
            held = self._held(pod) if phase == "Running" else frozenset()
            if (text := network_status(pod, held)) is not None:
                if phase == "Running":
                    await self._play.pace.before("network-status")
                pod = await self._play.patch(PODS, pod, set_metadata(pod, "annotations", {NETWORK_STATUS: text}))
            if phase != "Running":
                await self._play.set_status(PODS, pod, running_pod_status(pod_address(pod), now()), "status")

    def _held(self, pod: Object) -> frozenset[str]:
        names = self._play.pace.held("network-status")
        if "" in names:
            return frozenset(str(item.get("interface")) for item in [*read_elements(pod), *read_network_status(pod)])
        return frozenset(pod_interface(name) for name in names)


async def end_pod(play: Play, pod: Object, phase: str) -> None:
    """Show a played pod as ended."""
    status = {**(pod.get("status") or {}), "phase": phase}
    status["conditions"] = [
        {**item, "status": "False"} if item["type"] in ("Ready", "ContainersReady") else item
        for item in status.get("conditions") or []
    ]
    await play.set_status(PODS, pod, status, "status")
