"""The controller's sources and its reconcile loop: bus events, watches of VMs, VMIs and launcher pods, and the resync.

A key is the ``(namespace, name)`` of a VM and of its VMI, which have the same name.
Next: :mod:`services.controller.observe`.
"""

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from schemas.bus.encoding import CONTROLLER_CONSUMER, NO_NODE, stage_filter
from schemas.bus.events import Event
from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, VMS, Pod, VirtualMachine, VirtualMachineInstance
from schemas.stages import Stage
from services.common.bus.protocol import ReceivedEvent
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.mac_address import mac_index
from services.common.domain.operations import vmi_name_of, vmi_uids_of
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.cache.reflector import WATCH_SECONDS, Reflector
from services.common.reconcile import RESYNC_INTERVAL, Attempt, Reconciler
from services.common.runtime.context import RoleContext
from services.controller.apply import Applier
from services.controller.entries import EntryWriter
from services.controller.observe import Readers, observe
from services.controller.observed_stages import ObservedStages
from services.controller.plan import plan
from services.controller.plan.actions import Action, Observed, StartOperations, WarnUser
from services.controller.plan.observed_stages import observed_stages
from services.controller.plan.observing import EntryChanges, plan_entries
from services.controller.projector import Projector, is_made_up, publishing_node
from services.controller.resting import MEAN_REST, RestingKeys
from services.controller.shared_macs import SharedMacWarner
from services.controller.starting import Starter
from services.controller.status_bucket import RELOAD_INTERVAL

Key = tuple[str, str]

CONSUMED_STAGES = (Stage.REQUESTED, Stage.MULTUS_ATTACHED, Stage.MULTUS_DETACHED, Stage.GUEST_DETACHED)
"""The stages whose events trigger a reconcile: what the controller writes depends on what they change."""

MAX_ROUNDS = 64
"""Maximum number of plans in one reconcile, each after operations were started; more than a VM has interfaces."""


class Periods(msgspec.Struct, frozen=True):
    """What the controller repeats without a change, in seconds.

    :ivar resync: every key is reconciled that does not rest, and every status derived again that does not.
    :ivar rest: a key that rests is reconciled, and its status derived again; on average.
    :ivar reload: the hot-plug status bucket is read again.
    :ivar watch: the API server ends a watch, at least; the next one continues it.
    """

    resync: float = RESYNC_INTERVAL
    rest: float = MEAN_REST
    reload: float = RELOAD_INTERVAL
    watch: float = WATCH_SECONDS


PERIODS = Periods()


