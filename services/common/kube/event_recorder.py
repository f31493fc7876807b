"""Kubernetes EventRecorder about what a role did or could not do, as ``kubectl describe`` shows them.

Names are deterministic, so a role that does the same again (after a restart, at a resync) emits nothing twice. Best
effort: an Event that cannot be written is logged, never a reason to fail. Not the bus' events
(:mod:`schemas.events`).
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from schemas.encoding import NO_NODE
from schemas.kube import EVENTS
from services.common import faults
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists, KubeError
from services.common.logs import Log

MAX_MESSAGE = 1024
"""Bytes; kube-apiserver refuses longer ones (core validation ``NoteLengthLimit``)."""
MAX_NAME = 253
DEADLINE = 2.0
REMEMBERED = 1024


class EventRecorder:
    """Emits the EventRecorder of one role.

    :param node: where the role runs; ``_`` for none.
    """

    def __init__(self, kube: Kube, role: str, *, log: Log, node: str = NO_NODE) -> None:
        self._kube = kube
        self._log = log
        self._role = role
        self._component = f"hotnic-{role}"
        self._host = "" if node == NO_NODE else node
        self._emitted: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def emit(
        self,
        *,
        about: Mapping[str, str],
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        key: tuple[str, ...],
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Emit an Event once; never raises.

        :param about: ``kind``, ``api_version``, ``namespace``, ``name``, ``uid`` of the object.
        :param reason: CamelCase. :param message: cut at 1024 bytes.
        :param key: what makes it this Event and no other (operation, stage, reason); with the object's name it gives
            the Event's name. :param annotations: of the Event.
        """
        namespace = about.get("namespace") or "default"
        name = event_name(about["name"], key)
        if (namespace, name) in self._emitted:
            return
        body = self._body(about, namespace, name, type, reason, message)
        if annotations:
            body["metadata"]["annotations"] = dict(annotations)
        try:
            async with asyncio.timeout(DEADLINE):
                with faults.step(f"{self._role}.event"):
                    await self._kube.create(EVENTS, namespace, body)
        except AlreadyExists:
            pass
        except (KubeError, TimeoutError) as error:
            self._log.warning("event not written", name=name, reason=reason, error=str(error) or "no answer in time")
            return
        self._emitted[(namespace, name)] = None
        if len(self._emitted) > REMEMBERED:
            self._emitted.popitem(last=False)

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
            "message": _cut(message, MAX_MESSAGE),
            "source": source,
            "reportingComponent": self._component,
            "reportingInstance": self._host or self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def event_name(name: str, key: tuple[str, ...]) -> str:
    """``<name>.<hash of the key>``, the name shortened where both would not fit.

    >>> event_name("vm1", ("op", "guest-attached", "Attached"))
    'vm1.e2f75606fad37d61'
    """
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    return f"{name[: MAX_NAME - len(digest) - 1]}.{digest}"


def _cut(text: str, limit: int) -> str:
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return raw[: limit - 3].decode(errors="ignore") + "…"
