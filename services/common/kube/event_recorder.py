"""Recorder of Kubernetes Events, which ``kubectl describe`` shows below an object.

Event names are deterministic, so a role that records the same Event again (after a restart, at a resync) creates no
second one. Recording is best effort: a failure is logged and never raised, and an Event beyond the rate of its object
or namespace is dropped (:mod:`services.common.kube.event_budget`). The events of the bus are :mod:`schemas.bus.events`.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry.metrics import Meter, NoOpMeter

from schemas.bus.encoding import NO_NODE
from schemas.kubernetes.objects import EVENTS
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError
from services.common.kube.event_budget import EventBudget
from services.common.telemetry.logs import Log
from services.common.telemetry.redact import redact_text
from services.common.telemetry.stores import Bounded

MAX_MESSAGE = 1024
"""Bytes. kube-apiserver refuses longer messages (core validation ``NoteLengthLimit``)."""
MAX_NAME = 253
"""Characters of an object's name (DNS subdomain, RFC 1123)."""
DIGEST = 16
"""Characters of the hash in an Event's name."""
DEADLINE = 2.0
"""Seconds for one request; recording is best effort."""
MAX_RECORDED = 1024
"""Events that are remembered as recorded. A forgotten one costs a request, which the API server answers with 409."""


class EventRecorder:
    """Recorder of one role's Events.

    :param role: name of the role; the Events' component is ``hotnic-<role>``.
    :param node: node of the role; ``_`` for none.
    :param meter: of the counter ``hotnic_kubernetes_events_dropped_total{limit}``; ``None``: nothing is counted.
    :param budget: the rate of Events.
    """

    def __init__(
        self,
        kube: Kube,
        role: str,
        *,
        log: Log,
        node: str = NO_NODE,
        meter: Meter | None = None,
        budget: EventBudget | None = None,
    ) -> None:
        self._kube = kube
        self._log = log
        self._component = f"hotnic-{role}"
        self._host = "" if node == NO_NODE else node
        self._budget = budget or EventBudget()
        self._dropped = (meter or NoOpMeter("events")).create_counter(
            "hotnic_kubernetes_events_dropped",
            description="Events beyond the rate of an object or namespace",
        )
        self._recorded: Bounded[tuple[str, str], None] = Bounded("recorded-events", MAX_RECORDED)

    async def record(
        self,
        *,
        about: Mapping[str, str],
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        key: tuple[str, ...],
        annotations: Mapping[str, str] | None = None,
    ) -> bool:
        """Create an Event unless it exists; never raise.

        :param about: ``kind``, ``api_version``, ``namespace``, ``name``, ``uid`` of the object.
        :param reason: CamelCase.
        :param message: truncated to 1024 bytes.
        :param key: identity of the Event, such as operation, stage and reason. The Event's name is made of it and the
            object's name.
        :param annotations: annotations of the Event.
        :return: whether the Event exists now.
        """
        namespace = about.get("namespace") or "default"
        name = event_name(about["name"], key)
        if (namespace, name) in self._recorded:
            return True
        limit = self._budget.exceeded(about, namespace, reason)
        if limit is not None:
            self._dropped.add(1, {"limit": str(limit)})
            self._log.debug("event dropped", name=name, reason=reason, limit=str(limit))
            return False
        body = self._body(about, namespace, name, type, reason, message)
        if annotations:
            body["metadata"]["annotations"] = dict(annotations)
        try:
            async with asyncio.timeout(DEADLINE):
                await self._kube.create(EVENTS, namespace, body)
        except AlreadyExists:
            # Recorded before a restart of this role, or by another replica.
            pass
        except (KubeError, TimeoutError) as error:
            self._log.warning("event not recorded", name=name, reason=reason, error=str(error) or "no response in time")
            return False
        self._recorded[(namespace, name)] = None
        return True

    def _body(
        self, about: Mapping[str, str], namespace: str, name: str, type: str, reason: str, message: str
    ) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        source = {"component": self._component} | ({"host": self._host} if self._host else {})
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": about.get("api_version", ""),
                "kind": about.get("kind", ""),
                "namespace": about.get("namespace", ""),
                "name": about["name"],
                "uid": about.get("uid", ""),
            },
            "type": type,
            "reason": reason,
            "message": _truncate(redact_text(message), MAX_MESSAGE),
            "source": source,
            "reportingComponent": self._component,
            "reportingInstance": self._host or self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def event_name(name: str, key: tuple[str, ...]) -> str:
    """Return ``<name>.<hash of the key>``, a name that the API server accepts.

    A name that does not fit into 253 characters is shortened, and the hash is then of the whole name and the key.

    >>> event_name("vm1", ("op", "guest-attached", "Attached"))
    'vm1.e2f75606fad37d61'
    """
    shortened = name[: MAX_NAME - DIGEST - 1]
    if shortened != name:
        key = (name, *key)
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:DIGEST]
    # A label of a DNS subdomain ends with a letter or digit, also where the name is cut.
    return f"{shortened.rstrip('-.')}.{digest}"


def _truncate(text: str, limit: int) -> str:
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return raw[: limit - 3].decode(errors="ignore") + "…"
