"""virt-controller's and virt-handler's life cycle of a machine: VM -> VMI -> launcher pod -> guest.

Two loops. `VmLoop` gives a VM that should run its VMI and shows the VMI's state on it. `VmiLoop` gives a VMI its
launcher pod, has the guest started once the pod is ready, and takes both down again. Neither knows anything of
hot-plugged cards: `status.interfaces` of the VMI and the networks annotation of an existing pod are never written
here. Objects are read live in every run; the watches only say when to look. Next: `launcher.py`.
"""

from __future__ import annotations

from typing import Protocol

from schemas.kube import CREATED_BY_LABEL
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, Conflict, NotFound, PatchTestFailed
from services.common.kube.patch import Op, add, pointer, remove, test
from services.common.logs import Log
from services.common.reconcile import Attempt, Reject, Retry
from services.lab.node.kubelet import now
from services.lab.node.objects import (
    FINAL_PHASES,
    FINALIZER,
    Object,
    is_true,
    launcher_pod,
    restarts,
    vm_status,
    vmi_of,
    wants_vmi,
    with_conditions,
)
from services.lab.node.resources import PODS, VMIS, VMS, Key, find


class Guests(Protocol):
    """The guests of this node, by launcher pod."""

    async def ensure(self, vmi: Object, pod: Object) -> None:
        """Start the guest of `vmi` in `pod` unless it has been started already."""
        ...

    async def stop(self, pod_uid: str) -> None:
        """Shut the guest of a pod down; returns once it is gone."""
        ...

    def booted(self, pod_uid: str) -> bool:
        """Return whether the guest has said that it is up."""
        ...

    def running(self, pod_uid: str) -> bool:
        """Return whether the guest's machine runs."""
        ...


