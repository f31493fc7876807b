"""virt-controller's loop of VMs: create the VMI, make it follow the VM, clear the template, write the VM's status.

Order of one run as in KubeVirt: networks and interfaces of the VMI first, then the template, then the status.
Next: `vmis.py`.
"""

from __future__ import annotations

import copy
from typing import Any

from lab.kubevirt import conditions, specs
from lab.kubevirt.loops.play import Play, key_of, retrying, set_metadata
from lab.kubevirt.objects import CONTROLLER_FINALIZER, OBSERVED_VERSIONS, VM_GENERATION, event_of, vmi_of
from lab.node.objects import is_true, needs_restart, needs_vmi, now
from lab.node.resources import VMIS, VMS, Key, find
from lab.node.virt import owned_by
from services.common.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, PatchTestFailed
from services.common.kube.patch import Op, add, remove, test
from services.common.reconcile import Attempt, Retry

Object = dict[str, Any]

TEMPLATE, SPEC = "/spec/template/spec", "/spec"


class TemplateLoop:
    """Reconciles VMs with their VMIs."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._booted: dict[str, Object] = {}
        self._failures: dict[Key, str] = {}
        self._restarting: set[str] = set()

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Take the steps that are due for the VM of `key`.

        :raises Retry: an object changed meanwhile, or the VMI could not be patched.
        """
        async with retrying():
            vm = await find(self._play.kube, VMS, key)
            if vm is None:
                return
            vmi = await find(self._play.kube, VMIS, key)
            if vmi is not None and not owned_by(vmi, vm["metadata"]["uid"]):
                return
            if vm["metadata"].get("deletionTimestamp"):
                await self._finish(vm, vmi)
                return
            vm = await self._mark(vm)
            vmi = await self._start_or_stop(vm, vmi)
            running = vmi is not None and not vmi["metadata"].get("deletionTimestamp")
            if self._play.behaviour.enabled:
                vm, vmi = await self._follow(vm, vmi if running else None, vmi)
            await self._write_status(vm, vmi)
        if failure := self._failures.get(key):
            raise Retry("VmiNotPatched", failure)

    async def _finish(self, vm: Object, vmi: Object | None) -> None:
        if vmi is not None:
            if not vmi["metadata"].get("deletionTimestamp"):
                await self._play.kube.delete(VMIS, *key_of(vm), uid=vmi["metadata"]["uid"])
        elif CONTROLLER_FINALIZER in (finalizers := vm["metadata"].get("finalizers") or []):
            path = f"/metadata/finalizers/{finalizers.index(CONTROLLER_FINALIZER)}"
            await self._play.patch(VMS, vm, [test(path, CONTROLLER_FINALIZER), remove(path)])

    async def _mark(self, vm: Object) -> Object:
        ops: list[Op] = set_metadata(vm, "annotations", OBSERVED_VERSIONS)
        finalizers = vm["metadata"].get("finalizers") or []
        if CONTROLLER_FINALIZER not in finalizers:
            ops.append(add("/metadata/finalizers", [*finalizers, CONTROLLER_FINALIZER]))
        return await self._play.patch(VMS, vm, ops) if ops else vm

    async def _start_or_stop(self, vm: Object, vmi: Object | None) -> Object | None:
        play = self._play
        if vmi is None:
            if not needs_vmi(vm, None):
                return None
            model = await play.preferred_model(vm)
            try:
                vmi = await play.kube.create(
                    VMIS,
                    vm["metadata"]["namespace"],
                    vmi_of(vm, play.behaviour, play.default_binding, model),
                )
            except AlreadyExists as error:
                raise Retry("NameTaken", str(error)) from error
            started = (
                f"Started the virtual machine by creating the new virtual machine instance {vm['metadata']['name']}"
            )
            await self._record(vm, "SuccessfulCreate", started)
            self._booted[vm["metadata"]["uid"]] = copy.deepcopy(vm["spec"]["template"]["spec"])
            return vmi
        uid = vmi["metadata"]["uid"]
        if vmi["metadata"].get("deletionTimestamp"):
            return vmi
        if needs_restart(vm, vmi) and uid not in self._restarting:
            # KubeVirt waits before it starts a VM again whose guest ended by itself.
            self._restarting.add(uid)
            play.later(play.restart_delay, "vm", key_of(vm))
        elif not needs_vmi(vm, vmi) or needs_restart(vm, vmi):
            self._restarting.discard(uid)
            await play.kube.delete(VMIS, *key_of(vm), uid=uid)
            stopped = f"Stopped the virtual machine by deleting the virtual machine instance {uid}"
            await self._record(vm, "SuccessfulDelete", stopped)
            return await find(play.kube, VMIS, key_of(vm))
        return vmi

    async def _record(self, vm: Object, reason: str, message: str) -> None:
        await self._play.record(event_of(vm, "VirtualMachine", reason, message, "virtualmachine-controller"))

    async def _follow(self, vm: Object, running: Object | None, vmi: Object | None) -> tuple[Object, Object | None]:
        """Change the VMI, then the template; return both as they are then."""
        play, key = self._play, key_of(vm)
        behaviour, entries = play.behaviour, _entries(running)
        template = specs.lists_of(vm["spec"]["template"]["spec"])
        wanted = template
        requests = (vm.get("status", {}).get("interfaceRequests") or []) if behaviour.request_queue else []
        for request in requests:
            wanted = specs.with_request(wanted, request)
        if running is not None:
            target = before = specs.lists_of(running["spec"])
            if behaviour.template_edits:
                target = specs.follow_template(template, before, entries, behaviour)
            for request in requests:
                target = specs.with_request(target, request)
            if not requests:
                target = specs.clear_unplugged(target, entries)
            if target != before and not play.pace.holds("vmi-spec", key[1]):
                await play.pace.before("vmi-spec")
                try:
                    running = vmi = await play.patch(VMIS, running, _list_ops(SPEC, before, target))
                    self._failures.pop(key, None)
                except (Conflict, PatchTestFailed, NotFound):
                    raise
                except KubeError as error:
                    self._failures[key] = f"error encountered when trying to patch vmi: {error.message}"
                    return vm, vmi
            else:
                self._failures.pop(key, None)
        in_vmi = specs.lists_of(running["spec"]) if running is not None else None
        if not requests:
            wanted = specs.clear_template(wanted, in_vmi, entries, behaviour)
        if wanted != template and not play.pace.holds("template", key[1]):
            await play.pace.before("template")
            vm = await play.patch(VMS, vm, _list_ops(TEMPLATE, template, wanted))
        if requests:
            left = [request for request in requests if not specs.is_done(request, wanted, in_vmi)]
            if left != requests:
                path = "/status/interfaceRequests"
                change = add(path, left) if left else remove(path)
                vm = await play.patch(VMS, vm, [test(path, requests), change], "status")
        return vm, vmi

    async def _write_status(self, vm: Object, vmi: Object | None) -> None:
        play, meta = self._play, vm["metadata"]
        generation = meta["generation"]
        if vmi is not None and self._booted.get(meta["uid"]) == vm["spec"]["template"]["spec"]:
            # The VMI counts as started from this generation again once the template equals the one it started from.
            ops = set_metadata(vmi, "annotations", {VM_GENERATION: str(generation)})
            vmi = await play.patch(VMIS, vmi, ops) if ops else vmi
        await play.set_status(VMS, vm, self._status(vm, vmi, await play.preferred_model(vm)), "status")

    def _status(self, vm: Object, vmi: Object | None, model: str) -> Object:
        behaviour, restart = self._play.behaviour, False
        before = vm.get("status") or {}
        if vmi is not None and not vmi["metadata"].get("deletionTimestamp") and behaviour.minor >= 2:
            template = vm["spec"]["template"]["spec"]
            if behaviour.network_edit_needs_restart:
                started = self._booted.get(vm["metadata"]["uid"], template)
                restart = specs.needs_restart(specs.lists_of(template), specs.lists_of(started), behaviour)
            else:
                # A plugged interface has no model in the VMI, so it differs where a preference names one.
                expanded = specs.with_model(specs.lists_of(template), model)
                restart = specs.needs_restart(expanded, specs.lists_of(vmi["spec"]), behaviour)
            # Until 1.5.0 the condition stays until the VM restarts.
            restart = restart or (not behaviour.restart_condition and is_true(vm, conditions.RESTART_REQUIRED))
        failure = self._failures.get(key_of(vm), "")
        status: Object = {
            "created": vmi is not None or None,
            "ready": (vmi is not None and is_true(vmi, "Ready")) or None,
            "printableStatus": _printable(vm, vmi),
            "desiredGeneration": vm["metadata"]["generation"],
            "observedGeneration": before.get("observedGeneration"),
            "conditions": conditions.vm_conditions(vm, vmi, restart, failure, now()),
        }
        if vmi is not None:
            status["observedGeneration"] = int((vmi["metadata"].get("annotations") or {}).get(VM_GENERATION, 0)) or None
        if behaviour.minor >= 4:
            spec = vm["spec"]
            status["runStrategy"] = spec.get("runStrategy") or ("Always" if spec.get("running") else "Halted")
        return status


def _entries(vmi: Object | None) -> list[Object]:
    return (vmi or {}).get("status", {}).get("interfaces") or []


def _list_ops(path: str, before: specs.SpecLists, after: specs.SpecLists) -> list[Op]:
    """Return the patch of both lists, guarded by their values as KubeVirt's is."""
    networks, interfaces = f"{path}/networks", f"{path}/domain/devices/interfaces"
    return [
        test(networks, before.networks),
        test(interfaces, before.interfaces),
        add(networks, after.networks),
        add(interfaces, after.interfaces),
    ]


def _printable(vm: Object, vmi: Object | None) -> str:
    if vmi is None:
        return "Starting" if needs_vmi(vm, None) else "Stopped"
    if vmi["metadata"].get("deletionTimestamp"):
        return "Stopping"
    phase = vmi.get("status", {}).get("phase")
    if phase == "Failed":
        return "CrashLoopBackOff"
    if phase == "Running":
        return "Migrating" if conditions.is_migrating(vmi) else "Running"
    return "Stopped" if phase == "Succeeded" else "Starting"
