"""The metrics that all roles share, each defined once: name, unit, labels.

Names are the ones Prometheus shows. Not a registry: that is :mod:`services.common.telemetry.setup`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from schemas.events import Event, Failed

STAGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds: from a hop of a few milliseconds to a plug that waited for a person."""


class Metrics:
    """The shared instruments of one process.

    * ``hotnic_stage_seconds{stage,kind}``: from the request to the stage.
    * ``hotnic_failures_total{stage,reason}``: failed attempts, by the stage that was to be reached.
    * ``hotnic_bus_redeliveries_total{consumer}``, ``hotnic_bus_dropped_total``,
      ``hotnic_dead_letters_total{reason}``, ``hotnic_bus_up``: the bus.
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
        self._dead_letters = meter.create_counter("hotnic_dead_letters", description="Messages put aside as unusable")
        self._dropped = meter.create_counter(
            "hotnic_bus_dropped", description="Events dropped because the bus was away for too long"
        )
        self._bus_up = 0
        meter.create_observable_gauge(
            "hotnic_bus_up", callbacks=[self._observe_bus], description="1 while the bus is connected"
        )

    def _observe_bus(self, _options: CallbackOptions) -> Iterable[Observation]:
        return (Observation(self._bus_up),)

    def published(self, event: Event, *, now: datetime | None = None) -> None:
        """Count what an event says: a failure by its reason, any other stage by its latency.

        A request without a readable time stamp has no latency and is not counted.
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
        # A clock that is behind the requester's would make this negative.
        self._stage_seconds.record(max(0.0, seconds), {"stage": str(event.stage), "kind": str(event.operation.kind)})

    def redelivered(self, consumer: str) -> None:
        """A message came again."""
        self._redeliveries.add(1, {"consumer": consumer})

    def dead_letter(self, reason: str) -> None:
        """A message was put aside; ``reason`` is CamelCase."""
        self._dead_letters.add(1, {"reason": reason})

    def dropped(self) -> None:
        """The buffer of events that wait for the bus was full; the oldest went."""
        self._dropped.add(1)

    def bus_up(self, up: bool) -> None:
        """The bus was reached or lost."""
        self._bus_up = int(up)