class VmLoop:
    """Keeps VMs and their VMIs together."""

    def __init__(self, kube: Kube, log: Log) -> None:
        self._kube = kube
        self._log = log

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Create, delete or restart the VMI of the VM of `key`, then show its state on the VM."""
        vm = await find(self._kube, VMS, key)
        if vm is None or vm["metadata"].get("deletionTimestamp"):
            # The VMI goes by its owner reference.
            return
        vmi = await find(self._kube, VMIS, key)
        if vmi is not None and not owned_by(vmi, vm["metadata"]["uid"]):
            raise Reject("NameTaken", f"VMI {'/'.join(key)} exists and belongs to something else")
        going = vmi is not None and bool(vmi["metadata"].get("deletionTimestamp"))
        if vmi is None and wants_vmi(vm, None):
            try:
                vmi = await self._kube.create(VMIS, key[0], vmi_of(vm))
            except AlreadyExists as error:
                raise Retry("NameTaken", str(error)) from error
            self._log.info("VMI created", vm="/".join(key))
        elif vmi is not None and not going and (not wants_vmi(vm, vmi) or restarts(vm, vmi)):
            await self._kube.delete(VMIS, *key, uid=vmi["metadata"]["uid"])
            vmi = await find(self._kube, VMIS, key)
        await self._show(key, vm, vmi)

    async def _show(self, key: Key, vm: Object, vmi: Object | None) -> None:
        present = vm.get("status", {})
        status = vm_status(vm, vmi)
        ready = {"Ready": (bool(status["ready"]), "" if status["ready"] else "GuestNotRunning")}
        status["conditions"] = with_conditions(present.get("conditions") or [], ready, now())
        if any(present.get(name) != value for name, value in status.items()):
            try:
                await self._kube.merge_patch(VMS, *key, {"status": status}, subresource="status")
            except NotFound:
                return


class VmiLoop:
    """Keeps VMIs, their launcher pods and their guests together, on `node`."""

    def __init__(self, kube: Kube, guests: Guests, node: str, log: Log) -> None:
        self._kube = kube
        self._guests = guests
        self._node = node
        self._log = log

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Bring the VMI of `key` one step further; raises Retry when it changed underneath."""
        vmi = await find(self._kube, VMIS, key)
        if vmi is None:
            return
        pods = await self._pods(vmi)
        try:
            if vmi["metadata"].get("deletionTimestamp"):
                await self._take_down(key, vmi, pods)
                return
            if FINALIZER not in (vmi["metadata"].get("finalizers") or []):
                vmi = await self._guard(key, vmi)
            if vmi.get("status", {}).get("phase") not in FINAL_PHASES:
                await self._bring_up(key, vmi, pods)
        except (Conflict, NotFound, PatchTestFailed) as error:
            raise Retry("Changed", str(error), after=0.0) from error

    async def _pods(self, vmi: Object) -> list[Object]:
        meta = vmi["metadata"]
        label = f"{CREATED_BY_LABEL}={meta['uid']}"
        listing = await self._kube.list(PODS, meta["namespace"], labels=label)
        return sorted(listing.items, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    async def _guard(self, key: Key, vmi: Object) -> Object:
        """Put KubeVirt's finalizer on a VMI that was made by hand, so that its pod is taken down first."""
        finalizers = [*(vmi["metadata"].get("finalizers") or []), FINALIZER]
        return await self._patch(key, vmi, [add(pointer("metadata", "finalizers"), finalizers)])

    async def _bring_up(self, key: Key, vmi: Object, pods: list[Object]) -> None:
        status = vmi.get("status", {})
        pod = next((p for p in pods if not p["metadata"].get("deletionTimestamp")), None)
        if pod is None:
            if status.get("phase") in ("Scheduled", "Running"):
                await self._show(key, vmi, {"phase": "Failed"}, {"Ready": (False, "PodDeleted")})
                return
            pod = await self._kube.create(PODS, key[0], launcher_pod(vmi))
            self._log.info("launcher pod created", vmi="/".join(key), pod=pod["metadata"]["name"])
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        if phase in FINAL_PHASES:
            await self._show(key, vmi, {"phase": phase}, {"Ready": (False, "GuestNotRunning")})
            return
        if pod.get("spec", {}).get("nodeName") != self._node or not is_true(pod, "Ready"):
            await self._show(key, vmi, {"phase": "Scheduling"}, {"Ready": (False, "GuestNotRunning")})
            return
        placed = {"nodeName": self._node, "activePods": {uid: self._node}}
        if not self._guests.running(uid):
            await self._show(key, vmi, {"phase": "Scheduled", **placed}, {"Ready": (False, "GuestNotRunning")})
            await self._guests.ensure(vmi, pod)
        booted = self._guests.booted(uid)
        ready = {"Ready": (booted, "" if booted else "GuestBooting")}
        await self._show(key, vmi, {"phase": "Running", **placed}, ready)

    async def _take_down(self, key: Key, vmi: Object, pods: list[Object]) -> None:
        for pod in pods:
            await self._guests.stop(pod["metadata"]["uid"])
            if not pod["metadata"].get("deletionTimestamp"):
                await self._kube.delete(PODS, key[0], pod["metadata"]["name"], uid=pod["metadata"]["uid"])
        if not pods and FINALIZER in (vmi["metadata"].get("finalizers") or []):
            # The last pod's own deletion brings this key back, so nothing has to wait here.
            index = vmi["metadata"]["finalizers"].index(FINALIZER)
            path = pointer("metadata", "finalizers", index)
            await self._patch(key, vmi, [test(path, FINALIZER), remove(path)])

    async def _show(self, key: Key, vmi: Object, wanted: Object, conditions: dict[str, tuple[bool, str]]) -> None:
        """Write the given status fields and conditions, and no other, if they differ."""
        present = vmi.get("status", {})
        listed = present.get("conditions") or []
        wanted = {**wanted, "conditions": with_conditions(listed, conditions, now())}
        changed = {name: value for name, value in wanted.items() if present.get(name) != value}
        if not changed:
            return
        if "phase" in changed:
            self._log.info("VMI phase", vmi="/".join(key), phase=changed["phase"])
        ops = [] if vmi.get("status") else [add("/status", {})]
        ops += [add(pointer("status", name), value) for name, value in changed.items()]
        patched = await self._patch(key, vmi, ops)
        vmi["status"] = patched.get("status", {})
        vmi["metadata"] = patched["metadata"]

    async def _patch(self, key: Key, vmi: Object, ops: list[Op]) -> Object:
        """Patch the VMI only if it still is the version that was read; raises Conflict or PatchTestFailed."""
        meta = vmi["metadata"]
        guard = [test("/metadata/uid", meta["uid"]), test("/metadata/resourceVersion", meta["resourceVersion"])]
        return await self._kube.json_patch(VMIS, *key, [*guard, *ops])


def owned_by(obj: Object, uid: str) -> bool:
    """Return whether the object with `uid` is the controller of `obj`."""
    owners = obj["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)
