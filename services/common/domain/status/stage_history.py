"""What events add to the hot-plug status: the time of a stage, attempts, and why the next stage is not reached.

Pure. Merging is commutative, associative and idempotent, so events may be lost, repeated or reordered. The stage
itself always comes from objects (:mod:`services.common.domain.status.hotplug_status`).
"""

import datetime

import msgspec

from schemas.bus.events import Event, Failed
from schemas.bus.hotplug_status import InterfaceHotplugStatus, LastFailure, StageHistory, StageReached, StatusEntry
from schemas.stages import Stage, stage_path

MAX_MESSAGE = 1024
MAX_REASON = 64
MAX_ATTEMPT = 2**31 - 1
WAITING_PREFIX = "WaitingFor"
"""Prefix of generic reasons from objects; a reason from an event replaces them."""


def history_of(event: Event, time: str) -> StageHistory:
    """Return the history that one event reports.

    :param time: ``ce-time`` of the event; a malformed time gives no stage a time.
    """
    when = normalize_time(time)
    # Bounded like the texts, so that an entry of the bucket stays below its size limit: numbers may have 4,300 digits.
    attempt = max(0, min(event.attempt, MAX_ATTEMPT))
    if isinstance(event, Failed):
        reason, message = event.reason[:MAX_REASON], event.message[:MAX_MESSAGE]
        return StageHistory(last_failure=LastFailure(when, attempt, event.at, reason, message))
    return StageHistory({event.stage: StageReached(when, attempt)}) if when else StageHistory()


def merge(one: StageHistory, other: StageHistory) -> StageHistory:
    """Return both histories merged.

    A stage keeps its earliest time; of two failures the later one remains.
    """
    reached = dict(one.reached)
    for stage, found in other.reached.items():
        reached[stage] = min(found, reached.get(stage, found))
    failures = [last_failure for last_failure in (one.last_failure, other.last_failure) if last_failure is not None]
    # Sorted, because entries are compared as encoded: an unchanged history must not lead to a write.
    return StageHistory(dict(sorted(reached.items())), max(failures) if failures else None)


def with_history(nic_status: InterfaceHotplugStatus, history: StageHistory) -> InterfaceHotplugStatus:
    """Return the status derived from objects, completed by the history of its operation on its pod."""
    since = history.reached.get(nic_status.stage)
    last_failure = (
        history.last_failure
        if history.last_failure is not None and _is_ahead(nic_status, history.last_failure.at)
        else None
    )
    requested = normalize_time(nic_status.requested_at or "") or None
    return msgspec.structs.replace(
        nic_status,
        # The operation's annotation has the time of the request, so it is known without any event.
        since=requested if nic_status.stage is Stage.REQUESTED and requested else since.time if since else None,
        attempts=last_failure.attempt if last_failure else since.attempt if since else None,
        last_attempt=(last_failure.time or None) if last_failure else None,
        reason=last_failure.reason if last_failure and _has_generic_reason(nic_status) else nic_status.reason,
        # Objects have only the reason of a permanent failure; its message is in the event.
        message=last_failure.message
        if last_failure and (_has_generic_reason(nic_status) or nic_status.reason == last_failure.reason)
        else nic_status.message,
    )


def build_entry(
    nic_status: InterfaceHotplugStatus,
    vmi_uid: str,
    pod_uid: str,
    stored: StatusEntry | None,
    new_history: StageHistory,
) -> StatusEntry:
    """Return the entry that the bucket should hold for an interface.

    :param nic_status: derived from objects alone.
    :param stored: the entry that the bucket holds.
    :param new_history: what events have reported since.
    """
    known = matching_history(stored, nic_status, vmi_uid, pod_uid)
    if stored is not None and known is None and stored.status.operation == nic_status.operation:
        # The acting pod is a new one: stages of the old pod do not count, but the request is the same.
        requested = stored.history.reached.get(Stage.REQUESTED)
        known = StageHistory({Stage.REQUESTED: requested}) if requested else None
    history = merge(known or StageHistory(), new_history)
    return StatusEntry(vmi_uid, pod_uid, with_history(nic_status, history), history)


def matching_history(
    found: StatusEntry | None, nic_status: InterfaceHotplugStatus, vmi_uid: str, pod_uid: str
) -> StageHistory | None:
    """Return the history of an entry if it is of the same operation on the same pod, otherwise ``None``."""
    if (
        found is None
        or found.status.operation != nic_status.operation
        or found.status.interface != nic_status.interface
    ):
        return None
    return found.history if (found.vmi_uid, found.pod_uid) == (vmi_uid, pod_uid) else None


def normalize_time(time: str) -> str:
    """Return a time in UTC with milliseconds, so that text sorts by time.

    Empty if the time is malformed or has no time zone.
    """
    try:
        found = datetime.datetime.fromisoformat(time)
        if found.tzinfo is None:
            return ""
        text = found.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return ""
    return text.replace("+00:00", "Z")


def _is_ahead(nic_status: InterfaceHotplugStatus, at: Stage) -> bool:
    """Return whether the operation has still to reach a stage."""
    path = stage_path(nic_status.kind)
    return nic_status.waiting_for is not None and at in path and path.index(at) > path.index(nic_status.stage)


def _has_generic_reason(nic_status: InterfaceHotplugStatus) -> bool:
    return nic_status.reason is None or nic_status.reason.startswith(WAITING_PREFIX)
