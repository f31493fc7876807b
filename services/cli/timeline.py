"""The time line of a VM's operations: one line for each event, from the bus or from Kubernetes Events. Pure.

Who fetches them: :mod:`services.cli.events`.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from schemas.events import Failed, decode
from services.cli.output import NONE
from services.common.bus.envelope import BusMessage
from services.common.domain.kubernetes_events import INTERFACE, KIND, OPERATION, STAGE, TRACE

COLUMNS = ("TIME", "INTERFACE", "KIND", "STAGE", "ATTEMPT", "BY", "OPERATION", "TRACE", "MESSAGE")
_OURS = "hotnic-"


class Line(msgspec.Struct, frozen=True, rename="camel"):
    """One event; empty or ``None`` is what its source does not tell.

    :ivar time: RFC 3339. :ivar at: of ``failed``, the stage that was to be reached. :ivar by: role, and node if any.
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


def of_message(message: BusMessage) -> Line | None:
    """The line of a message of the stream; ``None`` of one that cannot be read."""
    try:
        event = decode(message.payload)
    except (ValueError, RecursionError):
        return None
    operation, headers = event.operation, message.headers
    trace = (headers.get("traceparent") or operation.traceparent or "").split("-")
    line = Line(
        time=headers.get("ce-time", ""),
        stage=str(event.stage),
        interface=operation.interface,
        kind=str(operation.kind),
        operation=operation.id,
        by=headers.get("ce-source", "").removeprefix("/hotnic/").removesuffix("/_"),
        attempt=event.attempt,
        trace_id=trace[1] if len(trace) > 1 else "",
    )
    if isinstance(event, Failed):
        told = {"reason": event.reason, "message": event.message, "at": str(event.at)}
        return msgspec.structs.replace(line, **told, retry_after=event.retry_after)
    return line


def of_event(event: dict[str, Any]) -> Line | None:
    """The line of a Kubernetes Event; ``None`` of one that none of ours wrote."""
    component = str((event.get("source") or {}).get("component") or "")
    if not component.startswith(_OURS):
        return None
    marks = event.get("metadata", {}).get("annotations") or {}
    host = str((event.get("source") or {}).get("host") or "")
    return Line(
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


def in_order(events: Iterable[dict[str, Any]]) -> list[Line]:
    """The lines of Kubernetes Events, the oldest first; of the same second, in the order of their making."""
    found = [line for event in sorted(events, key=_version) if (line := of_event(event)) is not None]
    return sorted(found, key=lambda line: line.time)


def _version(event: dict[str, Any]) -> int:
    # Opaque by contract, and only a help for people here: what is no number comes first.
    text = str(event.get("metadata", {}).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def cells(line: Line) -> list[str]:
    """A line of the table."""
    stage = f"{line.stage} ({line.at})" if line.at else line.stage
    message = ": ".join(part for part in (line.reason, line.message) if part)
    attempt = "" if line.attempt is None else str(line.attempt)
    found = (line.time, line.interface, line.kind, stage, attempt, line.by, line.operation, line.trace_id, message)
    return [" ".join(cell.split()) or NONE for cell in found]
