"""The projector: writes the hot-plug status of each VM, from objects and events, to its key-value bucket.

It runs in the controller that leads and is the bucket's only writer. Beside KubeVirt it also counts the reasons and
warns of them. Its queue is not the controller's, so a reconcile never waits for the bus. It reads caches: a change that
a cache does not have yet requeues the key when the watch delivers it. Only what stands around a VM that waits for long
is read live (:mod:`services.controller.waiting`). Stages are derived in
:mod:`services.common.domain.status.hotplug_status` (objects) and
:mod:`services.common.domain.status.stage_history` (events). Next: :mod:`services.controller.status_bucket`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from opentelemetry.metrics import CallbackOptions, Observation

from schemas.bus.encoding import NO_NODE, PROJECTOR_CONSUMER, SUBJECT_ROOT, StatusKey, parse_status_key
from schemas.bus.events import Event
from schemas.bus.hotplug_status import BUCKET, InterfaceHotplugStatus, StageHistory, decode_entry, encode_entry
from schemas.bus.permissions import NODE_ROLES
from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.stages import ROWS
from services.common.bus.protocol import BusUnavailable, ReceivedEvent, WrongRevision
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.reasons import REASONS
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ
from services.common.domain.nic import VmiNics, parse_nics
from services.common.domain.operations import belongs_to, find_acting_pod, vmi_name_of
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.domain.status.stage_history import build_entry, history_of, merge
from services.common.kube.cache.cached_reader import HasMetadata, ObjectCache
from services.common.reconcile import RESYNC_INTERVAL, Attempt, Reconciler, Reject, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.stores import Bounded
from services.controller.apply import record_warning
from services.controller.plan.warnings import plan_warnings
from services.controller.resting import MEAN_REST, IndexedCache, RestingKeys
from services.controller.status_bucket import RELOAD_INTERVAL, StatusBucket
from services.controller.waiting import Waiting

Key = tuple[str, str]
HistoryKey = tuple[str, str, str, str, str]
"""Namespace, VMI, operation, UID of the pod, and the node whose roles alone may publish the events; ``_`` for any."""
T_co = TypeVar("T_co", bound=HasMetadata, covariant=True)
L = TypeVar("L", bound=Hashable)

DEBOUNCE = 0.05
"""Seconds to collect changes before a write: the stages of a plug follow each other faster than writes would."""
MAX_HISTORIES = 8192
"""Number of stage histories in memory, one for each operation and pod; times of a dropped one become unknown."""


class ListableCache(ObjectCache[T_co], Protocol[T_co]):
    """A cache whose keys can be listed, such as :class:`services.common.kube.cache.reflector.Reflector`."""

    def keys(self) -> Iterable[Key]:
        """Return the keys of all objects."""
        ...


class Projector:
    """The writer of the hot-plug status bucket.

    :param context: its bus has the events and the bucket.
    :param vms: the cache of VMs.
    :param vmis: the cache of VMIs.
    :param pods: the cache of launcher pods.
    :param beside: returns what the KubeVirt that owns the VMs can do; ``None`` where hotnic owns them.
    :param reload: seconds after which the whole bucket is read again.
    :param resync: seconds over which a resync of the statuses that do not rest is spread.
    :param rest: seconds that a status rests on average.
    :ivar queue: the VMs whose status is to be written.
    """

    def __init__(
        self,
        context: RoleContext,
        vms: ObjectCache[VirtualMachine],
        vmis: ListableCache[VirtualMachineInstance],
        pods: IndexedCache[Pod],
        *,
        beside: Callable[[], Capabilities | None] = lambda: None,
        reload: float = RELOAD_INTERVAL,
        resync: float = RESYNC_INTERVAL,
        rest: float = MEAN_REST,
    ) -> None:
        bus, log, meter = context.bus, context.log, context.telemetry.meter
        self._bus = bus
        self._vmis = vmis
        self._pods = pods
        self._beside = beside
        self._histories: Bounded[HistoryKey, StageHistory] = Bounded("stage-histories", MAX_HISTORIES)
        self._in_flight: Tally[tuple[str, str]] = Tally()
        self._reasons: Tally[str] = Tally()
        self._events = context.events
        self._waiting = Waiting(context.kube, self.requeue)
        self._bucket = StatusBucket(bus.kv(BUCKET), self._on_bucket_change, log=log, reload=reload)
        self._resting = RestingKeys(vms, vmis, pods, mean=rest)
        self.queue: Reconciler[Key] = Reconciler(
            PROJECTOR_CONSUMER,
            self._project,
            log=log,
            meter=meter,
            keys=self._keys,
            rests=self._resting.rests,
            resync=resync,
        )
        meter.create_observable_gauge(
            "hotnic_operations_in_flight",
            callbacks=[self._observe_in_flight],
            description="Operations that are not complete, by kind and the stage they have reached",
        )
        meter.create_observable_gauge(
            "hotnic_interface_reasons",
            callbacks=[self._observe_reasons],
            description="Interfaces of VMs beside KubeVirt that have a reason, by reason",
        )

    async def run(self) -> None:
        """Follow objects, events and the bucket until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.queue.run())
                group.create_task(self._bucket.run())
                group.create_task(self._consume_events())
        finally:
            # A controller that no longer leads reports no operations.
            self._in_flight.clear()
            self._reasons.clear()
            self._waiting.close()
            self._resting.clear()

    def on_change(self, key: Key, *, urgent: bool = True) -> None:
        """Queue a VM of which an object has changed, unless its status depends on nothing that did.

        :param urgent: whether it goes before those that are not.
        """
        if not self._resting.rests(key):
            self.requeue(key, urgent=urgent)

    def requeue(self, key: Key, *, urgent: bool = True) -> None:
        """Queue a VM; the parameter is that of :meth:`on_change`."""
        self.queue.add(key, source="watch", urgent=urgent)

    async def _consume_events(self) -> None:
        await self._bus.consume(consumer=PROJECTOR_CONSUMER, filters=[f"{SUBJECT_ROOT}.>"], handler=self._on_event)

    def _on_event(self, received: ReceivedEvent) -> None:
        event = received.event
        if event.vmi is None:
            return
        key = (event.vmi.namespace, event.vmi.name)
        if is_made_up(event, key, self._vmis, self._pods):
            return
        history_key = (*key, event.operation.id, event.pod.uid if event.pod is not None else "", publishing_node(event))
        self._histories[history_key] = merge(
            self._histories.get(history_key, StageHistory()), history_of(event, received.time)
        )
        self.queue.add(key, source="bus")

    def _on_bucket_change(self, changed: str | None) -> None:
        keys = self._keys() if changed is None else [_key_of(changed)]
        for key in keys:
            if key is not None:
                self.queue.add(key, source="bus", urgent=changed is not None)

    def _keys(self) -> Iterable[Key]:
        # With the keys of the bucket, so that the entries of deleted VMIs are removed.
        stored = (_key_of(f"{vmi}.x") for vmi in self._bucket.list_vmis())
        return {*self._vmis.keys(), *(key for key in stored if key is not None)}

    async def _project(self, key: Key, _attempt: Attempt) -> None:
        await asyncio.sleep(DEBOUNCE)
        objects = self._resting.objects(key)
        self._resting.discard(key)
        vm, vmi, pods = objects
        pod, beside = find_acting_pod(vmi, pods) if vmi is not None else None, self._beside()
        if vmi is None:
            self._waiting.forget(key)
        nic_statuses: list[InterfaceHotplugStatus] = []
        if vmi is not None:
            try:
                # Without the time: a message that counts seconds would be another value to write at each change.
                nic_statuses = await self._derive(key, parse_nics(vmi, pod), vm, pods, beside)
            except ValueError as error:
                raise Reject("MalformedObject", f"{'/'.join(key)}: {error}") from error
        self._count(key, nic_statuses, beside is not None)
        warnings = list(plan_warnings(nic_statuses)) if beside is not None else []
        if vm is not None:
            # Before the bucket, because the bus may be down.
            for warning in warnings:
                await record_warning(self._events, warning, vm.metadata)
        if not self._bucket.loaded:
            return  # loading the bucket queues every key
        desired = self._build_entries(key, vmi, pod, nic_statuses) if vmi is not None else {}
        try:
            for text, value in desired.items():
                if self._bucket.get(text) != value:
                    await self._bucket.put(text, value)
            # Any hash does: the part before it is that of the VMI.
            for text in self._bucket.list_keys(str(StatusKey(*key, "x")).rpartition(".")[0]):
                if text not in desired:
                    await self._bucket.remove(text)
        except BusUnavailable as error:
            raise Retry("BusUnavailable", str(error)) from error
        # The bucket has read the entry again, so the next attempt writes over the current revision.
        except WrongRevision as error:
            raise Retry("HotplugStatusChanged", str(error), after=0.0) from error
        # Recording a Warning is best effort: a resync tries again what has failed.
        if vmi is not None and not warnings:
            self._resting.add(key, objects)

    async def _derive(
        self, key: Key, nics: VmiNics, vm: VirtualMachine | None, pods: Iterable[Pod], beside: Capabilities | None
    ) -> list[InterfaceHotplugStatus]:
        found = derive_statuses(nics, vm, beside)
        launchers = [pod for pod in pods if belongs_to(pod, nics.vmi)]
        around = await self._waiting.read(key, found, nics.vmi, launchers, beside)
        return found if around is NOTHING_READ else derive_statuses(nics, vm, beside, around=around)

    def _build_entries(
        self, key: Key, vmi: VirtualMachineInstance, pod: Pod | None, nic_statuses: list[InterfaceHotplugStatus]
    ) -> dict[str, bytes]:
        pod_uid = pod.metadata.uid if pod is not None else ""
        entries = {}
        for nic_status in nic_statuses:
            text = str(StatusKey(*key, interface_hash(nic_status.interface)))
            # Events without a pod, such as `requested`, belong to the operation on whichever pod it acts.
            history = self._history(*key, nic_status.operation, "", NO_NODE)
            if pod is not None:
                # What another node says about this pod was made up there: NATS binds a node's identity to its node.
                for node in dict.fromkeys((NO_NODE, pod.spec.node_name)):
                    history = merge(history, self._history(*key, nic_status.operation, pod_uid, node))
            # Stage times from before this process started are in the stored entry only.
            stored = decode_entry(self._bucket.get(text))
            if pod is None and stored is None and history == StageHistory():
                # It would hold nothing that objects do not say, and anybody can create VMIs that never run.
                continue
            entries[text] = encode_entry(build_entry(nic_status, vmi.metadata.uid, pod_uid, stored, history))
        return entries

    def _history(self, *key: *HistoryKey) -> StageHistory:
        return self._histories.get(key, StageHistory())

    def _count(self, key: Key, nic_statuses: list[InterfaceHotplugStatus], beside: bool) -> None:
        self._in_flight.set(key, ((str(found.kind), str(found.stage)) for found in nic_statuses if not found.complete))
        # Codes of the table only, so that the number of series is bounded.
        reasons = (found.reason for found in nic_statuses if found.reason in REASONS) if beside else ()
        self._reasons.set(key, (reason for reason in reasons if reason is not None))

    def _observe_reasons(self, _options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"reason": reason}) for reason, count in self._reasons.total.items()]

    def _observe_in_flight(self, _options: CallbackOptions) -> Iterable[Observation]:
        found = self._in_flight.total.items()
        return [Observation(count, {"kind": kind, "stage": stage}) for (kind, stage), count in found]


