"""Run the loops of the played KubeVirt on an API server.

`playing` is the entry: it installs KubeVirt's objects, watches, and plays until its block ends. To read
on, start at `versions.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.kubevirt.installation import install
from lab.kubevirt.loops.domains import DomainLoop
from lab.kubevirt.loops.migrations import MigrationLoop
from lab.kubevirt.loops.play import INSTALLATIONS, MIGRATIONS, LoopName, Play
from lab.kubevirt.loops.pods import PlayedPods
from lab.kubevirt.loops.vmis import LauncherLoop
from lab.kubevirt.loops.vms import TemplateLoop
from lab.kubevirt.loops.workloads import WorkloadLoop
from lab.kubevirt.pace import Pace
from lab.kubevirt.versions import behaviour_of
from lab.node.resources import PODS, VMIS, VMS, Key
from schemas.kubernetes.objects import Resource
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.reconcile import Reconciler
from services.common.telemetry import configure
from services.common.telemetry.logs import logger

Object = dict[str, Any]

LAUNCHERS = "kubevirt.io=virt-launcher"


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """Settings of the played KubeVirt.

    :ivar version: `1.0` to `1.9`, or a release such as `1.5.0`.
    :ivar methods: workload update methods: `LiveMigrate`, `Evict`.
    :ivar gates: feature gates.
    :ivar nodes: nodes of launcher pods, which are played, too; empty if kubelet and scheduler run them.
    :ivar grace: seconds from MigrationRequired=False to True.
    :ivar update_delay: seconds from MigrationRequired=True to the workload update.
    :ivar restart_delay: seconds until a VM whose guest ended is started again.
    """

    version: str = "1.9"
    methods: Sequence[str] = ()
    gates: Sequence[str] = ()
    nodes: tuple[str, ...] = ("kvnode1", "kvnode2")
    grace: float = 20.0
    update_delay: float = 5.0
    restart_delay: float = 12.0


class Player:
    """The loops with their watches; :func:`playing` runs one.

    :ivar play: what the loops share.
    :ivar domains: virt-handler's loop, which knows the NICs of each domain.
    """

    def __init__(self, play: Play, meter: Any) -> None:
        self.play = play
        self.domains = DomainLoop(play)
        loops: dict[LoopName, Any] = {
            "vm": TemplateLoop(play),
            "vmi": LauncherLoop(play),
            "domain": self.domains,
            "migration": MigrationLoop(play),
            "workload": WorkloadLoop(play),
            "pod": PlayedPods(play),
        }
        self._loops: dict[LoopName, Reconciler[Key]] = {
            name: Reconciler(f"kubevirt {name}", loop.reconcile, log=play.log, meter=meter, resync=3600.0)
            for name, loop in loops.items()
        }
        self._owners: dict[Key, str] = {}
        self._vms = self._reflector(VMS, self._vm_changed)
        self._vmis = self._reflector(VMIS, self._vmi_changed)
        self._pods = self._reflector(PODS, self._pod_changed, LAUNCHERS)
        self._migrations = self._reflector(MIGRATIONS, self._migration_changed)
        self._installations = self._reflector(INSTALLATIONS, self._installation_changed)
        play.trigger = self.trigger
        play.pace.released = self.trigger_all

    def trigger(self, loop: LoopName, key: Key) -> None:
        """Queue a key of a loop."""
        self._loops[loop].add(key, source="watch")

    def trigger_all(self) -> None:
        """Queue every known object, as after a step was released."""
        for key in self._vms.keys():  # noqa: SIM118
            self.trigger("vm", key)
        for key in self._vmis.keys():  # noqa: SIM118
            for loop in ("vmi", "domain", "workload"):
                self.trigger(loop, key)
        for key in self._pods.keys():  # noqa: SIM118
            self.trigger("pod", key)
        for key in self._migrations.keys():  # noqa: SIM118
            self.trigger("migration", key)

    async def run(self) -> None:
        """Watch and play until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors:
                tasks.create_task(reflector.run())
            for reflector in self._reflectors:
                await reflector.synced.wait()
            for loop in self._loops.values():
                tasks.create_task(loop.run())

    @property
    def _reflectors(self) -> tuple[Reflector[Object], ...]:
        return self._installations, self._vms, self._vmis, self._pods, self._migrations

    def _reflector(self, resource: Resource[Object], changed: Any, labels: str | None = None) -> Reflector[Object]:
        return Reflector(self.play.kube, resource, on_change=changed, log=self.play.log, labels=labels)

    def _vm_changed(self, key: Key, _vm: Object | None) -> None:
        self.trigger("vm", key)

    def _vmi_changed(self, key: Key, vmi: Object | None) -> None:
        for loop in ("vm", "vmi", "domain"):
            self.trigger(loop, key)
        state = (vmi or {}).get("status", {}).get("migrationState")
        if state or vmi is None:
            for migration, found in ((k, self._migrations.get(*k)) for k in self._migrations.keys()):  # noqa: SIM118
                if found is not None and found["spec"].get("vmiName") == key[1]:
                    self.trigger("migration", migration)

    def _pod_changed(self, key: Key, pod: Object | None) -> None:
        if pod is not None:
            owners = pod["metadata"].get("ownerReferences") or []
            self._owners[key] = next((o["name"] for o in owners if o["kind"] == "VirtualMachineInstance"), "")
        self.trigger("pod", key)
        if owner := self._owners.get(key):
            for loop in ("vmi", "domain"):
                self.trigger(loop, (key[0], owner))
            for migration in self._migrations.keys():  # noqa: SIM118
                self.trigger("migration", migration)

    def _migration_changed(self, key: Key, _migration: Object | None) -> None:
        self.trigger("migration", key)

    def _installation_changed(self, _key: Key, installation: Object | None) -> None:
        before = self.play.installation.get("spec")
        self.play.installation = installation or {}
        if self.play.installation.get("spec") != before:
            self.trigger_all()


@asynccontextmanager
async def playing(kubeconfig: Path, options: PlayOptions, pace: Pace | None = None) -> AsyncIterator[Player]:
    """Install a version of KubeVirt and play it while the block runs.

    :param kubeconfig: of KubeVirt's own account where admission is played, otherwise an administrator's.
    :raises KubeError: the API server rejected a request or did not answer.
    """
    telemetry = configure("kubevirt", environ={})
    kube = await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="hotnic-lab-kubevirt")
    try:
        node = options.nodes[0] if options.nodes else ""
        await install(kube, behaviour_of(options.version, options.gates), options.methods, options.gates, node=node)
        play = Play(
            kube,
            options.version,
            pace or Pace(),
            logger("lab.kubevirt"),
            nodes=options.nodes,
            grace=options.grace,
            update_delay=options.update_delay,
            restart_delay=options.restart_delay,
        )
        player = Player(play, telemetry.meter)
        task = asyncio.create_task(player.run(), name="kubevirt")
        try:
            yield player
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    finally:
        await kube.close()
        telemetry.shutdown()
