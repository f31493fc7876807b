"""The kubelet's loop: create a CRI sandbox for each pod bound to this node, write its status, terminate deleted pods.

Containers are not run. A launcher pod's only container, `compute`, is a QEMU process that `launcher.py` starts in
the sandbox's network namespace; any other container is shown as running beside its sandbox. The loop compares pods
with the runtime's list of sandboxes, so a restarted process continues with the sandboxes that exist. Next: `virt.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from lab.node.cri import PodRuntime, RuntimeCallError, SandboxStatus
from lab.node.objects import FINAL_PHASES, Object, now, with_conditions
from lab.node.resources import PODS, Key, find
from schemas.kubernetes.objects import Pod
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.reconcile import Attempt, Retry
from services.common.telemetry.logs import Log


class Workloads(Protocol):
    """Runs the workloads of this node's pods, apart from their sandboxes."""

    async def stop(self, pod_uid: str) -> None:
        """Stop the pod's workload and return once it has ended."""
        ...

    def exit_code(self, pod_uid: str) -> int | None:
        """Return the exit code of a workload that ended by itself, otherwise None."""
        ...


class Kubelet:
    """Reconciles the pods on `node` with the runtime's sandboxes."""

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
        """Sync the pod of `key`.

        :raises Retry: the runtime failed.
        """
        pod = await find(self._kube, PODS, key)
        try:
            if pod is None:
                await self.remove_orphans()
            elif pod.get("spec", {}).get("nodeName") == self._node:
                await self._sync_pod(key, pod)
        except RuntimeCallError as error:
            raise Retry("RuntimeNotReady", str(error), after=0.5) from error

    async def remove_orphans(self) -> None:
        """Stop the workloads of pods that no longer exist, and remove their sandboxes."""
        present = {pod.metadata.uid for pod in self._cached()}
        for sandbox in await self._runtime.list_sandboxes():
            if sandbox.pod_uid not in present:
                await self._workloads.stop(sandbox.pod_uid)
                await self._runtime.remove_sandbox(sandbox.id)
                self._log.info("sandbox without a pod removed", sandbox=sandbox.id, pod_uid=sandbox.pod_uid)

    async def _sync_pod(self, key: Key, pod: Object) -> None:
        meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
        uid = meta["uid"]
        if meta.get("deletionTimestamp"):
            await self._terminate_pod(key, uid)
            return
        if phase in FINAL_PHASES:
            return
        code = self._workloads.exit_code(uid)
        if code is not None:
            await self._write_status(key, pod, terminated_status(pod, code, now()))
            return
        # The runtime's list, not the pod's status, decides which sandbox exists.
        sandboxes = await self._runtime.list_sandboxes(uid)
        ready = next((s for s in sandboxes if s.ready), None)
        if ready is None and phase == "Running" and pod["spec"].get("restartPolicy") == "Never":
            # The sandbox's network namespace is gone with every link in it, so the pod cannot be repaired.
            await self._workloads.stop(uid)
            # 137 is 128 + SIGKILL, the exit code of a killed container.
            await self._write_status(key, pod, terminated_status(pod, 137, now()))
            return
        if ready is None:
            # Remove old sandboxes before the new one is created, so that CNI DEL frees their IPAM leases.
            for old in sandboxes:
                await self._runtime.remove_sandbox(old.id)
            attempt = max((s.attempt + 1 for s in sandboxes), default=0)
            sandbox_id = await self._runtime.run_sandbox(pod, attempt)
            self._log.info("sandbox created", pod="/".join(key), sandbox=sandbox_id)
        else:
            sandbox_id = ready.id
        await self._write_status(key, pod, pod_status(pod, await self._runtime.sandbox_status(sandbox_id), now()))

    async def _terminate_pod(self, key: Key, uid: str) -> None:
        await self._workloads.stop(uid)
        for sandbox in await self._runtime.list_sandboxes(uid):
            await self._runtime.remove_sandbox(sandbox.id)
        try:
            # Grace 0 removes the object; the uid protects a new pod of the same name.
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


def pod_status(pod: Object, sandbox: SandboxStatus, time: str) -> Object:
    """Return the status of a pod whose sandbox is ready.

    :param time: the current time, for fields that change.
    """
    present = pod.get("status", {})
    started = present.get("startTime") or time
    # A pod on the host network has no address of its own.
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


def terminated_status(pod: Object, code: int, time: str) -> Object:
    """Return the status of a pod whose workload ended with `code`."""
    present = pod.get("status", {})
    not_ready = dict.fromkeys(("ContainersReady", "Ready"), (False, "PodCompleted" if code == 0 else "PodFailed"))
    container_ids = {s["name"]: s.get("containerID", "") for s in present.get("containerStatuses") or []}
    reason = "Completed" if code == 0 else "Error"
    terminated = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": time}}
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "conditions": with_conditions(present.get("conditions") or [], not_ready, time),
        "containerStatuses": [
            container_status(c, container_ids.get(c["name"], "").removeprefix("containerd://"), terminated, False)
            for c in pod["spec"].get("containers", [])
        ],
    }


def container_status(container: Object, sandbox_id: str, state: Object, ready: bool) -> Object:
    """Return the status entry of one container; its id is the sandbox's, because no container exists."""
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
