"""Columns of the built-in kinds, as `kubectl get` users know them (upstream: pkg/printers/internalversion)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.lab.apiserver.errors import Object

Cell = Callable[[Object, dt.datetime], Any]


@dataclass(frozen=True, slots=True)
class PrintColumn:
    """One column: its definition and how to fill a cell. Priority above 0 shows with `-o wide` only."""

    name: str
    cell: Cell
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def to_object(self) -> Object:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description or f"{self.name} of the object",
            "priority": self.priority,
        }


def age(timestamp: Any, now: dt.datetime) -> str:
    """A time as the span since then: `5s`, `3m20s`, `4h`, `2d`, … (apimachinery `HumanDuration`)."""
    try:
        then = dt.datetime.fromisoformat(timestamp)
    except (TypeError, ValueError):
        return "<unknown>"
    return human_span(int((now - then).total_seconds()))


def human_span(seconds: int) -> str:
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
    """A cell with the value at a dotted path."""
    return lambda obj, now: _at(obj, path, default)


def since(*paths: str) -> Cell:
    """A cell with the age of the first of the times that is set."""

    def cell(obj: Object, now: dt.datetime) -> str:
        for path in paths:
            if _at(obj, path):
                return age(_at(obj, path), now)
        return "<unknown>"

    return cell


NAME = PrintColumn("Name", field("metadata.name"), format="name", description="Name must be unique in its namespace.")
AGE = PrintColumn("Age", since("metadata.creationTimestamp"), description="Time since the object was created.")


def _ready(obj: Object, now: dt.datetime) -> str:
    statuses = _at(obj, "status.containerStatuses", [])
    ready = sum(bool(status.get("ready")) for status in statuses)
    return f"{ready}/{len(_at(obj, 'spec.containers', []))}"


def _restarts(obj: Object, now: dt.datetime) -> str:
    statuses = _at(obj, "status.containerStatuses", [])
    count = sum(status.get("restartCount", 0) for status in statuses)
    last = max((_at(s, "lastState.terminated.finishedAt", "") for s in statuses), default="")
    return f"{count} ({age(last, now)} ago)" if count and last else str(count)


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


def _pod_gates(obj: Object, now: dt.datetime) -> str:
    gates = _at(obj, "spec.readinessGates", [])
    if not gates:
        return "<none>"
    true = {c.get("type") for c in _at(obj, "status.conditions", []) if c.get("status") == "True"}
    return f"{sum(gate.get('conditionType') in true for gate in gates)}/{len(gates)}"


def _node_status(obj: Object, now: dt.datetime) -> str:
    ready = next((c for c in _at(obj, "status.conditions", []) if c.get("type") == "Ready"), None)
    told = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if _at(obj, "spec.unschedulable"):
        told.append("SchedulingDisabled")
    return ",".join(told)


def _node_roles(obj: Object, now: dt.datetime) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = _at(obj, "metadata.labels", {})
    return ",".join(sorted(label[len(prefix) :] for label in labels if label.startswith(prefix))) or "<none>"


def _node_address(kind: str) -> Cell:
    return lambda obj, now: next(
        (a["address"] for a in _at(obj, "status.addresses", []) if a.get("type") == kind), "<none>"
    )


def _service_ports(obj: Object, now: dt.datetime) -> str:
    told = []
    for port in _at(obj, "spec.ports", []):
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        told.append(f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(told) or "<none>"


def _selector(obj: Object, now: dt.datetime) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(_at(obj, "spec.selector", {}).items())) or "<none>"


def _endpoints(obj: Object, now: dt.datetime) -> str:
    told = [
        f"{address['ip']}:{port['port']}"
        for subset in _at(obj, "subsets", [])
        for address in subset.get("addresses") or []
        for port in subset.get("ports") or []
    ]
    more = f" + {len(told) - 3} more..." if len(told) > 3 else ""
    return ",".join(told[:3]) + more or "<none>"


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
        _wide("Nominated Node", field("status.nominatedNodeName")),
        _wide("Readiness Gates", _pod_gates),
    ),
    "/nodes": (
        NAME,
        PrintColumn("Status", _node_status),
        PrintColumn("Roles", _node_roles),
        AGE,
        PrintColumn("Version", field("status.nodeInfo.kubeletVersion", "")),
        _wide("Internal-IP", _node_address("InternalIP")),
        _wide("External-IP", _node_address("ExternalIP")),
        _wide("OS-Image", field("status.nodeInfo.osImage", "<unknown>")),
        _wide("Kernel-Version", field("status.nodeInfo.kernelVersion", "<unknown>")),
        _wide("Container-Runtime", field("status.nodeInfo.containerRuntimeVersion", "<unknown>")),
    ),
    "/namespaces": (NAME, PrintColumn("Status", field("status.phase", "")), AGE),
    "/services": (
        NAME,
        PrintColumn("Type", field("spec.type", "")),
        PrintColumn("Cluster-IP", field("spec.clusterIP")),
        PrintColumn("External-IP", field("spec.externalName")),
        PrintColumn("Port(s)", _service_ports),
        AGE,
        _wide("Selector", _selector),
    ),
    "/endpoints": (NAME, PrintColumn("Endpoints", _endpoints), AGE),
    "/configmaps": (NAME, PrintColumn("Data", _entries("data", "binaryData"), "integer"), AGE),
    "/secrets": (
        NAME,
        PrintColumn("Type", field("type", "")),
        PrintColumn("Data", _entries("data"), "integer"),
        AGE,
    ),
    "/serviceaccounts": (NAME, PrintColumn("Secrets", lambda obj, now: len(obj.get("secrets") or ())), AGE),
    "/events": (
        PrintColumn("Last Seen", since("lastTimestamp", "eventTime", "metadata.creationTimestamp")),
        PrintColumn("Type", field("type", "")),
        PrintColumn("Reason", field("reason", "")),
        PrintColumn("Object", _event_object),
        _wide("Subobject", field("involvedObject.fieldPath", "")),
        _wide("Source", _event_source),
        PrintColumn("Message", lambda obj, now: str(obj.get("message", "")).strip()),
        _wide("First Seen", since("firstTimestamp", "eventTime", "metadata.creationTimestamp")),
        _wide("Count", field("count", 1)),
        PrintColumn("Name", field("metadata.name"), format="name", priority=1),
    ),
    "coordination.k8s.io/leases": (NAME, PrintColumn("Holder", field("spec.holderIdentity", "")), AGE),
    "apiextensions.k8s.io/customresourcedefinitions": (
        NAME,
        PrintColumn("Created At", field("metadata.creationTimestamp"), "date"),
    ),
    "apiregistration.k8s.io/apiservices": (
        NAME,
        PrintColumn("Service", _service_of),
        PrintColumn("Available", _available),
        AGE,
    ),
}
