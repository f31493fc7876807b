"""A bus that also records Kubernetes Events on the VMI: one for each stage that is published, once per transition.

With it every role records its stages in the same way (:mod:`services.common.domain.status.kubernetes_events`).
Recording is best effort and never delays the work: successes are recorded a little later, when the NIC is usually
attached, failures at once. Next: :mod:`services.common.kube.event_recorder`.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec
from opentelemetry import context as otel

from schemas.bus.events import Event, Failed, ObjectRef
from schemas.kubernetes.objects import VMIS
from services.common.bus.protocol import Bus, EventHandler, KeyValue
from services.common.domain.status.kubernetes_events import KubernetesEvent, build_kubernetes_event
from services.common.kube.event_recorder import EventRecorder
from services.common.telemetry.propagation import unrecorded
from services.common.telemetry.redact import redact_text
from services.common.telemetry.stores import STORES

SUCCESS_DELAY = 0.5
"""Seconds until a success is recorded, so that API calls for Events do not compete with the operation."""
MAX_PENDING = 1000
"""Maximum number of Events to record; beyond it the oldest is dropped."""
DRAIN_TIMEOUT = 1.0
"""Seconds for recording the pending Events at shutdown."""


class RecordingBus:
    """A bus around another bus; it records an Event for each published stage."""

    def __init__(self, bus: Bus, recorder: EventRecorder, *, success_delay: float = SUCCESS_DELAY) -> None:
        self._bus = bus
        self._recorder = recorder
        self._success_delay = success_delay
        self._pending: deque[tuple[ObjectRef, KubernetesEvent, str | None]] = deque(maxlen=MAX_PENDING)
        STORES.watch("events-to-record", self, lambda bus: len(bus._pending), MAX_PENDING)
        self._flush = asyncio.Event()
        self._recorder_task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """See :attr:`services.common.bus.protocol.Bus.connected`."""
        return self._bus.connected

    async def publish(self, event: Event) -> None:
        """See :meth:`services.common.bus.protocol.Bus.publish`; record an Event in the background."""
        if isinstance(event, Failed):
            # The text may quote what a library says of an address.
            event = msgspec.structs.replace(event, message=redact_text(event.message))
        await self._bus.publish(event)
        kubernetes_event = build_kubernetes_event(event)
        if kubernetes_event is None or event.vmi is None:
            return
        self._pending.append((event.vmi, kubernetes_event, event.operation.traceparent))
        if kubernetes_event.type == "Warning":
            self._flush.set()
        if self._recorder_task is None or self._recorder_task.done():
            self._recorder_task = asyncio.create_task(self._record_pending(), name="record-events")

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """See :meth:`services.common.bus.protocol.Bus.consume`."""
        await self._bus.consume(consumer=consumer, filters=filters, handler=handler)

    def kv(self, bucket: str) -> KeyValue:
        """See :meth:`services.common.bus.protocol.Bus.kv`."""
        return self._bus.kv(bucket)

    async def close(self) -> None:
        """See :meth:`services.common.bus.protocol.Bus.close`."""
        await self.drain()
        await self._bus.close()

    async def drain(self) -> None:
        """Record the pending Events, within a second."""
        self._flush.set()
        if self._recorder_task is not None:
            await asyncio.wait({self._recorder_task}, timeout=DRAIN_TIMEOUT)
            self._recorder_task.cancel()

    async def _record_pending(self) -> None:
        while self._pending:
            try:
                async with asyncio.timeout(self._success_delay):
                    await self._flush.wait()
            except TimeoutError:
                pass
            self._flush.clear()
            # Events that arrive during this loop wait for the next round.
            for _ in range(len(self._pending)):
                await self._record(*self._pending.popleft())

    async def _record(self, vmi: ObjectRef, kubernetes_event: KubernetesEvent, traceparent: str | None) -> None:
        # The operation's trace ends with its last stage, so recording adds no spans to it.
        token = otel.attach(unrecorded(traceparent))
        try:
            await self._recorder.record(
                about={
                    "kind": VMIS.kind,
                    "api_version": VMIS.api_version,
                    "namespace": vmi.namespace,
                    "name": vmi.name,
                    "uid": vmi.uid,
                },
                type=kubernetes_event.type,
                reason=kubernetes_event.reason,
                message=kubernetes_event.message,
                key=kubernetes_event.key,
                annotations=kubernetes_event.annotations,
            )
        finally:
            otel.detach(token)
