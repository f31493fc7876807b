"""What a role works with: one Kubernetes client, one bus, one event recorder, telemetry and log, opened once.

:func:`open_context` opens them on the role's stack; tests assemble a :class:`RoleContext` of their own. A role's
adapters (CRI, network namespaces, guests) are not part of it: each role opens its own. The multus daemon has no
context, because it never uses the bus. Next: a role's ``__main__.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.bus.encoding import NO_NODE
from services.common.bus.nats.jetstream import connect
from services.common.bus.protocol import Bus
from services.common.kube.client import Kube
from services.common.kube.denials import Denials
from services.common.kube.event_recorder import EventRecorder
from services.common.runtime.process import RoleRuntime
from services.common.runtime.recording_bus import RecordingBus
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log

PERMISSIONS = "permissions"
"""The condition of ``/readyz``: not met while the API server forbids what the role reads."""
BUS = "bus"
"""The note of ``/readyz``: why NATS cannot be used. It is no condition, because a role works without NATS."""


@dataclass(frozen=True, slots=True)
class RoleContext:
    """The clients of one role.

    :ivar role: name of the role.
    :ivar node: Kubernetes node of the role; ``_`` for a role of the cluster.
    :ivar bus: records a Kubernetes Event for each stage that it publishes.
    :ivar events: recorder of further Events.
    :ivar denials: what the API server forbids the role to read.
    """

    role: str
    node: str
    kube: Kube
    bus: Bus
    events: EventRecorder
    telemetry: Telemetry
    log: Log
    denials: Denials = field(default_factory=Denials)


async def open_context(
    runtime: RoleRuntime[Any], *, node: str = NO_NODE, on_denied: Callable[[bool, str], None] | None = None
) -> RoleContext:
    """Open the clients of a role; ``runtime.stack`` closes them at shutdown.

    The bus connects in the background: a role starts without NATS.

    :param on_denied: as in :class:`services.common.kube.denials.Denials`; by default it sets :data:`PERMISSIONS`.
    :raises KubeconfigError: there is no usable configuration.
    """
    role, settings, telemetry, log = runtime.role, runtime.settings, runtime.telemetry, runtime.log
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=telemetry, user_agent=f"hotnic-{role}")
    runtime.stack.push_async_callback(kube.close)
    events = EventRecorder(kube, role, log=log, node=node, meter=telemetry.meter)
    connection = await connect(
        settings.nats_url,
        role=role,
        node=node,
        telemetry=telemetry,
        log=log,
        on_state=lambda why: runtime.readiness.note(BUS, why),
    )
    bus = RecordingBus(connection, events)
    runtime.stack.push_async_callback(bus.close)
    denials = Denials(on_denied or (lambda ok, why: runtime.readiness.set(PERMISSIONS, ok, why)))
    return RoleContext(role, node, kube, bus, events, telemetry, log, denials)
