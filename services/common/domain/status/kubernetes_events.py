"""The Kubernetes Event on the VMI for a stage that was reached, or for an attempt that failed. Pure.

There is one Event per transition: the same operation, stage and reason always give the same Event.
Next: :mod:`services.common.runtime.recording_bus`, which records it.
"""

from typing import Any, Literal

import msgspec

from schemas.bus.events import Event, Failed, GuestAttached, MultusAttached, Requested
from schemas.names import pod_interface
from schemas.stages import ROWS, OperationKind, Stage

OPERATION, KIND, INTERFACE = "hotnic.io/operation-id", "hotnic.io/kind", "hotnic.io/interface"
STAGE, TRACE = "hotnic.io/stage", "hotnic.io/trace-id"
"""Annotations of such an Event, for machines."""


class KubernetesEvent(msgspec.Struct, frozen=True):
    """One Event to record.

    :ivar key: identity of the Event; equal keys are recorded once.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: tuple[str, ...]
    annotations: dict[str, str]


def build_kubernetes_event(event: Event) -> KubernetesEvent | None:
    """Return the Event for a published event; ``None`` for an ordinary pod, which has no VMI."""
    if event.vmi is None:
        return None
    operation = event.operation
    failed = isinstance(event, Failed)
    at = event.at if isinstance(event, Failed) else event.stage
    reason = event.reason if isinstance(event, Failed) else event_reason(event.stage, operation.kind)
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
        f"interface {operation.interface}: {_message_text(event)}",
        # The UID: Events of an earlier VMI of the same name may still exist.
        (operation.id, str(at), reason, event.vmi.uid),
        annotations,
    )


def event_reason(stage: Stage, kind: OperationKind) -> str:
    """Return the reason of a stage's Event, for example ``InterfaceGuestAttached``."""
    name = f"{kind}-{stage}" if stage is Stage.REQUESTED else str(stage)
    return "Interface" + "".join(word.capitalize() for word in name.split("-"))


def is_about_interface(message: str, interface: str) -> bool:
    """Return whether the message of an Event, of any component, names an interface or its pod interface."""
    # Events of other components, such as Multus, name the pod interface only.
    names = (
        f"interface {interface}:",
        f"interface {interface} ",
        f"interface {interface!r}",
        f"interface name {interface!r}",
        pod_interface(interface),
    )
    return any(name in message for name in names)


def _message_text(event: Event) -> str:
    if isinstance(event, Failed):
        return event.message or event.reason
    operation = event.operation
    if event.stage is Stage.REQUESTED:
        text = f"{operation.kind} requested"
        if operation.failed is not None:
            text += f" because the plug failed: {operation.failed}"
    else:
        text = ROWS[event.stage].fact
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
