"""Printer columns of built-in kinds for `kubectl get` (upstream: pkg/printers/internalversion).

These are the kinds that a user of a lab lists. All others have the columns NAME and AGE.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.apiserver.errors import Object

Cell = Callable[[Object, dt.datetime], Any]


@dataclass(frozen=True, slots=True)
class PrintColumn:
    """A column's definition and the function that computes its cells; one above priority 0 needs `-o wide`."""

    name: str
    cell: Cell
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def to_object(self) -> Object:
        """Return the column definition of a Table."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description or f"{self.name} of the object",
            "priority": self.priority,
        }


def age(timestamp: Any, now: dt.datetime) -> str:
    """Return the time since `timestamp` as `5s`, `3m20s`, `4h`, `2d`, … (apimachinery `HumanDuration`)."""
    try:
        then = dt.datetime.fromisoformat(timestamp)
    except (TypeError, ValueError):
        return "<unknown>"
    return human_span(int((now - then).total_seconds()))


def human_span(seconds: int) -> str:
    """Return a duration in the format of apimachinery's `HumanDuration`."""
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = divmod(days, 365)
    return f"{years}y{rest}d" if years < 8 and rest else f"{years}y"


def _at(obj: Any, path: str, default: Any = None) -> Any:
    for name in path.split("."):
        obj = obj.get(name) if isinstance(obj, dict) else None
    return default if obj is None else obj


def field(path: str, default: Any = "<none>") -> Cell:
    """Return a cell function for the value at a dotted path."""
    return lambda obj, now: _at(obj, path, default)


def age_since(*paths: str) -> Cell:
    """Return a cell function for the age of the first of `paths` that is set."""

    def cell(obj: Object, now: dt.datetime) -> str:
        for path in paths:
            if _at(obj, path):
                return age(_at(obj, path), now)
        return "<unknown>"

    return cell


NAME = PrintColumn("Name", field("metadata.name"), format="name", description="Name must be unique in its namespace.")
AGE = PrintColumn("Age", age_since("metadata.creationTimestamp"), description="Time since the object was created.")


def _ready(obj: Object, now: dt.datetime) -> str:
    statuses = _at(obj, "status.containerStatuses", [])
    ready = sum(bool(status.get("ready")) for status in statuses)
    return f"{ready}/{len(_at(obj, 'spec.containers', []))}"


def _restarts(obj: Object, now: dt.datetime) -> str:
    statuses = _at(obj, "status.containerStatuses", [])
    return str(sum(status.get("restartCount", 0) for status in statuses))


def _pod_status(obj: Object, now: dt.datetime) -> str:
    reason: str = _at(obj, "status.reason") or _at(obj, "status.phase", "Unknown")
    for status in reversed(_at(obj, "status.containerStatuses", [])):
        state: Object = status.get("state") or {}
        waiting, ended = _at(state, "waiting.reason"), _at(state, "terminated")
        if waiting:
            reason = waiting
        elif ended is not None:
            signal = ended.get("signal")
            reason = ended.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{ended.get('exitCode', 0)}")
    return "Terminating" if _at(obj, "metadata.deletionTimestamp") else reason


def _node_status(obj: Object, now: dt.datetime) -> str:
    ready = next((c for c in _at(obj, "status.conditions", []) if c.get("type") == "Ready"), None)
    states = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if _at(obj, "spec.unschedulable"):
        states.append("SchedulingDisabled")
    return ",".join(states)


def _event_object(obj: Object, now: dt.datetime) -> str:
    involved = obj.get("involvedObject") or {}
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _event_source(obj: Object, now: dt.datetime) -> str:
    source = obj.get("source") or {}
    parts = [source.get("component") or obj.get("reportingComponent") or "", source.get("host") or ""]
    return ", ".join(part for part in parts if part)


def _entries(*names: str) -> Cell:
    return lambda obj, now: sum(len(obj.get(name) or {}) for name in names)


def _service_of(obj: Object, now: dt.datetime) -> str:
    service = _at(obj, "spec.service")
    return "Local" if service is None else f"{service.get('namespace')}/{service.get('name')}"


def _available(obj: Object, now: dt.datetime) -> str:
    for condition in _at(obj, "status.conditions", []):
        if condition.get("type") == "Available":
            if condition.get("status") == "True":
                return "True"
            return f"{condition.get('status')} ({condition.get('reason')})"
    return "Unknown"


def _wide(name: str, cell: Cell) -> PrintColumn:
    return PrintColumn(name, cell, priority=1)


BUILTIN_COLUMNS: dict[str, tuple[PrintColumn, ...]] = {
    "/pods": (
        NAME,
        PrintColumn("Ready", _ready),
        PrintColumn("Status", _pod_status),
        PrintColumn("Restarts", _restarts),
        AGE,
        _wide("IP", field("status.podIP")),
        _wide("Node", field("spec.nodeName")),
    ),
    "/nodes": (
        NAME,
        PrintColumn("Status", _node_status),
        AGE,
        PrintColumn("Version", field("status.nodeInfo.kubeletVersion", "")),
    ),
    "/namespaces": (NAME, PrintColumn("Status", field("status.phase", "")), AGE),
    "/configmaps": (NAME, PrintColumn("Data", _entries("data", "binaryData"), "integer"), AGE),
    "/events": (
        PrintColumn("Last Seen", age_since("lastTimestamp", "eventTime", "metadata.creationTimestamp")),
        PrintColumn("Type", field("type", "")),
        PrintColumn("Reason", field("reason", "")),
        PrintColumn("Object", _event_object),
        _wide("Source", _event_source),
        PrintColumn("Message", lambda obj, now: str(obj.get("message", "")).strip()),
    ),
    "coordination.k8s.io/leases": (NAME, PrintColumn("Holder", field("spec.holderIdentity", "")), AGE),
    "apiregistration.k8s.io/apiservices": (
        NAME,
        PrintColumn("Service", _service_of),
        PrintColumn("Available", _available),
        AGE,
    ),
}
