"""The loop of migrations: target pod, hand-over to the target's node, end of the source pod.

Between the hand-over and the next run of virt-controller, the status shows the source's attachments; then tokens go
backwards where the target pod lacks one. Next: `workloads.py`.
"""

from __future__ import annotations

from typing import Any

from lab.kubevirt import conditions
from lab.kubevirt.annotations import acting_pod
from lab.kubevirt.loops.play import MIGRATIONS, Play, retrying, set_metadata
from lab.kubevirt.loops.pods import end_pod
from lab.kubevirt.objects import JOB_LABEL, NODE_LABEL, TARGET_NODE_LABEL, event_of, launcher_pod
from lab.node.objects import FINAL_PHASES, is_true, now
from lab.node.resources import PODS, VMIS, Key, find
from services.common.kube.patch import Op, add, remove, test
from services.common.reconcile import Attempt

Object = dict[str, Any]

FINALIZER = "kubevirt.io/migrationJobFinalize"
KIND = "VirtualMachineInstanceMigration"
PHASES = ("Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "Succeeded")
"""The phases of a migration; the player shows some of them only by their times."""


class MigrationLoop:
    """Reconciles migrations with the VMIs that they move."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Take the step that is due for the migration of `key`.

        :raises Retry: an object changed meanwhile.
        """
        async with retrying():
            migration = await find(self._play.kube, MIGRATIONS, key)
            if migration is None:
                return
            ended = migration.get("status", {}).get("phase") in FINAL_PHASES
            if ended or migration["metadata"].get("deletionTimestamp"):
                await self._finish(migration)
                await self._end_source(migration)
                return
            vmi = await find(self._play.kube, VMIS, (key[0], migration["spec"]["vmiName"]))
            if vmi is None or not is_true(vmi, "LiveMigratable"):
                await self._set(migration, phase="Failed")
                return
            pods = await self._play.pods_of(vmi)
            uid = migration["metadata"]["uid"]
            target = next((pod for pod in pods if pod["metadata"]["labels"].get(JOB_LABEL) == uid), None)
            if target is None:
                await self._create_target(migration, vmi, pods)
            elif is_true(target, "Ready") and self._is_movable(target, vmi, uid):
                state = vmi["status"].get("migrationState") or {}
                if state.get("migrationUid") != uid:
                    await self._prepare(migration, vmi, target, acting_pod(vmi, pods))
                elif not self._play.pace.holds("hand-over", vmi["metadata"]["name"]):
                    await self._play.pace.before("hand-over")
                    await self._hand_over(migration, vmi, target)

    @staticmethod
    def _is_movable(target: Object, vmi: Object, uid: str) -> bool:
        """Return whether the target pod is on another node than the VM, or was before the hand-over."""
        handed_over = (vmi["status"].get("migrationState") or {}).get("migrationUid") == uid
        return handed_over or target["spec"].get("nodeName") not in (None, vmi["status"].get("nodeName"))

    async def _finish(self, migration: Object) -> None:
        finalizers = migration["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
            await self._play.patch(MIGRATIONS, migration, [test(path, FINALIZER), remove(path)])

    async def _end_source(self, migration: Object) -> None:
        """End the source pod of a migration that succeeded."""
        play, key = self._play, (migration["metadata"]["namespace"], migration["spec"]["vmiName"])
        name = (migration.get("status", {}).get("migrationState") or {}).get("sourcePod")
        if migration.get("status", {}).get("phase") != "Succeeded" or play.pace.holds("end-source", key[1]):
            return
        source = await find(play.kube, PODS, (key[0], str(name)))
        if (
            source is not None
            and source["status"].get("phase") == "Running"
            and source["spec"]["nodeName"] in play.nodes
        ):
            await play.pace.before("end-source")
            await end_pod(play, source, "Succeeded")

    async def _set(self, migration: Object, phase: str, **fields: Any) -> Object:
        status = {"phase": phase, "phaseTransitionTimestamps": _transitions(migration, phase), **fields}
        return await self._play.set_status(MIGRATIONS, migration, status, "status")

    async def _create_target(self, migration: Object, vmi: Object, pods: list[Object]) -> None:
        play, source = self._play, acting_pod(vmi, pods)
        if source is None or play.pace.holds("target-pod", vmi["metadata"]["name"]):
            return
        await play.pace.before("target-pod")
        if FINALIZER not in (migration["metadata"].get("finalizers") or []):
            migration = await play.patch(MIGRATIONS, migration, [add("/metadata/finalizers", [FINALIZER])])
        ops: list[Op] = set_metadata(vmi, "annotations", {"kubevirt.io/nonroot": "true"})
        vmi = await play.patch(VMIS, vmi, ops) if ops else vmi
        node = next((name for name in play.nodes if name != vmi["status"].get("nodeName")), "")
        pod = await play.kube.create(
            PODS, vmi["metadata"]["namespace"], launcher_pod(vmi, play.behaviour, node=node, migration=migration)
        )
        await self._record(migration, "SuccessfulCreate", f"Created migration target pod {pod['metadata']['name']}")
        await self._set(migration, phase="Scheduling", migrationState={"sourcePod": source["metadata"]["name"]})

    async def _prepare(self, migration: Object, vmi: Object, target: Object, source: Object | None) -> None:
        play, node = self._play, target["spec"]["nodeName"]
        state = {
            "migrationUid": migration["metadata"]["uid"],
            "sourceNode": vmi["status"].get("nodeName"),
            "sourcePod": source["metadata"]["name"] if source is not None else "",
            "startTimestamp": now(),
            "targetNode": node,
            "targetPod": target["metadata"]["name"],
        }
        active = {**(vmi["status"].get("activePods") or {}), target["metadata"]["uid"]: node}
        guard = test("/metadata/resourceVersion", vmi["metadata"]["resourceVersion"])
        label = set_metadata(vmi, "labels", {TARGET_NODE_LABEL: node})
        status = {**vmi["status"], "migrationState": state, "activePods": active}
        await play.patch(VMIS, vmi, [guard, *label, add("/status", status)])
        message = "Migration target pod is ready for preparation by virt-handler."
        await self._record(migration, "SuccessfulHandOver", message)
        await self._set(migration, phase="Running")

    async def _hand_over(self, migration: Object, vmi: Object, target: Object) -> None:
        play, node, time = self._play, target["spec"]["nodeName"], now()
        if vmi["status"].get("nodeName") != node:
            ended = {"completed": True, "endTimestamp": time}
            detected = {"targetNodeDomainDetected": True, "targetNodeDomainReadyTimestamp": time}
            state = {**vmi["status"]["migrationState"], **ended, **detected}
            # virt-handler of the target removes the condition once the domain is ready.
            kept = conditions.with_condition(vmi["status"].get("conditions"), conditions.MIGRATION_REQUIRED, None)
            status = {**vmi["status"], "migrationState": state, "nodeName": node, "conditions": kept}
            guard = test("/metadata/resourceVersion", vmi["metadata"]["resourceVersion"])
            label = set_metadata(vmi, "labels", {NODE_LABEL: node})
            vmi = await play.patch(VMIS, vmi, [guard, *label, add("/status", status)])
            ready = time.replace("T", " ").replace("Z", " +0000 UTC")
            ops = set_metadata(target, "annotations", {"kubevirt.io/migration-target-ready-timestamp": ready})
            await play.patch(PODS, target, [*ops, *set_metadata(target, "labels", {NODE_LABEL: node})])
            message = f"The VirtualMachineInstance migrated to node {node}."
            await play.record(event_of(vmi, "VirtualMachineInstance", "Migrated", message, "virt-handler"))
        await self._record(migration, "SuccessfulMigration", "Source node reported migration succeeded")
        await self._set(migration, phase="Succeeded", migrationState=vmi["status"]["migrationState"])

    async def _record(self, migration: Object, reason: str, message: str) -> None:
        event = event_of(migration, KIND, reason, message, "virtualmachine-controller")
        await self._play.record(event)


def _transitions(migration: Object, phase: str) -> list[Object]:
    """Return the times of all phases up to this one."""
    times = list((migration.get("status") or {}).get("phaseTransitionTimestamps") or [])
    seen = {item["phase"] for item in times}
    passed = PHASES[: PHASES.index(phase) + 1] if phase in PHASES else (phase,)
    return times + [{"phase": name, "phaseTransitionTimestamp": now()} for name in passed if name not in seen]
