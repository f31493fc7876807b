"""The lines of ``hotnic events``: one for each event, from a NATS message or from a Kubernetes Event.

Pure. :mod:`services.cli.commands.events` reads the events.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.bus.events import Failed
from services.cli.output import NONE
from services.common.bus.envelope import BusMessage, UnusableMessage, decode_message
from services.common.domain.status.kubernetes_events import INTERFACE, KIND, OPERATION, STAGE, TRACE

COLUMNS = ("TIME", "INTERFACE", "KIND", "STAGE", "ATTEMPT", "BY", "OPERATION", "TRACE", "MESSAGE")
_OURS = "hotnic-"


class TimelineEntry(msgspec.Struct, frozen=True, rename="camel"):
    """One event; fields that its source does not have are empty or ``None``.

    :ivar time: RFC 3339.
    :ivar by: the role that published it, with its node if it has one: ``handler/node1``.
    :ivar at: of stage ``failed``: the stage that the attempt should have reached.
    :ivar retry_after: of stage ``failed``: seconds until the next attempt.
    """

    time: str
    stage: str
    interface: str
    kind: str
    operation: str
    by: str
    reason: str = ""
    message: str = ""
    at: str = ""
    attempt: int | None = None
    retry_after: float | None = None
    trace_id: str = ""


def entry_of_message(message: BusMessage) -> TimelineEntry | None:
    """Return the entry of a NATS message; ``None`` for one that no role would use.

    Its payload or its headers may name a VM or a publisher that its subject, which NATS has permitted, does not.
    """
    try:
        event, _ = decode_message(message.subject, message.headers, message.payload)
    except UnusableMessage:
        return None
    operation, headers = event.operation, message.headers
    trace = (headers.get("traceparent") or operation.traceparent or "").split("-")
    line = TimelineEntry(
        time=headers.get("ce-time", ""),
        stage=str(event.stage),
        interface=operation.interface,
        kind=str(operation.kind),
        operation=operation.id,
        # A role that belongs to no node publishes with the node `_`.
        by=headers.get("ce-source", "").removeprefix("/hotnic/").removesuffix("/_"),
        attempt=event.attempt,
        trace_id=trace[1] if len(trace) > 1 else "",
    )
    if isinstance(event, Failed):
        failure = {"reason": event.reason, "message": event.message, "at": str(event.at)}
        return msgspec.structs.replace(line, **failure, retry_after=event.retry_after)
    return line


def entry_of_event(event: dict[str, Any]) -> TimelineEntry | None:
    """Return the entry of a Kubernetes Event; ``None`` when another component recorded it."""
    component = str((event.get("source") or {}).get("component") or "")
    if not component.startswith(_OURS):
        return None
    marks = event.get("metadata", {}).get("annotations") or {}
    host = str((event.get("source") or {}).get("host") or "")
    return TimelineEntry(
        time=str(event.get("lastTimestamp") or event.get("eventTime") or ""),
        stage=marks.get(STAGE, ""),
        interface=marks.get(INTERFACE, ""),
        kind=marks.get(KIND, ""),
        operation=marks.get(OPERATION, ""),
        by="/".join(part for part in (component.removeprefix(_OURS), host) if part),
        reason=str(event.get("reason") or ""),
        message=str(event.get("message") or ""),
        trace_id=marks.get(TRACE, ""),
    )


def entries_in_order(events: Iterable[dict[str, Any]]) -> list[TimelineEntry]:
    """Return the entries of Kubernetes Events, oldest first; those of one second in the order of their creation."""
    return sort_by_time(map(entry_of_event, sorted(events, key=_version)))


def sort_by_time(entries: Iterable[TimelineEntry | None]) -> list[TimelineEntry]:
    """Return the entries, oldest first; those of one time in the given order, without those that are ``None``.

    Roles publish in parallel, and an event that waited for NATS arrives late, so a stream is not in the order of time.
    An entry without a valid time stays behind the one before it.
    """
    timed: list[tuple[datetime, TimelineEntry]] = []
    for entry in entries:
        if entry is not None:
            before = timed[-1][0] if timed else datetime.min.replace(tzinfo=UTC)
            timed.append((_parse_time(entry.time) or before, entry))
    return [entry for _, entry in sorted(timed, key=lambda found: found[0])]


def _parse_time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _version(event: dict[str, Any]) -> int:
    # The API defines resourceVersion as opaque. Here it only affects the order of output lines.
    text = str(event.get("metadata", {}).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def cells(line: TimelineEntry) -> list[str]:
    """Return one line of the table."""
    stage = f"{line.stage} ({line.at})" if line.at else line.stage
    message = ": ".join(part for part in (line.reason, line.message) if part)
    attempt = "" if line.attempt is None else str(line.attempt)
    found = (line.time, line.interface, line.kind, stage, attempt, line.by, line.operation, line.trace_id, message)
    return [" ".join(cell.split()) or NONE for cell in found]
