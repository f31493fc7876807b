"""Publish the stages that KubeVirt brings an interface to, while it owns the VMs: once for each operation and pod.

A stage is published when it is seen to be reached. The span of an event lasts from the time at which the role saw that
the step was due to the time at which it saw the outcome; it is marked, because nobody of hotnic did the work.
What was complete before this process looked is not published again, unless it is new: a VM at rest causes no event
after a restart.
Not the decision what is reached: :mod:`services.controller.plan.observed_stages`.
"""

import datetime
import time
from collections.abc import Callable, Iterable

import msgspec

from schemas.stages import Stage
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import context_of
from services.common.telemetry.stores import Bounded
from services.controller.plan.observed_stages import ObservedEvent, ObservedStage

OBSERVED = "hotnic.observed"
"""Attribute of a span about what somebody else did."""
RECENT = 60.0
"""Seconds after its request in which an operation counts as new to a process that has just started.

The process before it may have published a stage of that time. Of two events, receivers keep the earlier time.
"""
MAX_STAGES = 16384
"""Number of remembered stages of operations; of a dropped one an event may be missing."""

_SPANS = {
    Stage.POD_ANNOTATED: "kubevirt annotate",
    Stage.MULTUS_ATTACHED: "multus attach",
    Stage.GUEST_ATTACHED: "kubevirt attach",
    Stage.GUEST_DETACHED: "kubevirt detach",
}

_StageKey = tuple[str, Stage]


class _Progress(msgspec.Struct, frozen=True):
    """What is known of one stage of an operation.

    :ivar pod: UID of the acting pod.
    :ivar since: when the step was seen to be due, nanoseconds of the wall clock.
    :ivar due: whether it was; otherwise an earlier step is missing.
    :ivar reached: whether the stage is reached and published.
    """

    pod: str
    since: int
    due: bool
    reached: bool = False


class ObservedStages:
    """Follows the stages of operations that KubeVirt carries out.

    :param clock: returns the wall clock in nanoseconds.
    """

    def __init__(self, context: RoleContext, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._bus = context.bus
        self._tracer = context.telemetry.tracer
        self._clock = clock
        self._stages: Bounded[_StageKey, _Progress] = Bounded("observed-stages", MAX_STAGES)

    async def follow(self, stages: Iterable[ObservedStage]) -> None:
        """Note stages of operations; publish the event of each that is reached for the first time."""
        for stage in stages:
            await self._follow(stage)

    async def _follow(self, stage: ObservedStage) -> None:
        event = stage.event
        key, pod = (event.operation.id, event.stage), event.pod.uid if event.pod is not None else ""
        known, now = self._stages.get(key), self._clock()
        if known is not None and known.reached and known.pod != pod:
            # A migration: what the first pod had reached begins again.
            known = None
        if known is not None and known.reached:
            return
        if not stage.reached:
            # A step that the first pod was waiting for may be done by a migration.
            if known is None or not known.due:
                self._stages[key] = _Progress(pod, now, stage.due)
            return
        since = known.since if known is not None else self._requested(event, now)
        self._stages[key] = _Progress(pod, since or now, stage.due, reached=True)
        if since is not None:
            await self._publish(event, since)

    @staticmethod
    def _requested(event: ObservedEvent, now: int) -> int | None:
        """Return when a recent operation was requested; ``None`` if it is older, or its time is unknown."""
        try:
            requested = datetime.datetime.fromisoformat(event.operation.requested_at or "").timestamp()
        except ValueError:
            return None
        return min(int(requested * 1e9), now) if now / 1e9 - requested < RECENT else None

    async def _publish(self, event: ObservedEvent, since: int) -> None:
        with self._tracer.start_as_current_span(
            f"{_SPANS[event.stage]} {event.operation.interface}",
            context=context_of(event.operation.traceparent),
            start_time=since,
            attributes={
                OBSERVED: True,
                "hotnic.interface": event.operation.interface,
                "hotnic.operation.id": event.operation.id,
            },
        ):
            await self._bus.publish(event)