class Tally(Generic[L]):
    """Counts labels over all VMs, without a walk over them when the sum is read.

    :ivar total: the number of times that each label is set.
    """

    def __init__(self) -> None:
        self._labels: dict[Key, Counter[L]] = {}
        self.total: Counter[L] = Counter()

    def set(self, key: Key, labels: Iterable[L]) -> None:
        """Set the labels of a VM, in place of its earlier ones."""
        before, now = self._labels.pop(key, Counter()), Counter(labels)
        if now:
            self._labels[key] = now
        self.total.update(now)
        self.total.subtract(before)
        for label in before:
            if not self.total[label]:
                del self.total[label]

    def clear(self) -> None:
        """Remove the labels of all VMs."""
        self._labels.clear()
        self.total.clear()


def publishing_node(event: Event) -> str:
    """Return the node whose roles alone may publish the event, ``_`` for an event of a role of the cluster."""
    of_node = any(publisher in NODE_ROLES for publisher in ROWS[event.stage].publishers)
    return event.node or NO_NODE if of_node else NO_NODE


def is_made_up(event: Event, key: Key, vmis: ObjectCache[VirtualMachineInstance], pods: ObjectCache[Pod]) -> bool:
    """Return whether an event is of a VMI that does not exist, or of a pod that is another node's or VMI's.

    It costs two look-ups, so that a role that floods the bus keeps no queue busy. A VMI that the caches do not have yet
    is queued when the watch delivers it; a pod that they do not have yet may be the node's.

    :param key: the VMI that the event names.
    """
    if vmis.get(*key) is None:
        return True
    node = publishing_node(event)
    if node == NO_NODE:
        return False
    pod = pods.get(event.pod.namespace, event.pod.name) if event.pod is not None else None
    return pod is not None and (pod.spec.node_name, pod.metadata.namespace, vmi_name_of(pod)) != (node, *key)


def _key_of(text: str) -> Key | None:
    try:
        found = parse_status_key(text)
    except ValueError:
        return None
    return (found.namespace, found.vmi)
