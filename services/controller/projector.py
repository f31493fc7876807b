"""The projector: keeps the ladder's bucket in step with objects and events. The leader's, and the only writer.

Apart from the controller's own queue, so that no effect ever waits for the bus. It reads caches alone: what they lack
the watch brings, and then it looks again. The folds: :mod:`services.common.domain.hotplug_status` (objects),
:mod:`services.common.domain.stage_history` (events). Next: :mod:`services.controller.status_bucket`.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Protocol, TypeVar

from opentelemetry.metrics import CallbackOptions, Observation

from schemas.encoding import SUBJECT_ROOT, StatusKey, parse_status_key
from schemas.hotplug_status import BUCKET, InterfaceHotplugStatus, StageHistory, encode, entry_of
from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash
from services.common.bus.protocol import Bus, BusUnavailable, Received, WrongRevision
from services.common.domain.hotplug_status import fold
from services.common.domain.operations import acting_pod
from services.common.domain.stage_history import entry, history_of, merge
from services.common.logs import Log
from services.common.reconcile import Attempt, Reconciler, Reject, Retry
from services.common.telemetry import Telemetry
from services.controller.status_bucket import RELOAD, Mirror

Key = tuple[str, str]
T_co = TypeVar("T_co", covariant=True)

CONSUMER = "projector"
SETTLE = 0.05
"""Seconds that news are gathered for before the ladder is written: a plug is quicker than its story."""
REMEMBERED = 8192
"""Operations (on one pod each) whose events are remembered; what is forgotten becomes unknown."""


class Cache(Protocol[T_co]):
    """What a reflector offers."""

    def get(self, namespace: str, name: str) -> T_co | None:
        """An object as last seen."""
        ...

    def items(self) -> Iterable[T_co]:
        """All of them."""
        ...

    def keys(self) -> Iterable[Key]:
        """Their keys."""
        ...


class Projector:
    """See the module."""

    def __init__(
        self,
        bus: Bus,
        vms: Cache[VirtualMachine],
        vmis: Cache[VirtualMachineInstance],
        pods: Cache[Pod],
        telemetry: Telemetry,
        log: Log,
        *,
        reload: float = RELOAD,
    ) -> None:
        self._bus = bus
        self._vms = vms
        self._vmis = vmis
        self._pods = pods
        self._heard: OrderedDict[tuple[str, str, str, str], StageHistory] = OrderedDict()
        self._open: dict[Key, Counter[tuple[str, str]]] = {}
        self._mirror = Mirror(bus.kv(BUCKET), self._bucket_changed, log=log, reload=reload)
        self.queue: Reconciler[Key] = Reconciler(
            CONSUMER, self._project, log=log, meter=telemetry.meter, keys=self._keys
        )
        telemetry.meter.create_observable_gauge(
            "hotnic_operations_in_flight",
            callbacks=[self._observe],
            description="Operations that are not complete, by kind and the stage they have reached",
        )

    async def run(self) -> None:
        """Keep the bucket in step until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.queue.run())
                group.create_task(self._mirror.run())
                group.create_task(self._listen())
        finally:
            self._open.clear()

    def look(self, key: Key) -> None:
        """An object of this VM has changed."""
        self.queue.add(key, source="watch")

    async def _listen(self) -> None:
        await self._bus.consume(consumer=CONSUMER, filters=[f"{SUBJECT_ROOT}.>"], handler=self._hear)

    def _hear(self, received: Received) -> None:
        event = received.event
        if event.vmi is None:
            return
        key = (event.vmi.namespace, event.vmi.name)
        told = (*key, event.operation.id, event.pod.uid if event.pod is not None else "")
        self._heard[told] = merge(self._heard.pop(told, StageHistory()), history_of(event, received.time))
        if len(self._heard) > REMEMBERED:
            self._heard.popitem(last=False)
        self.queue.add(key, source="bus")

    def _bucket_changed(self, changed: str | None) -> None:
        keys = self._keys() if changed is None else [_key_of(changed)]
        for key in keys:
            if key is not None:
                self.queue.add(key, source="bus")

    def _keys(self) -> Iterable[Key]:
        stored = (_key_of(text) for text in self._mirror.held())
        return {*self._vmis.keys(), *(key for key in stored if key is not None)}

    async def _project(self, key: Key, _attempt: Attempt) -> None:
        await asyncio.sleep(SETTLE)
        vmi = self._vmis.get(*key)
        pod = acting_pod(vmi, self._pods.items()) if vmi is not None else None
        nic_statuses: list[InterfaceHotplugStatus] = []
        if vmi is not None:
            try:
                nic_statuses = fold(vmi, pod, self._vms.get(*key))
            except ValueError as error:
                raise Reject("MalformedObject", f"{'/'.join(key)}: {error}") from error
        self._count(key, nic_statuses)
        if not self._mirror.known:
            return  # it asks for all of them when it is
        wanted = self._entries(key, vmi, pod, nic_statuses) if vmi is not None else {}
        try:
            for text, value in wanted.items():
                if self._mirror.get(text) != value:
                    await self._mirror.put(text, value)
            mine = str(StatusKey(*key, "x")).removesuffix("x")
            for text in self._mirror.held():
                if text not in wanted and text.startswith(mine):
                    await self._mirror.remove(text)
        except BusUnavailable as error:
            raise Retry("BusUnavailable", str(error)) from error
        except WrongRevision as error:
            raise Retry("HotplugStatusChanged", str(error), after=0.0) from error

    def _entries(
        self, key: Key, vmi: VirtualMachineInstance, pod: Pod | None, nic_statuses: list[InterfaceHotplugStatus]
    ) -> dict[str, bytes]:
        pod_uid = pod.metadata.uid if pod is not None else ""
        entries = {}
        for nic_status in nic_statuses:
            text = str(StatusKey(*key, interface_hash(nic_status.interface)))
            heard = self._heard.get((*key, nic_status.operation, ""), StageHistory())
            if pod_uid:
                heard = merge(heard, self._heard.get((*key, nic_status.operation, pod_uid), StageHistory()))
            before = entry_of(self._mirror.get(text))
            entries[text] = encode(entry(nic_status, vmi.metadata.uid, pod_uid, before, heard))
        return entries

    def _count(self, key: Key, nic_statuses: list[InterfaceHotplugStatus]) -> None:
        found = Counter(
            (str(nic_status.kind), str(nic_status.stage)) for nic_status in nic_statuses if not nic_status.complete
        )
        if found:
            self._open[key] = found
        else:
            self._open.pop(key, None)

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        total: Counter[tuple[str, str]] = Counter()
        for found in self._open.values():
            total.update(found)
        return [Observation(count, {"kind": kind, "stage": stage}) for (kind, stage), count in total.items()]


def _key_of(text: str) -> Key | None:
    try:
        found = parse_status_key(text)
    except ValueError:
        return None
    return (found.namespace, found.vmi)
