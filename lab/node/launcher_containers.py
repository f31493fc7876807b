"""Ends guests and the containers of their launcher pods together, on a node with a real kubelet.

The kubelet runs a container that only sleeps; the guest is a process of `launcher.py`. Whichever ends first ends the
other: the guest when its pod is deleted or has ended, the pod when its guest has ended. `kubelet.py` does the same for
the pods that it runs itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Protocol

from lab.node.cri import PodRuntime, RuntimeCallError
from lab.node.kubelet import Workloads
from lab.node.objects import FINAL_PHASES, Object
from lab.node.resources import PODS, Key, find
from services.common.kube.client import Kube
from services.common.reconcile import Attempt, Retry


class GuestsOfPods(Workloads, Protocol):
    """The guests of this node."""

    def guests_of(self, pod: Key) -> list[str]:
        """Return the UIDs of the pods of that name that have a guest."""
        ...


class LauncherContainers:
    """Reconciles the guests of a pod with the pod."""

    def __init__(self, kube: Kube, runtime: PodRuntime, guests: GuestsOfPods) -> None:
        self._kube = kube
        self._runtime = runtime
        self._guests = guests

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Stop the guest of a pod that has ended, or the pod of a guest that has ended.

        :raises Retry: the runtime failed.
        """
        guests = self._guests.guests_of(key)
        if not guests:
            # As most pods.
            return
        pod = await find(self._kube, PODS, key)
        for uid in guests:
            if pod is None or pod["metadata"]["uid"] != uid or has_ended(pod):
                await self._guests.stop(uid)
            elif self._guests.exit_code(uid) is not None:
                await self._end_sandbox(uid)

    async def _end_sandbox(self, pod_uid: str) -> None:
        try:
            for sandbox in await self._runtime.list_sandboxes(pod_uid):
                if sandbox.ready:
                    status = await self._runtime.sandbox_status(sandbox.id)
                    # The kubelet then ends the containers too; with restartPolicy Never, it creates no second sandbox.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(status.pid, signal.SIGKILL)
        except RuntimeCallError as error:
            raise Retry("RuntimeNotReady", str(error), after=0.5) from error


def has_ended(pod: Object) -> bool:
    """Return whether a pod is being deleted or its containers have ended."""
    return bool(pod["metadata"].get("deletionTimestamp")) or pod.get("status", {}).get("phase") in FINAL_PHASES
