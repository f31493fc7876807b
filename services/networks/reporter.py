"""Says what became of one run over a pod's attachments: to the bus, and to people as Events on the pod.

Telling goes on beside whatever is done next, in order for each change, and is waited for at the end of the run; nothing
here can fail a change. Next: :mod:`services.networks.apply`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from schemas.events import Changed, Event, Failed, MultusAttached, MultusDetached, ObjectRef
from schemas.kube import Pod
from schemas.networks import NETWORKS
from schemas.stages import Stage
from services.networks import messages
from services.networks.failure import Failure
from services.networks.plan import Attach, Detach, Report, vmi_of
from services.networks.status import Outcome
from services.networks.tools import Tools

Note = tuple[Literal["Normal", "Warning"], str, str, tuple[str, ...]]
"""An Event on the pod: type, reason, message, and what makes it this one and no other."""


class Teller:
    """Tells of one run."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._told: list[asyncio.Task[None]] = []

    async def finished(self) -> None:
        """Wait until everything is told."""
        await asyncio.gather(*self._told)

    def attached(self, pod: Pod, action: Attach, number: int, sandbox_id: str, made: Outcome) -> None:
        """An attachment was made and written on the pod."""
        mac, ips = made.entry.mac, tuple(made.entry.ips or ())
        self._tools.log.info("attached", pod=_name(pod), link=action.link, network=action.network, mac=mac, ips=ips)
        event = MultusAttached(
            **self._about(pod, action, number), sandbox_id=sandbox_id, pod_interface=action.link, mac=mac, ips=ips
        )
        message = messages.added(pod, action.element, action.link)
        self._tell(pod, event, ("Normal", messages.ADDED, message, _done(pod, action, messages.ADDED)))

    def unheard(self, pod: Pod, action: Attach, why: Mapping[str, str]) -> None:
        """Part of what an element asks was not followed, by key."""
        if why:
            message = messages.unheard(pod, action.element, action.link, why)
            self.report(pod, Report(messages.UNHEARD, message, action.link))

    def detached(self, pod: Pod, action: Detach, number: int, sandbox_id: str) -> None:
        """An attachment was undone and struck from the pod."""
        self._tools.log.info("detached", pod=_name(pod), link=action.link, network=action.network)
        event = MultusDetached(**self._about(pod, action, number), sandbox_id=sandbox_id, pod_interface=action.link)
        message = messages.removed(pod, action.name, action.link)
        self._tell(pod, event, ("Normal", messages.REMOVED, message, _done(pod, action, messages.REMOVED)))

    def failed(self, pod: Pod, action: Attach | Detach, failure: Failure, number: int, after: float) -> None:
        """An attempt failed. One Event for each cause of an operation, however often it is tried.

        An ordinary pod has no operation: another edit is another one.
        """
        if isinstance(action, Attach):
            at, reason = Stage.MULTUS_ATTACHED, messages.ADD_FAILED
            message = messages.add_failed(pod, action.element, action.link, failure.message)
        else:
            at, reason = Stage.MULTUS_DETACHED, messages.REMOVE_FAILED
            message = messages.remove_failed(pod, action.name, action.link, failure.message)
        about = self._about(pod, action, number)
        event = Failed(**about, at=at, reason=failure.reason, message=failure.message, retry_after=after)
        edit = "" if vmi_of(pod) else pod.metadata.annotations.get(NETWORKS, "")
        self._tell(pod, event, ("Warning", reason, message, (action.operation.id, reason, failure.reason, edit)))

    def report(self, pod: Pod, report: Report) -> None:
        """Something that only the annotations' author can put right; told once."""
        key = (report.reason, report.about, report.message)
        reported = self._tools.memory.of(pod.metadata.uid).reported
        if key not in reported:
            reported.add(key)
            self._tools.log.warning("not followed", pod=_name(pod), reason=report.reason, detail=report.message)
            self._tell(pod, None, ("Warning", report.reason, report.message, (pod.metadata.uid, *key)))

    def _tell(self, pod: Pod, event: Event | None, note: Note) -> None:
        # The task takes the current span along: what is told belongs to the trace of its change.
        self._told.append(asyncio.create_task(self._send(pod, event, note)))

    async def _send(self, pod: Pod, event: Event | None, note: Note) -> None:
        if event is not None:
            await self._tools.bus.publish(event)
        meta, (kind, reason, message, key) = pod.metadata, note
        about = {"kind": "Pod", "api_version": "v1", "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        await self._tools.events.emit(about=about, type=kind, reason=reason, message=message, key=key)

    def _about(self, pod: Pod, action: Attach | Detach, number: int) -> dict[str, Any]:
        """What every event of this role says: whose NIC, where, and which version of the pod tells of it."""
        meta = pod.metadata
        return {
            "operation": action.operation,
            "vmi": vmi_of(pod),
            "pod": ObjectRef(meta.namespace, meta.name, meta.uid),
            "node": self._tools.node,
            "changed": Changed("Pod", meta.uid, meta.resource_version),
            "attempt": number,
        }


def _name(pod: Pod) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def _done(pod: Pod, action: Attach | Detach, reason: str) -> tuple[str, ...]:
    """What makes an Event of success one of its own: the operation; for an ordinary pod, which has none, the change."""
    return (action.operation.id, reason, "" if vmi_of(pod) else pod.metadata.resource_version)
