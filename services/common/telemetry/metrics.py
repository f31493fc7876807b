"""Metrics that all roles share, each defined once with name, unit and labels.

Names in docstrings are those that Prometheus shows. The registry is :mod:`services.common.telemetry.setup`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from schemas.bus.events import Event, Failed
from schemas.inputs import REJECTED
from services.common.telemetry.stores import STORES

STAGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: from a hop of a few milliseconds to a plug that waited for a user."""


class Metrics:
    """The shared instruments of one process.

    * ``hotnic_stage_seconds{stage,kind}``: time from the request to the stage.
    * ``hotnic_failures_total{stage,reason}``: failed attempts, by the stage that was not reached.
    * ``hotnic_bus_redeliveries_total{consumer}``: messages that the bus delivered again.
    * ``hotnic_bus_excess_total{consumer}``: messages skipped because a node had published too many.
    * ``hotnic_bus_undelivered_total{consumer}``: messages that a consumer did not ack however often it got them.
    * ``hotnic_bus_dropped_total``: events dropped from the full publish buffer.
    * ``hotnic_bus_denials_total{operation}``: what NATS did not permit: ``publish`` or ``subscribe``.
    * ``hotnic_dead_letters_total{reason}``: dead-lettered messages.
    * ``hotnic_rejected_inputs_total{edge,reason}``: inputs from outside that could not be used.
    * ``hotnic_store_entries{store}``, ``hotnic_store_limit{store}``: :mod:`services.common.telemetry.stores`.
    * ``hotnic_bus_up``: 1 while the bus is connected. A process without a bus has no value, so that no alert counts it.
    """

    def __init__(self, meter: Meter) -> None:
        self._stage_seconds = meter.create_histogram(
            "hotnic_stage",
            unit="s",
            description="Time from the request to the stage",
            explicit_bucket_boundaries_advisory=STAGE_BUCKETS,
        )
        self._failures = meter.create_counter("hotnic_failures", description="Failed attempts")
        self._redeliveries = meter.create_counter(
            "hotnic_bus_redeliveries", description="Messages the bus delivered more than once"
        )
        self._excess = meter.create_counter(
            "hotnic_bus_excess", description="Messages skipped because their node had published too many"
        )
        self._undelivered = meter.create_counter(
            "hotnic_bus_undelivered", description="Messages that a consumer never acked"
        )
        self._dead_letters = meter.create_counter("hotnic_dead_letters", description="Messages that were dead-lettered")
        self._denials = meter.create_counter("hotnic_bus_denials", description="Requests that NATS did not permit")
        self._dropped = meter.create_counter(
            "hotnic_bus_dropped", description="Events dropped because the bus was disconnected for too long"
        )
        meter.create_observable_counter(
            "hotnic_rejected_inputs",
            callbacks=[_observe_rejected],
            description="Inputs from outside that could not be used",
        )
        meter.create_observable_gauge(
            "hotnic_store_entries", callbacks=[_observe_entries], description="Entries that the process remembers"
        )
        meter.create_observable_gauge(
            "hotnic_store_limit", callbacks=[_observe_limits], description="Entries that a store may have"
        )
        self._bus_up: int | None = None
        meter.create_observable_gauge(
            "hotnic_bus_up", callbacks=[self._observe_bus], description="1 while the bus is connected"
        )

    def _observe_bus(self, _options: CallbackOptions) -> Iterable[Observation]:
        return () if self._bus_up is None else (Observation(self._bus_up),)

    def record_published(self, event: Event, *, now: datetime | None = None) -> None:
        """Count a published event: a failure by its reason, any other stage by its latency.

        An event whose request has no valid time stamp is not counted.

        :param now: time of the event; the current time by default.
        """
        if isinstance(event, Failed):
            self._failures.add(1, {"stage": str(event.at), "reason": event.reason})
            return
        try:
            requested = datetime.fromisoformat(event.operation.requested_at or "")
        except ValueError:
            return
        if requested.tzinfo is None:
            return
        seconds = ((now or datetime.now(UTC)) - requested).total_seconds()
        # Negative if this node's clock is behind the requester's.
        self._stage_seconds.record(max(0.0, seconds), {"stage": str(event.stage), "kind": str(event.operation.kind)})

    def record_redelivery(self, consumer: str) -> None:
        """Count a redelivered message."""
        self._redeliveries.add(1, {"consumer": consumer})

    def record_excess(self, consumer: str, messages: int = 1) -> None:
        """Count messages that were skipped because a node had published too many."""
        self._excess.add(messages, {"consumer": consumer})

    def record_undelivered(self, consumer: str) -> None:
        """Count a message that the bus delivers no more.

        :param consumer: the role whose consumer it is.
        """
        self._undelivered.add(1, {"consumer": consumer})

    def record_dead_letter(self, reason: str) -> None:
        """Count a dead-lettered message.

        :param reason: CamelCase.
        """
        self._dead_letters.add(1, {"reason": reason})

    def record_dropped(self) -> None:
        """Count an event that was dropped from the full publish buffer."""
        self._dropped.add(1)

    def record_bus_denial(self, operation: str) -> None:
        """Count what NATS did not permit.

        :param operation: ``publish`` or ``subscribe``.
        """
        self._denials.add(1, {"operation": operation})

    def set_bus_up(self, up: bool) -> None:
        """Set whether the bus is connected; a process that uses the bus does so from its start."""
        self._bus_up = int(up)


def _observe_rejected(_options: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(number, {"edge": str(edge), "reason": str(reason)})
        for (edge, reason), number in REJECTED.counts().items()
    ]


def _observe_entries(_options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(size.entries, {"store": store}) for store, size in STORES.sizes().items()]


def _observe_limits(_options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(limit, {"store": store}) for store, limit in STORES.limits().items()]
