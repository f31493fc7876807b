"""Report the outcome of one run over a pod's attachments: publish to the bus and record Events on the pod.

Both happen in background tasks, so that a change never waits for them and never fails because of them. The run waits
for the tasks at its end. Next: :mod:`services.networks.apply`.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from schemas.bus.events import ChangedObject, Event, Failed, MultusAttached, MultusDetached, ObjectRef
from schemas.inputs import printable
from schemas.kubernetes.networks import NETWORKS
from schemas.kubernetes.objects import Pod
from schemas.stages import Stage
from services.common.runtime.context import RoleContext
from services.networks.multus_client import AttachmentFailure
from services.networks.plan import messages
from services.networks.plan.actions import Attach, Detach, RecordEvent
from services.networks.pod_cache import PodCache
from services.networks.status import AttachOutcome
from services.networks.vmi_operations import vmi_of

MAX_MESSAGE = 1024
"""Characters of a warning in the log."""


class PodEvent(msgspec.Struct, frozen=True):
    """A Kubernetes Event on the pod.

    :ivar type: ``Normal`` or ``Warning``.
    :ivar reason: CamelCase, see :mod:`services.networks.plan.messages`.
    :ivar message: the text for the user.
    :ivar key: the identity of the Event, from which its name is derived: it is recorded once for each key.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: tuple[str, ...]


class Reporter:
    """The reports of one run."""

    def __init__(self, context: RoleContext, cache: PodCache) -> None:
        self._context = context
        self._cache = cache
        self._tasks: list[asyncio.Task[None]] = []

    async def flush(self) -> None:
        """Wait until everything is published and recorded."""
        await asyncio.gather(*self._tasks)

    def report_attached(self, pod: Pod, action: Attach, number: int, sandbox_id: str, outcome: AttachOutcome) -> None:
        """Report an attachment that was made and written to the pod.

        :param number: the number of the attempt.
        """
        mac, ips = outcome.entry.mac, tuple(outcome.entry.ips or ())
        self._context.log.info(
            "network attached", pod=_name(pod), link=action.link, network=action.network, mac=mac, ips=ips
        )
        event = MultusAttached(
            **self._event_fields(pod, action, number),
            sandbox_id=sandbox_id,
            pod_interface=action.link,
            mac=mac,
            ips=ips,
        )
        message = messages.added(pod, action.element, action.link)
        self._publish_in_background(
            pod, event, PodEvent("Normal", messages.ADDED, message, _success_key(pod, action, messages.ADDED))
        )

    def report_ignored_settings(self, pod: Pod, action: Attach, why: Mapping[str, str]) -> None:
        """Report the settings of an element that have no effect, if there are any.

        :param why: the reason, by key of the element.
        """
        if why:
            message = messages.setting_ignored(pod, action.element, action.link, why)
            self.record_event(pod, RecordEvent(messages.SETTING_IGNORED, message, action.link))

    def report_detached(self, pod: Pod, action: Detach, number: int, sandbox_id: str) -> None:
        """Report an attachment that was undone and removed from the pod's annotations.

        :param number: the number of the attempt.
        """
        self._context.log.info("network detached", pod=_name(pod), link=action.link, network=action.network)
        event = MultusDetached(
            **self._event_fields(pod, action, number), sandbox_id=sandbox_id, pod_interface=action.link
        )
        message = messages.removed(pod, action.name, action.link)
        self._publish_in_background(
            pod, event, PodEvent("Normal", messages.REMOVED, message, _success_key(pod, action, messages.REMOVED))
        )

    def report_failure(
        self, pod: Pod, action: Attach | Detach, failure: AttachmentFailure, number: int, after: float | None
    ) -> None:
        """Report a failed attempt. All attempts of an operation that fail with the same reason record one Event.

        :param number: the number of the attempt.
        :param after: seconds until the next attempt; ``None`` if the failure is final.
        """
        if isinstance(action, Attach):
            at, reason = Stage.MULTUS_ATTACHED, messages.ADD_FAILED
            message = messages.add_failed(pod, action.element, action.link, failure.message)
        else:
            at, reason = Stage.MULTUS_DETACHED, messages.REMOVE_FAILED
            message = messages.remove_failed(pod, action.name, action.link, failure.message)
        fields = self._event_fields(pod, action, number)
        event = Failed(**fields, at=at, reason=failure.reason, message=failure.message, retry_after=after)
        # An ordinary pod has no operation of its own per edit, so the annotation distinguishes two edits.
        edit = "" if vmi_of(pod) else pod.metadata.annotations.get(NETWORKS, "")
        self._publish_in_background(
            pod, event, PodEvent("Warning", reason, message, (action.operation.id, reason, failure.reason, edit))
        )

    def record_event(self, pod: Pod, action: RecordEvent) -> None:
        """Record a warning Event about the annotations, once per pod."""
        key = (action.reason, action.subject, action.message)
        reported = self._cache.of(pod.metadata.uid).reported
        # The message may quote a whole annotation, and a pod's annotations may change without end.
        digest = hashlib.sha256("\0".join(key).encode(errors="replace")).digest()
        if digest not in reported:
            reported[digest] = None
            self._context.log.warning(
                "annotation not applied",
                pod=_name(pod),
                reason=action.reason,
                detail=printable(action.message, MAX_MESSAGE),
            )
            pod_event = PodEvent("Warning", action.reason, action.message, (pod.metadata.uid, *key))
            self._publish_in_background(pod, None, pod_event)

    def _publish_in_background(self, pod: Pod, event: Event | None, pod_event: PodEvent) -> None:
        # The task inherits the current span, so the spans of publishing belong to the trace of the change.
        self._tasks.append(asyncio.create_task(self._publish(pod, event, pod_event)))

    async def _publish(self, pod: Pod, event: Event | None, pod_event: PodEvent) -> None:
        if event is not None:
            await self._context.bus.publish(event)
        meta = pod.metadata
        about = {"kind": "Pod", "api_version": "v1", "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
        await self._context.events.record(
            about=about,
            type=pod_event.type,
            reason=pod_event.reason,
            message=pod_event.message,
            key=pod_event.key,
        )

    def _event_fields(self, pod: Pod, action: Attach | Detach, number: int) -> dict[str, Any]:
        """Return the fields that all bus events of this role have."""
        meta = pod.metadata
        return {
            "operation": action.operation,
            "vmi": vmi_of(pod),
            "pod": ObjectRef(meta.namespace, meta.name, meta.uid),
            "node": self._context.node,
            "changed": ChangedObject("Pod", meta.uid, meta.resource_version),
            "attempt": number,
        }


def _name(pod: Pod) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def _success_key(pod: Pod, action: Attach | Detach, reason: str) -> tuple[str, ...]:
    """Return the key of an Event of success: one per operation, or one per change of an ordinary pod."""
    return (action.operation.id, reason, "" if vmi_of(pod) else pod.metadata.resource_version)
