"""What a Kubernetes Event on the VMI says of a stage that was reached, or of an attempt that failed. Pure.

One for each transition: the same operation, stage and reason always give the same Event. Who writes it down:
:mod:`services.common.recording_bus`.
"""

from typing import Any, Literal

import msgspec

from schemas.events import Event, Failed, GuestAttached, MultusAttached, Requested
from schemas.stages import ROWS, OperationKind, Stage

OPERATION, KIND, INTERFACE = "hotnic.io/operation-id", "hotnic.io/kind", "hotnic.io/interface"
STAGE, TRACE = "hotnic.io/stage", "hotnic.io/trace-id"
"""Annotations of such an Event, for machines."""


class KubernetesEvent(msgspec.Struct, frozen=True):
    """One Event.

    :ivar key: makes it this Event and no other.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: tuple[str, ...]
    annotations: dict[str, str]


def kubernetes_event(event: Event) -> KubernetesEvent | None:
    """What is said of an event; ``None`` of an ordinary pod's, which has no VMI."""
    if event.vmi is None:
        return None
    operation = event.operation
    failed = isinstance(event, Failed)
    at = event.at if isinstance(event, Failed) else event.stage
    reason = event.reason if isinstance(event, Failed) else reason_of(event.stage, operation.kind)
    annotations = {
        OPERATION: operation.id,
        KIND: str(operation.kind),
        INTERFACE: operation.interface,
        STAGE: str(event.stage),
    }
    trace = (operation.traceparent or "").split("-")
    if len(trace) > 1:
        annotations[TRACE] = trace[1]
    return KubernetesEvent(
        "Warning" if failed else "Normal",
        reason,
        f"interface {operation.interface}: {_said(event)}",
        (operation.id, str(at), reason, event.vmi.uid),
        annotations,
    )


def reason_of(stage: Stage, kind: OperationKind) -> str:
    """``InterfaceGuestAttached`` and the like."""
    name = f"{kind}-{stage}" if stage is Stage.REQUESTED else str(stage)
    return "Interface" + "".join(word.capitalize() for word in name.split("-"))


def _said(event: Event) -> str:
    if isinstance(event, Failed):
        return event.message or event.reason
    operation = event.operation
    if event.stage is Stage.REQUESTED:
        text = f"{operation.kind} requested"
        if operation.failed is not None:
            text += f", for its plug has failed: {operation.failed}"
    else:
        text = ROWS[event.stage].after
    details = ", ".join(str(part) for part in _details(event) if part)
    return f"{text} ({details})" if details else text


def _details(event: Event) -> list[Any]:
    match event:
        case Requested():
            return [event.network and f"network {event.network}"]
        case MultusAttached():
            return [event.pod_interface, event.mac, *event.ips]
        case GuestAttached():
            return [event.mac]
    return []
