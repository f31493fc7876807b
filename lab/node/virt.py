"""The life cycle of a VM, as virt-controller and virt-handler implement it: VM -> VMI -> launcher pod -> guest.

`VmLoop` creates the VMI of a VM that should run and writes the VMI's state to the VM's status. `VmiLoop` creates the
launcher pod of a VMI, starts the guest once the pod is ready, and removes both again. Neither handles hot-plugged
interfaces: they never write the VMI's `status.interfaces` or the networks annotation of an existing pod. Each run
reads the objects from the API server; the watches only trigger runs. Next: `launcher.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from lab.node.objects import (
    FINAL_PHASES,
    FINALIZER,
    Object,
    is_true,
    launcher_pod,
    needs_restart,
    needs_vmi,
    now,
    vm_status,
    vmi_of,
    with_conditions,
)
from lab.node.resources import PODS, VMIS, VMS, Key, find
from schemas.kubernetes.kubevirt import NODE_LABEL
from schemas.kubernetes.objects import CREATED_BY_LABEL
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, Conflict, NotFound, PatchTestFailed
from services.common.kube.patch import Op, add, pointer, remove, test
from services.common.reconcile import Attempt, Reject, Retry
from services.common.telemetry.logs import Log


class Guests(Protocol):
    """Runs the guests of this node, by launcher pod."""

    async def ensure(self, vmi: Object, pod: Object) -> None:
        """Start the guest of `vmi` in `pod` unless it was started before."""
        ...

    async def stop(self, pod_uid: str) -> None:
        """Stop the guest of a pod and return once it has ended."""
        ...

    def booted(self, pod_uid: str) -> bool:
        """Return whether the guest has booted."""
        ...

    def running(self, pod_uid: str) -> bool:
        """Return whether the guest's process runs."""
        ...


