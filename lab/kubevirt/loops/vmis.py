"""virt-controller's loop of VMIs: launcher pod, networks annotation, `multus-status`, MigrationRequired.

It never waits for the guest: an attachment is dropped as soon as its interface is absent. Next: `domains.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from lab.kubevirt import conditions
from lab.kubevirt.annotations import acting_pod, updated_networks
from lab.kubevirt.interfaces import with_multus_status
from lab.kubevirt.loops.play import Play, key_of, retrying, set_metadata
from lab.kubevirt.objects import (
    CONTROLLER_FINALIZER,
    JOB_LABEL,
    NODE_LABEL,
    event_of,
    in_phase,
    launcher_finalizer,
    launcher_pod,
)
from lab.node.objects import FINAL_PHASES, is_true, now
from lab.node.resources import PODS, VMIS, Key, find
from schemas.kubernetes.networks import NETWORKS
from services.common.kube.patch import Op, add, test
from services.common.reconcile import Attempt

Object = dict[str, Any]

CLOCK_ERROR = 0.001
"""Seconds by which a timer of the event loop may be early."""


class LauncherLoop:
    """Reconciles VMIs with their launcher pods."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._pending: dict[str, float] = {}

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Take the steps that are due for the VMI of `key`.

        :raises Retry: an object changed meanwhile.
        """
        async with retrying():
            vmi = await find(self._play.kube, VMIS, key)
            if vmi is None:
                return
            pods = await self._play.pods_of(vmi)
            if vmi["metadata"].get("deletionTimestamp"):
                await self._remove(vmi, pods)
                return
            if vmi.get("status", {}).get("phase") in FINAL_PHASES:
                return
            vmi = await self._advance(vmi, pods)
            pod = acting_pod(vmi, pods)
            if vmi["status"].get("phase") == "Running" and pod is not None:
                vmi = await self._follow_pods(vmi, pods)
                if self._play.behaviour.enabled:
                    pod = await self._annotate(vmi, pod)
                vmi = await self._write_interfaces(vmi, pod)
                if self._play.behaviour.automatic_migration:
                    await self._judge_migration(vmi, pod)

    async def _remove(self, vmi: Object, pods: list[Object]) -> None:
        for pod in pods:
            if not pod["metadata"].get("deletionTimestamp"):
                await self._play.kube.delete(PODS, *key_of(pod), uid=pod["metadata"]["uid"])
        ours = {CONTROLLER_FINALIZER, launcher_finalizer(self._play.behaviour)}
        finalizers = vmi["metadata"].get("finalizers") or []
        left = [name for name in finalizers if name not in ours]
        if not pods and left != finalizers:
            path = "/metadata/finalizers"
            await self._play.patch(VMIS, vmi, [test(path, finalizers), add(path, left)])

    async def _advance(self, vmi: Object, pods: list[Object]) -> Object:
        """Create the launcher pod, and follow it through its phases."""
        play, status = self._play, vmi.get("status") or {}
        phase = status.get("phase") or "Pending"
        if not pods:
            if phase in ("Scheduled", "Running"):
                return await play.set_status(VMIS, vmi, {**in_phase(status, "Failed"), **_unready(status)})
            node = play.nodes[0] if play.nodes else ""
            document = launcher_pod(vmi, play.behaviour, node=node)
            pods.append(await play.kube.create(PODS, vmi["metadata"]["namespace"], document))
            message = f"Created virtual machine pod {pods[0]['metadata']['name']}"
            kind, component = "VirtualMachineInstance", "virtualmachine-controller"
            await play.record(event_of(vmi, kind, "SuccessfulCreate", message, component))
        pod = acting_pod(vmi, pods)
        if pod is None:
            ended = max(pods, key=lambda item: str(item["metadata"]["creationTimestamp"]))
            final = ended.get("status", {}).get("phase")
            final = final if final in FINAL_PHASES else "Failed"
            return await play.set_status(VMIS, vmi, {**in_phase(status, final), **_unready(status)})
        if phase == "Pending":
            return await play.set_status(VMIS, vmi, in_phase(status, "Scheduling"))
        node = pod.get("spec", {}).get("nodeName", "")
        if phase == "Scheduling" and node and is_true(pod, "Ready"):
            fields = {**in_phase(status, "Scheduled"), "nodeName": node, "activePods": {pod["metadata"]["uid"]: node}}
            label: list[Op] = set_metadata(vmi, "labels", {NODE_LABEL: node})
            await play.patch(PODS, pod, set_metadata(pod, "labels", {NODE_LABEL: node}))
            guard = test("/metadata/resourceVersion", vmi["metadata"]["resourceVersion"])
            return await play.patch(VMIS, vmi, [guard, *label, add("/status", {**status, **fields})])
        return vmi

    async def _follow_pods(self, vmi: Object, pods: list[Object]) -> Object:
        """List all launcher pods that have a node; finished ones stay listed."""
        listed = {p["metadata"]["uid"]: p["spec"]["nodeName"] for p in pods if p["spec"].get("nodeName")}
        # A target pod is listed by its migration.
        targets = {p["metadata"]["uid"] for p in pods if JOB_LABEL in p["metadata"]["labels"]}
        before = vmi["status"].get("activePods") or {}
        active = {uid: node for uid, node in listed.items() if uid in before or uid not in targets}
        return await self._play.set_status(VMIS, vmi, {"activePods": active})

    async def _annotate(self, vmi: Object, pod: Object) -> Object:
        play = self._play
        text = updated_networks(vmi, pod, play.behaviour)
        if text is None or not is_true(pod, "Ready") or play.pace.holds("annotation", vmi["metadata"]["name"]):
            return pod
        await play.pace.before("annotation")
        return await play.patch(PODS, pod, set_metadata(pod, "annotations", {NETWORKS: text}))

    async def _write_interfaces(self, vmi: Object, pod: Object) -> Object:
        play, before = self._play, vmi["status"].get("interfaces")
        entries = with_multus_status(vmi, pod, play.behaviour)
        if entries == (before or []) or play.pace.holds("multus-status", vmi["metadata"]["name"]):
            return vmi
        await play.pace.before("multus-status")
        path = "/status/interfaces"
        return await play.patch(VMIS, vmi, [test(path, before), add(path, entries)])

    async def _judge_migration(self, vmi: Object, pod: Object) -> None:
        play, uid = self._play, vmi["metadata"]["uid"]
        before = vmi["status"].get("conditions") or []
        found = conditions.find_condition(before, conditions.MIGRATION_REQUIRED)
        if conditions.is_migrating(vmi) or play.pace.holds("condition", vmi["metadata"]["name"]):
            return
        need, clock = conditions.migration_need(vmi, pod), asyncio.get_running_loop().time()
        left = 0.0
        if need == "none":
            self._pending.pop(uid, None)
        else:
            left = play.grace - (clock - self._pending.setdefault(uid, clock))
            if left > CLOCK_ERROR:
                play.later(left, "vmi", key_of(vmi))
        waited = left <= CLOCK_ERROR and not play.pace.holds("grace", vmi["metadata"]["name"])
        entry = conditions.migration_condition(need, found, waited, now())
        after = conditions.with_condition(before, conditions.MIGRATION_REQUIRED, entry)
        if after != before:
            await play.pace.before("condition")
            path = "/status/conditions"
            await play.patch(VMIS, vmi, [test(path, before), add(path, after)])
            if entry is not None and entry["status"] == "True":
                play.later(play.update_delay, "workload", key_of(vmi))


def _unready(status: Object) -> Object:
    unready = conditions.condition("Ready", False, now(), reason="GuestNotRunning")
    return {"conditions": conditions.with_condition(status.get("conditions"), "Ready", unready)}
