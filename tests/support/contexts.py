"""A role's context in tests: without exporters, on any bus."""

from typing import Any

import structlog

from schemas.bus.encoding import NO_NODE
from services.common.bus.protocol import Bus
from services.common.kube.event_recorder import EventRecorder
from services.common.runtime.context import RoleContext
from services.common.telemetry.setup import Telemetry


def role_context(role: str, kube: Any, bus: Bus, telemetry: Telemetry, *, node: str = NO_NODE) -> RoleContext:
    """Return the context of a role.

    :param kube: the client; ``None`` for a role that sends no request.
    """
    log = structlog.get_logger()
    return RoleContext(role, node, kube, bus, EventRecorder(kube, role, log=log, node=node), telemetry, log)