class VmLoop:
    """Reconciles VMs with their VMIs."""

    def __init__(self, kube: Kube, log: Log) -> None:
        self._kube = kube
        self._log = log

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Create, delete or restart the VMI of the VM of `key`, then update the VM's status.

        :raises Reject: another owner's VMI has the VM's name.
        :raises Retry: a VMI of that name was created meanwhile.
        """
        vm = await find(self._kube, VMS, key)
        if vm is None or vm["metadata"].get("deletionTimestamp"):
            # The garbage collector deletes the VMI by its owner reference.
            return
        vmi = await find(self._kube, VMIS, key)
        if vmi is not None and not owned_by(vmi, vm["metadata"]["uid"]):
            raise Reject("NameTaken", f"cannot create VMI {'/'.join(key)}: a VMI of that name has another owner")
        deleting = vmi is not None and bool(vmi["metadata"].get("deletionTimestamp"))
        if vmi is None and needs_vmi(vm, None):
            try:
                vmi = await self._kube.create(VMIS, key[0], vmi_of(vm))
            except AlreadyExists as error:
                raise Retry("NameTaken", str(error)) from error
            self._log.info("VMI created", vm="/".join(key))
        elif vmi is not None and not deleting and (not needs_vmi(vm, vmi) or needs_restart(vm, vmi)):
            # The uid protects a VMI that was created meanwhile.
            await self._kube.delete(VMIS, *key, uid=vmi["metadata"]["uid"])
            vmi = await find(self._kube, VMIS, key)
        await self._update_status(key, vm, vmi)

    async def _update_status(self, key: Key, vm: Object, vmi: Object | None) -> None:
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
    """Reconciles VMIs with their launcher pods, and with the guests on `node`.

    Of several nodes, one creates and deletes launcher pods; then each starts the guests of the pods that are bound to
    it, and writes the status of their VMIs.

    :param creates_pods: whether this node is that one.
    """

    def __init__(self, kube: Kube, guests: Guests, node: str, log: Log, *, creates_pods: bool = True) -> None:
        self._kube = kube
        self._guests = guests
        self._node = node
        self._log = log
        self._creates_pods = creates_pods

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Advance the VMI of `key` by one phase.

        :raises Retry: the VMI changed meanwhile.
        """
        vmi = await find(self._kube, VMIS, key)
        if vmi is None:
            return
        pods = await self._pods(vmi)
        try:
            if vmi["metadata"].get("deletionTimestamp"):
                # Guests on other nodes end with their pods.
                if self._creates_pods:
                    await self._delete_guest(key, vmi, pods)
                return
            if self._creates_pods and FINALIZER not in (vmi["metadata"].get("finalizers") or []):
                vmi = await self._add_finalizer(key, vmi)
            if vmi.get("status", {}).get("phase") not in FINAL_PHASES:
                await self._start_guest(key, vmi, pods)
        except (Conflict, NotFound, PatchTestFailed) as error:
            raise Retry("Changed", str(error), after=0.0) from error

    async def _pods(self, vmi: Object) -> list[Object]:
        meta = vmi["metadata"]
        label = f"{CREATED_BY_LABEL}={meta['uid']}"
        listing = await self._kube.list(PODS, meta["namespace"], labels=label)
        return sorted(listing.items, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    async def _add_finalizer(self, key: Key, vmi: Object) -> Object:
        """Add KubeVirt's finalizer to a VMI that was created by hand, so that its pod is removed before it."""
        finalizers = [*(vmi["metadata"].get("finalizers") or []), FINALIZER]
        return await self._patch(key, vmi, [add(pointer("metadata", "finalizers"), finalizers)])

    async def _start_guest(self, key: Key, vmi: Object, pods: list[Object]) -> None:
        status = vmi.get("status", {})
        pod = next((p for p in pods if not p["metadata"].get("deletionTimestamp")), None)
        if not self._is_responsible(pod):
            return
        if pod is None:
            # As in KubeVirt, a VMI that loses its launcher pod fails and gets no second one.
            if status.get("phase") in ("Scheduled", "Running"):
                await self._update_status(key, vmi, {"phase": "Failed"}, {"Ready": (False, "PodDeleted")})
                return
            pod = await self._kube.create(PODS, key[0], launcher_pod(vmi))
            self._log.info("launcher pod created", vmi="/".join(key), pod=pod["metadata"]["name"])
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        if phase in FINAL_PHASES:
            await self._update_status(key, vmi, {"phase": phase}, {"Ready": (False, "GuestNotRunning")})
            return
        # A guest that runs goes on if its pod is not ready any more.
        startable = is_true(pod, "Ready") or self._guests.running(uid)
        if pod.get("spec", {}).get("nodeName") != self._node or not startable:
            await self._update_status(key, vmi, {"phase": "Scheduling"}, {"Ready": (False, "GuestNotRunning")})
            return
        placed = {"nodeName": self._node, "activePods": {uid: self._node}}
        # virt-controller sets the label in the same write; handlers select their VMIs by it.
        labels = {NODE_LABEL: self._node}
        # Show the phase before the guest starts: starting it can take seconds.
        if not self._guests.running(uid):
            not_ready = {"Ready": (False, "GuestNotRunning")}
            await self._update_status(key, vmi, {"phase": "Scheduled", **placed}, not_ready, labels)
            await self._guests.ensure(vmi, pod)
        booted = self._guests.booted(uid)
        # Unlike in KubeVirt, where Ready means that QEMU runs (docs/lab.md).
        ready = {"Ready": (booted, "" if booted else "GuestBooting")}
        await self._update_status(key, vmi, {"phase": "Running", **placed}, ready, labels)

    def _is_responsible(self, pod: Object | None) -> bool:
        """Return whether this node advances the VMI with this launcher pod, or with none."""
        if pod is None or pod.get("status", {}).get("phase") in FINAL_PHASES:
            return self._creates_pods
        place = pod.get("spec", {}).get("nodeName")
        return bool(place == self._node if place else self._creates_pods)

    async def _delete_guest(self, key: Key, vmi: Object, pods: list[Object]) -> None:
        for pod in pods:
            await self._guests.stop(pod["metadata"]["uid"])
            if not pod["metadata"].get("deletionTimestamp"):
                await self._kube.delete(PODS, key[0], pod["metadata"]["name"], uid=pod["metadata"]["uid"])
        if not pods and FINALIZER in (vmi["metadata"].get("finalizers") or []):
            # The deletion of the last pod triggers this key again, so there is no need to wait here.
            index = vmi["metadata"]["finalizers"].index(FINALIZER)
            path = pointer("metadata", "finalizers", index)
            await self._patch(key, vmi, [test(path, FINALIZER), remove(path)])

    async def _update_status(
        self,
        key: Key,
        vmi: Object,
        desired: Object,
        conditions: dict[str, tuple[bool, str]],
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the given status fields, conditions and labels where they differ, and no others."""
        present = vmi.get("status", {})
        listed = present.get("conditions") or []
        desired = {**desired, "conditions": with_conditions(listed, conditions, now())}
        changed = {name: value for name, value in desired.items() if present.get(name) != value}
        present_labels = vmi["metadata"].get("labels") or {}
        relabelled = {name: value for name, value in labels.items() if present_labels.get(name) != value}
        if not changed and not relabelled:
            return
        if "phase" in changed:
            self._log.info("VMI phase", vmi="/".join(key), phase=changed["phase"])
        ops = [] if vmi.get("status") else [add("/status", {})]
        ops += [add(pointer("status", name), value) for name, value in changed.items()]
        if relabelled:
            ops.append(add(pointer("metadata", "labels"), {**present_labels, **relabelled}))
        patched = await self._patch(key, vmi, ops)
        vmi["status"] = patched.get("status", {})
        vmi["metadata"] = patched["metadata"]

    async def _patch(self, key: Key, vmi: Object, ops: list[Op]) -> Object:
        """Patch the VMI only if it is still the version that was read.

        :raises Conflict: it has changed.
        :raises PatchTestFailed: it has changed.
        """
        meta = vmi["metadata"]
        # A JSON patch has no preconditions of its own, so test operations replace them.
        guard = [test("/metadata/uid", meta["uid"]), test("/metadata/resourceVersion", meta["resourceVersion"])]
        return await self._kube.json_patch(VMIS, *key, [*guard, *ops])


def owned_by(obj: Object, uid: str) -> bool:
    """Return whether the object with `uid` is the controller of `obj`."""
    owners = obj["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)
