"""What events add to the ladder: since when, at which attempt, and why a stage is not reached.

Pure. Joining is commutative, associative and idempotent, so events may come in any order, twice or not at all; the
stage itself is never theirs to say. The fold of objects is :mod:`services.common.domain.hotplug_status`.
"""

import datetime

import msgspec

from schemas.events import Event, Failed
from schemas.hotplug_status import InterfaceHotplugStatus, LastFailure, StageHistory, StageReached, StatusEntry
from schemas.stages import Stage, stage_path

MAX_MESSAGE = 1024
MAX_REASON = 64
GENERIC = "WaitingFor"
"""Beginning of the reasons that objects give when they know none; an event's is better."""


def history_of(event: Event, time: str) -> StageHistory:
    """What one event tells.

    :param time: of the event (``ce-time``). One that cannot be read makes no stage's time.
    """
    when = normal(time)
    if isinstance(event, Failed):
        reason, message = event.reason[:MAX_REASON], event.message[:MAX_MESSAGE]
        return StageHistory(last_failure=LastFailure(when, event.attempt, event.at, reason, message))
    return StageHistory({event.stage: StageReached(when, event.attempt)}) if when else StageHistory()


def merge(one: StageHistory, other: StageHistory) -> StageHistory:
    """Both. A stage was reached when it was first told; of two failures the later one counts."""
    reached = dict(one.reached)
    for stage, found in other.reached.items():
        reached[stage] = min(found, reached.get(stage, found))
    troubles = [last_failure for last_failure in (one.last_failure, other.last_failure) if last_failure is not None]
    return StageHistory(dict(sorted(reached.items())), max(troubles) if troubles else None)


def with_history(nic_status: InterfaceHotplugStatus, history: StageHistory) -> InterfaceHotplugStatus:
    """A rung as objects have it, with what events told of its operation on its pod."""
    since = history.reached.get(nic_status.stage)
    last_failure = (
        history.last_failure
        if history.last_failure is not None and _ahead(nic_status, history.last_failure.at)
        else None
    )
    requested = normal(nic_status.requested_at or "") or None
    return msgspec.structs.replace(
        nic_status,
        # The request's own time stands in the objects.
        since=requested if nic_status.stage is Stage.REQUESTED and requested else since.time if since else None,
        attempts=last_failure.attempt if last_failure else since.attempt if since else None,
        last_attempt=(last_failure.time or None) if last_failure else None,
        reason=last_failure.reason if last_failure and _unexplained(nic_status) else nic_status.reason,
        message=last_failure.message
        if last_failure and (_unexplained(nic_status) or nic_status.reason == last_failure.reason)
        else nic_status.message,
    )


def entry(
    nic_status: InterfaceHotplugStatus, vmi_uid: str, pod_uid: str, before: StatusEntry | None, heard: StageHistory
) -> StatusEntry:
    """What the bucket should hold for a NIC.

    :param nic_status: from objects alone. :param before: what it holds. :param heard: since.
    """
    known = known_of(before, nic_status, vmi_uid, pod_uid)
    if before is not None and known is None and before.status.operation == nic_status.operation:
        # Another pod: what was done to the earlier one says nothing of it, but the request is the same.
        requested = before.history.reached.get(Stage.REQUESTED)
        known = StageHistory({Stage.REQUESTED: requested}) if requested else None
    history = merge(known or StageHistory(), heard)
    return StatusEntry(vmi_uid, pod_uid, with_history(nic_status, history), history)


def known_of(
    found: StatusEntry | None, nic_status: InterfaceHotplugStatus, vmi_uid: str, pod_uid: str
) -> StageHistory | None:
    """The news of an entry, where they are of the same operation on the same pod; else ``None``."""
    if (
        found is None
        or found.status.operation != nic_status.operation
        or found.status.interface != nic_status.interface
    ):
        return None
    return found.history if (found.vmi_uid, found.pod_uid) == (vmi_uid, pod_uid) else None


def normal(time: str) -> str:
    """A time in the one form in which text sorts as time does; empty where it cannot be read or names no zone."""
    try:
        found = datetime.datetime.fromisoformat(time)
        if found.tzinfo is None:
            return ""
        text = found.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return ""
    return text.replace("+00:00", "Z")


def _ahead(nic_status: InterfaceHotplugStatus, at: Stage) -> bool:
    """Whether a stage of the rung's operation is still to come."""
    steps = stage_path(nic_status.kind)
    return nic_status.waiting_for is not None and at in steps and steps.index(at) > steps.index(nic_status.stage)


def _unexplained(nic_status: InterfaceHotplugStatus) -> bool:
    return nic_status.reason is None or nic_status.reason.startswith(GENERIC)
