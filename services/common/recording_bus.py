"""A bus that also tells the VMI's user: what is published becomes a Kubernetes Event, once per transition.

So every role tells its stages in one way (:mod:`services.common.domain.kubernetes_events`). Best effort
and apart from the work: a
success is told a little later, when the way of its NIC is over; a failure at once.
Next: :mod:`services.common.kube.event_recorder`.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from opentelemetry import context as otel
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from schemas.events import Event, ObjectRef
from schemas.kube import VMIS
from services.common.bus.protocol import Bus, EventHandler, KeyValue
from services.common.domain.kubernetes_events import KubernetesEvent, kubernetes_event
from services.common.kube.event_recorder import EventRecorder

LATER = 0.5
"""Seconds after which a success is told: writing Events must not compete with the NIC they are about."""
WAITING = 1000
"""How many wait to be told; the oldest is dropped beyond that."""
DRAIN = 1.0
"""Seconds that a process that ends takes to tell the rest."""

_UNTRACED = set_span_in_context(
    NonRecordingSpan(SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))), otel.Context()
)
"""Telling is in nobody's trace: an operation's is over when its NIC is where it should be."""


class RecordingBus:
    """See the module."""

    def __init__(self, bus: Bus, events: EventRecorder, *, later: float = LATER) -> None:
        self._bus = bus
        self._events = events
        self._later = later
        self._waiting: deque[tuple[ObjectRef, KubernetesEvent]] = deque(maxlen=WAITING)
        self._now = asyncio.Event()
        self._teller: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """See :attr:`services.common.bus.protocol.Bus.connected`."""
        return self._bus.connected

    async def publish(self, event: Event) -> None:
        """See :meth:`services.common.bus.protocol.Bus.publish`; then tell of it, in the background."""
        await self._bus.publish(event)
        told = kubernetes_event(event)
        if told is None or event.vmi is None:
            return
        self._waiting.append((event.vmi, told))
        if told.type == "Warning":
            self._now.set()
        if self._teller is None or self._teller.done():
            self._teller = asyncio.create_task(self._tell(), name="tell")

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
        """Tell what still waits, within a second."""
        self._now.set()
        if self._teller is not None:
            await asyncio.wait({self._teller}, timeout=DRAIN)
            self._teller.cancel()

    async def _tell(self) -> None:
        while self._waiting:
            try:
                async with asyncio.timeout(self._later):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()
            for _ in range(len(self._waiting)):
                await self._emit(*self._waiting.popleft())

    async def _emit(self, vmi: ObjectRef, told: KubernetesEvent) -> None:
        token = otel.attach(_UNTRACED)
        try:
            await self._events.emit(
                about={
                    "kind": VMIS.kind,
                    "api_version": VMIS.api_version,
                    "namespace": vmi.namespace,
                    "name": vmi.name,
                    "uid": vmi.uid,
                },
                type=told.type,
                reason=told.reason,
                message=told.message,
                key=told.key,
                annotations=told.annotations,
            )
        finally:
            otel.detach(token)