class Controller:
    """The controller: its reflectors, its queue and the reconcile of a key.

    :param is_owner: returns whether hotnic owns the VMs of this cluster; while it does not, only entries are written.
    :param is_enabled: returns whether NICs may be hot-plugged.
    :param beside: returns what KubeVirt can do while it owns the VMs; ``None`` while it does not.
    :param periods: shorter in tests of a cluster at rest.
    :ivar vms: the reflector of VMs; its caller runs it.
    :ivar vmis: the reflector of VMIs; its caller runs it.
    :ivar pods: the reflector of launcher pods; its caller runs it.
    :ivar queue: the keys to reconcile.
    :ivar projector: the writer of the hot-plug status bucket.
    """

    def __init__(
        self,
        context: RoleContext,
        *,
        is_owner: Callable[[], bool],
        is_enabled: Callable[[], bool],
        beside: Callable[[], Capabilities | None] = lambda: None,
        periods: Periods = PERIODS,
    ) -> None:
        kube, log = context.kube, context.log
        self._bus = context.bus
        self._log = log
        self._is_owner = is_owner
        self._is_enabled = is_enabled
        self._beside = beside
        self._mode: str | None = None
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        denials, watch = context.denials, periods.watch
        self.vms: Reflector[VirtualMachine] = Reflector(
            kube, VMS, on_change=self._on_change, log=log, denials=denials, index=mac_index, duration=watch
        )
        self.vmis: Reflector[VirtualMachineInstance] = Reflector(
            kube, VMIS, on_change=self._on_change, log=log, denials=denials, index=mac_index, duration=watch
        )
        # Launcher pods only: KubeVirt sets this label on them.
        self.pods: Reflector[Pod] = Reflector(
            kube,
            PODS,
            labels=CREATED_BY_LABEL,
            on_change=self._on_pod_change,
            log=log,
            denials=denials,
            index=vmi_uids_of,
            duration=watch,
        )
        self._readers = Readers(
            CachedReader(kube, VMS, self.vms), CachedReader(kube, VMIS, self.vmis), CachedReader(kube, PODS, self.pods)
        )
        self._applier = Applier(context, self._readers)
        self._starter = Starter(context, self._readers, self._applier)
        self._entries = EntryWriter(context, self._readers.vmis)
        self._stages = ObservedStages(context)
        # Of a deleted pod only the key is known.
        self._vmi_names: dict[Key, str] = {}
        self._resting = RestingKeys(self.vms, self.vmis, self.pods, mean=periods.rest)
        self.queue: Reconciler[Key] = Reconciler(
            "controller",
            self._reconcile,
            log=log,
            meter=context.telemetry.meter,
            keys=self._keys,
            rests=self._resting.rests,
            resync=periods.resync,
        )
        self._shared_macs = SharedMacWarner(context, self.vms, self.vmis)
        self.projector = Projector(
            context,
            self.vms,
            self.vmis,
            self.pods,
            beside=beside,
            reload=periods.reload,
            resync=periods.resync,
            rest=periods.rest,
        )

    async def lead(self) -> None:
        """Reconcile and project until cancelled; the controllers that do not lead only run their reflectors."""
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self.queue.run, self.consume_events, self.projector.run, self._shared_macs.queue.run):
                    group.create_task(work())
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            self._resting.clear()

    async def consume_events(self) -> None:
        """Consume bus events until cancelled."""
        filters = [stage_filter(stage) for stage in CONSUMED_STAGES]
        await self._bus.consume(consumer=CONTROLLER_CONSUMER, filters=filters, handler=self._on_event)

    def requeue_all(self) -> None:
        """Queue every key: a setting of the whole cluster has changed."""
        for key in self._keys():
            self.queue.add(key, source="watch", urgent=False)
            self.projector.requeue(key, urgent=False)

    def _on_event(self, received: ReceivedEvent) -> None:
        event: Event = received.event
        if event.vmi is None:
            return
        key = (event.vmi.namespace, event.vmi.name)
        if is_made_up(event, key, self.vmis, self.pods):
            return
        # The pod of a node's event may be made up, too, while the cache does not have it: it would be read for nothing,
        # and the event would put the controller's work into a trace of its choice.
        trusted = publishing_node(event) == NO_NODE or self._has_pod(event)
        if trusted:
            # The event may arrive before the watch delivers the object that it changed.
            self._readers.vmis.expect(*key, event.changed)
            if event.pod is not None:
                self._readers.pods.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add(key, source="bus", context=received.context if trusted else None)

    def _has_pod(self, event: Event) -> bool:
        """Return whether the cache has the pod of an event."""
        return event.pod is not None and self.pods.get(event.pod.namespace, event.pod.name) is not None

    def _on_change(self, key: Key, _object: VirtualMachine | VirtualMachineInstance | None) -> None:
        # The first lists contain every VM of the cluster. A change must not wait behind all of them.
        changed = all(cache.synced.is_set() for cache in (self.vms, self.vmis, self.pods))
        # Most changes of VMs are no hot-plugs.
        if not self._resting.rests(key):
            self.queue.add(key, source="watch", urgent=changed)
        self.projector.on_change(key, urgent=changed)
        self._shared_macs.on_change(key)

    def _on_pod_change(self, key: Key, pod: Pod | None) -> None:
        if pod is None:
            name = self._vmi_names.pop(key, None)
        elif (name := vmi_name_of(pod)) is not None:
            self._vmi_names[key] = name
        if name is not None:
            self._on_change((key[0], name), None)

    def _keys(self) -> Iterable[Key]:
        # A VM that does not run is a key, too: its template may have absent interfaces to remove.
        return {*self.vms.keys(), *self.vmis.keys()}

    def _log_mode(self, mode: str, log: Callable[..., object], **fields: str) -> None:
        """Log the mode when it changes."""
        if mode != self._mode:
            self._mode = mode
            log(mode, **fields)

    async def _reconcile(self, key: Key, attempt: Attempt) -> None:
        # KubeVirt's controllers may be started while this role runs (ADR 23).
        if self._is_owner():
            self._mode = None
            await self._reconcile_as_owner(key, attempt)
        elif (beside := self._beside()) is not None:
            self._log_mode("observing", self._log.info, reason="KubeVirt owns the VMs of this cluster")
            await self._reconcile_beside(key, beside, attempt)
        else:
            why = "KubeVirt's controllers run beside hotnic, the owner of the VMs (HOTNIC_VM_OWNER)"
            self._log_mode("reconciling paused", self._log.warning, reason=why)

    async def _reconcile_beside(self, key: Key, beside: Capabilities, attempt: Attempt) -> None:
        """Keep the entries of the operations that KubeVirt carries out, and publish what it does."""
        objects = self._resting.objects(key)
        self._resting.discard(key)
        observed = await observe(*key, self._readers, self.pods.indexed, self._is_enabled())
        if observed is None:
            return
        if observed.nics is not None:
            # Before an entry is removed: the last stage of an unplug is reached together with its end.
            await self._stages.follow(observed_stages(observed.nics))
        changes = plan_entries(observed, beside)
        if changes.added or changes.removed:
            await self._entries.write(changes, observed, attempt)
        if changes.next_orphan is not None:
            self._requeue_after(key, changes.next_orphan)
        if changes == EntryChanges() and objects.include(observed.vm, observed.vmi, observed.pod):
            self._resting.add(key, objects)

    def _requeue_after(self, key: Key, seconds: float) -> None:
        earlier = self._timers.pop(key, None)
        if earlier is not None:
            earlier.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._on_timer, key)

    def _on_timer(self, key: Key) -> None:
        del self._timers[key]
        self.queue.add(key, source="watch")

    async def _reconcile_as_owner(self, key: Key, attempt: Attempt) -> None:
        objects = self._resting.objects(key)
        self._resting.discard(key)
        observed = await observe(*key, self._readers, self.pods.indexed, self._is_enabled())
        # A round that starts operations changes the objects that the patches of the next round depend on.
        for number in range(MAX_ROUNDS):
            if observed is None:
                return
            actions = plan(observed)
            if not actions and number == 0 and objects.include(observed.vm, observed.vmi, observed.pod):
                self._resting.add(key, objects)
            observed = await self._apply_plan(actions, observed, attempt)

    async def _apply_plan(self, actions: Iterable[Action], observed: Observed, attempt: Attempt) -> Observed | None:
        """Apply one plan; return the observation to plan with next, ``None`` when the reconcile is done."""
        replan: Observed | None = None
        for action in actions:
            if isinstance(action, StartOperations):
                replan = await self._starter.start(action, observed, attempt)
            elif isinstance(action, WarnUser):
                await self._applier.warn(action, observed)
            else:
                await self._applier.patch(action, observed, attempt)
        return replan
