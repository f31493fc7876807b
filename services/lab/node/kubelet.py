"""The kubelet's loop: a pod bound to this node gets a CRI sandbox and a status; a deleted one is taken down.

Containers are not run. A launcher pod's only container, `compute`, is a QEMU process that `launcher.py` starts in
the sandbox's network namespace; any other container is shown as running beside its sandbox. The truth is the
runtime's list of sandboxes, so a restarted process carries on with those it finds. Next: `virt.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import Protocol

from schemas.kube import Pod
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.logs import Log
from services.common.reconcile import Attempt, Retry
from services.lab.node.cri import PodRuntime, Running, RuntimeFailureError
from services.lab.node.objects import FINAL_PHASES, Object, with_conditions
from services.lab.node.resources import PODS, Key, find


class Workloads(Protocol):
    """What runs in the pods of this node besides their sandboxes."""

    async def stop(self, pod_uid: str) -> None:
        """End what runs in the pod; returns once it is gone."""
        ...

    def exit_code(self, pod_uid: str) -> int | None:
        """Return how the pod's workload ended by itself, None while it has not."""
        ...


class Kubelet:
    """Keeps sandboxes and statuses of the pods on `node`."""

    def __init__(
        self,
        kube: Kube,
        runtime: PodRuntime,
        workloads: Workloads,
        node: str,
        cached: Callable[[], Iterable[Pod]],
        log: Log,
    ) -> None:
        self._kube = kube
        self._runtime = runtime
        self._workloads = workloads
        self._node = node
        self._cached = cached
        self._log = log

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Bring the pod of `key` and its sandbox together; raises Retry when the runtime is not willing."""
        pod = await find(self._kube, PODS, key)
        try:
            if pod is None:
                await self.sweep()
            elif pod.get("spec", {}).get("nodeName") == self._node:
                await self._keep(key, pod)
        except RuntimeFailureError as error:
            raise Retry("RuntimeNotReady", str(error), after=0.5) from error

    async def sweep(self) -> None:
        """Remove the sandboxes of pods that no longer exist."""
        present = {pod.metadata.uid for pod in self._cached()}
        for sandbox in await self._runtime.sandboxes():
            if sandbox.pod_uid not in present:
                await self._workloads.stop(sandbox.pod_uid)
                await self._runtime.remove(sandbox.id)
                self._log.info("sandbox without a pod removed", sandbox=sandbox.id, pod_uid=sandbox.pod_uid)

    async def _keep(self, key: Key, pod: Object) -> None:
        meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
        uid = meta["uid"]
        if meta.get("deletionTimestamp"):
            await self._take_down(key, uid)
            return
        if phase in FINAL_PHASES:
            return
        code = self._workloads.exit_code(uid)
        if code is not None:
            await self._write_status(key, pod, ended_status(pod, code, now()))
            return
        sandboxes = await self._runtime.sandboxes(uid)
        ready = next((s for s in sandboxes if s.ready), None)
        if ready is None and phase == "Running" and pod["spec"].get("restartPolicy") == "Never":
            # Its network namespace is gone, and with it everything that stood in it.
            await self._workloads.stop(uid)
            await self._write_status(key, pod, ended_status(pod, 137, now()))
            return
        if ready is None:
            for old in sandboxes:
                await self._runtime.remove(old.id)
            attempt = max((s.attempt + 1 for s in sandboxes), default=0)
            sandbox_id = await self._runtime.run(pod, attempt)
            self._log.info("sandbox made", pod="/".join(key), sandbox=sandbox_id)
        else:
            sandbox_id = ready.id
        await self._write_status(key, pod, pod_status(pod, await self._runtime.look(sandbox_id), now()))

    async def _take_down(self, key: Key, uid: str) -> None:
        await self._workloads.stop(uid)
        for sandbox in await self._runtime.sandboxes(uid):
            await self._runtime.remove(sandbox.id)
        try:
            await self._kube.delete(PODS, *key, grace=0, uid=uid)
        except NotFound:
            return

    async def _write_status(self, key: Key, pod: Object, status: Object) -> None:
        present = pod.get("status", {})
        if all(present.get(name) == value for name, value in status.items()):
            return
        try:
            await self._kube.merge_patch(PODS, *key, {"status": status}, subresource="status")
        except NotFound:
            return


def now() -> str:
    """Return the present time as Kubernetes writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(pod: Object, sandbox: Running, time: str) -> Object:
    """Return the status of a pod whose sandbox is ready."""
    present = pod.get("status", {})
    started = present.get("startTime") or time
    addresses = sandbox.ips or ("127.0.0.1",)
    ready = dict.fromkeys(("PodScheduled", "Initialized", "ContainersReady", "Ready"), (True, ""))
    return {
        "phase": "Running",
        "startTime": started,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "podIP": addresses[0],
        "podIPs": [{"ip": address} for address in addresses],
        "qosClass": "BestEffort",
        "conditions": with_conditions(present.get("conditions") or [], ready, time),
        "containerStatuses": [
            container_status(container, sandbox.id, {"running": {"startedAt": started}}, True)
            for container in pod["spec"].get("containers", [])
        ],
    }


def ended_status(pod: Object, code: int, time: str) -> Object:
    """Return the status of a pod whose workload ended with `code`."""
    present = pod.get("status", {})
    gone = dict.fromkeys(("ContainersReady", "Ready"), (False, "PodCompleted" if code == 0 else "PodFailed"))
    known = {s["name"]: s.get("containerID", "") for s in present.get("containerStatuses") or []}
    reason = "Completed" if code == 0 else "Error"
    terminated = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": time}}
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "conditions": with_conditions(present.get("conditions") or [], gone, time),
        "containerStatuses": [
            container_status(c, known.get(c["name"], "").removeprefix("containerd://"), terminated, False)
            for c in pod["spec"].get("containers", [])
        ],
    }


def container_status(container: Object, sandbox_id: str, state: Object, ready: bool) -> Object:
    """Return the status entry of one container; its id is the sandbox's, for there is no other."""
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "containerID": f"containerd://{sandbox_id}",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "state": state,
        "lastState": {},
    }
