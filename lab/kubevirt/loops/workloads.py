"""The workload updater: migrate or evict the VMIs that need a migration, by the methods of the KubeVirt object.

Without a method that applies it does nothing, and MigrationRequired stays. Next: `pods.py`.
"""

from __future__ import annotations

from typing import Any

from lab.kubevirt import conditions
from lab.kubevirt.annotations import acting_pod
from lab.kubevirt.loops.play import INSTALLATIONS, MIGRATIONS, Play, key_of, retrying
from lab.kubevirt.objects import event_of, migration_of
from lab.node.objects import FINAL_PHASES, is_true
from lab.node.resources import PODS, VMIS, Key, find
from services.common.reconcile import Attempt

Object = dict[str, Any]

COMPONENT = "workload-update-controller"
KIND = "VirtualMachineInstance"


class WorkloadLoop:
    """Updates the workloads of VMIs."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def reconcile(self, key: Key, _attempt: Attempt) -> None:
        """Migrate or evict the VMI of `key` if it needs a migration and none runs.

        :raises Retry: an object changed meanwhile.
        """
        play = self._play
        async with retrying():
            vmi = await find(play.kube, VMIS, key)
            await self._count()
            if vmi is None or not is_true(vmi, conditions.MIGRATION_REQUIRED):
                return
            if play.pace.holds("workload-update", key[1]) or await self._migrates(key):
                return
            chosen = conditions.consequence(vmi, play.methods)
            if chosen == "nothing":
                return
            await play.pace.before("workload-update")
            if chosen == "migrate":
                created = await play.kube.create(MIGRATIONS, key[0], migration_of(vmi, "workload-update"))
                name = created["metadata"]["name"]
                await self._record(vmi, "SuccessfulCreate", f"Created Migration {name} for automated workload update")
            elif chosen == "evacuate":
                message = "Failed to evict VMI as part of automated workload update: eviction triggered an evacuation"
                await self._record(vmi, "FailedEvict", message, warning=True)
                await play.kube.create(MIGRATIONS, key[0], migration_of(vmi, "evacuation"))
            else:
                pod = acting_pod(vmi, await play.pods_of(vmi))
                if pod is not None:
                    message = "Initiated eviction of VMI as part of automated workload update: <nil>"
                    await self._record(vmi, "SuccessfulEvict", message)
                    await play.kube.delete(PODS, *key_of(pod), uid=pod["metadata"]["uid"])

    async def _migrates(self, key: Key) -> bool:
        listing = await self._play.kube.list(MIGRATIONS, key[0])
        return any(
            item["spec"].get("vmiName") == key[1] and item.get("status", {}).get("phase") not in FINAL_PHASES
            for item in listing.items
        )

    async def _count(self) -> None:
        """Write the number of VMIs that need an update to the KubeVirt object."""
        installation = self._play.installation
        if not installation:
            return
        vmis = (await self._play.kube.list(VMIS)).items
        count = sum(is_true(vmi, conditions.MIGRATION_REQUIRED) for vmi in vmis)
        found = await find(self._play.kube, INSTALLATIONS, key_of(installation))
        if found is not None:
            fields = {"outdatedVirtualMachineInstanceWorkloads": count}
            await self._play.set_status(INSTALLATIONS, found, fields, "status")

    async def _record(self, vmi: Object, reason: str, message: str, *, warning: bool = False) -> None:
        await self._play.record(event_of(vmi, KIND, reason, message, COMPONENT, warning=warning))
