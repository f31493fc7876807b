"""The controller's sources and its loop: bus hints, watches of VMs, VMIs and launcher pods, and the resync.

A key is ``(namespace, name)`` of a VM and of its VMI, which are named alike. Next: :mod:`services.controller.observe`.
"""

import asyncio
from collections.abc import Callable, Iterable

from schemas.encoding import stage_filter
from schemas.events import Event
from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, VMS, Pod, VirtualMachine, VirtualMachineInstance
from schemas.stages import Stage
from services.common.bus.protocol import Bus, Received
from services.common.domain.operations import vmi_name_of
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.reflector import Reflector
from services.common.logs import Log
from services.common.reconcile import Attempt, Reconciler
from services.common.telemetry import Telemetry
from services.controller.apply import Applier
from services.controller.observe import observe
from services.controller.plan import plan
from services.controller.plan.actions import Complain, Observed, Start
from services.controller.projector import Projector
from services.controller.starting import Starter

Key = tuple[str, str]

HEARD = (Stage.REQUESTED, Stage.MULTUS_ATTACHED, Stage.MULTUS_DETACHED, Stage.GUEST_DETACHED)
"""The stages whose events ask for a look: what the controller writes depends on their effects."""

MAX_ROUNDS = 64
"""How often one run plans anew after wishes got going; more than a VM has NICs."""


class Controller:
    """One controller: its caches, its queue and what it does with a key.

    :param acting: whether hotnic owns the VMs of this cluster; while it does not, nothing is written.
    :param enabled: whether NICs may be hot-plugged.
    """

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        telemetry: Telemetry,
        log: Log,
        *,
        acting: Callable[[], bool] = lambda: True,
        enabled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._bus = bus
        self._log = log
        self._acting = acting
        self._enabled = enabled
        self._acted: bool | None = None
        self.vms: Reflector[VirtualMachine] = Reflector(kube, VMS, on_change=self._changed, log=log)
        self.vmis: Reflector[VirtualMachineInstance] = Reflector(kube, VMIS, on_change=self._changed, log=log)
        self.pods: Reflector[Pod] = Reflector(kube, PODS, labels=CREATED_BY_LABEL, on_change=self._pod_changed, log=log)
        self._fresh_vms = CachedReader(kube, VMS, self.vms)
        self._fresh_vmis = CachedReader(kube, VMIS, self.vmis)
        self._fresh_pods = CachedReader(kube, PODS, self.pods)
        events = EventRecorder(kube, "controller", log=log)
        self._apply = Applier(kube, bus, events, telemetry, self._fresh_vms, self._fresh_vmis, self._fresh_pods)
        self._start = Starter(kube, bus, telemetry, self._fresh_vms, self._fresh_vmis, self._apply)
        self.queue: Reconciler[Key] = Reconciler(
            "controller", self._reconcile, log=log, meter=telemetry.meter, keys=self._keys
        )
        self.projector = Projector(bus, self.vms, self.vmis, self.pods, telemetry, log)

    async def lead(self) -> None:
        """Do the controller's work until cancelled. Of several controllers one does; the others keep their caches."""
        async with asyncio.TaskGroup() as group:
            for work in (self.queue.run, self.listen, self.projector.run):
                group.create_task(work())

    async def listen(self) -> None:
        """Take hints from the bus until cancelled."""
        filters = [stage_filter(stage) for stage in HEARD]
        await self._bus.consume(consumer="controller", filters=filters, handler=self._heard)

    def look_at_all(self) -> None:
        """Look at everything again: what holds for the whole cluster has changed."""
        for key in self._keys():
            self.queue.add(key, source="watch")

    def _heard(self, received: Received) -> None:
        event: Event = received.event
        if event.vmi is None:
            return
        self._fresh_vmis.expect(event.vmi.namespace, event.vmi.name, event.changed)
        if event.pod is not None:
            self._fresh_pods.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add((event.vmi.namespace, event.vmi.name), source="bus", context=received.context)

    def _changed(self, key: Key, _found: VirtualMachine | VirtualMachineInstance | None) -> None:
        self.queue.add(key, source="watch")
        self.projector.look(key)

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        name = vmi_name_of(pod) if pod is not None else None
        if name is not None:
            self.queue.add((key[0], name), source="watch")
            self.projector.look((key[0], name))

    def _keys(self) -> Iterable[Key]:
        return {*self.vms.keys(), *self.vmis.keys()}

    def _acts(self) -> bool:
        acting = self._acting()
        if acting is not self._acted:
            self._acted = acting
            if not acting:
                self._log.warning("KubeVirt owns the VMs of this cluster: nothing is written (HOTNIC_VM_OWNER)")
        return acting

    async def _reconcile(self, key: Key, attempt: Attempt) -> None:
        if not self._acts():
            return
        seen = await observe(
            *key, self._fresh_vms, self._fresh_vmis, self._fresh_pods, self.pods.items(), self._enabled()
        )
        for _ in range(MAX_ROUNDS):
            if seen is None:
                return
            seen = await self._round(seen, attempt)

    async def _round(self, seen: Observed, attempt: Attempt) -> Observed | None:
        """Carry out one plan; returns what to plan on next, ``None`` when nothing is left to do now."""
        following: Observed | None = None
        for action in plan(seen):
            if isinstance(action, Start):
                following = await self._start.start(action, seen, attempt)
            elif isinstance(action, Complain):
                await self._apply.complain(action, seen)
            else:
                await self._apply.patch(action, seen, attempt)
        return following
