"""Kubernetes Events on a pod about its sandbox's networks, with the reasons and texts of multus where it has them.

Events are written in the background so that no sandbox waits for them. Events about hot-plug are recorded by the
networks role.
"""

import asyncio
from collections.abc import Sequence

from schemas.kubernetes.objects import Pod
from services.common.kube.event_recorder import EventRecorder
from services.common.telemetry.stores import STORES
from services.multus.cni.call import PodId
from services.multus.pod.reader import pod_id
from services.multus.records.sandbox import Attachment

ADDED = "AddedInterface"
NO_NETWORK = "NoNetworkFound"
CLEANUP_FAILED = "NetworkCleanupFailed"
MAX_WRITING = 1024
"""Events that are being written. One more is dropped: the API server does not keep up."""


def added_message(attachment: Attachment) -> str:
    """Return the text for one attachment, as multus has it: ``Add net1 [10.1.1.4/24] from default/blue``."""
    ips = [ip.address for ip in attachment.result.ips] if attachment.result else []
    return f"Add {attachment.ifname} [{' '.join(ips)}] from {attachment.network}"


class PodEvents:
    """Records the Events of ``/cni`` calls and of deletions that are given up.

    :param events: the event recorder.
    """

    def __init__(self, events: EventRecorder) -> None:
        self._events = events
        self._writing: set[asyncio.Task[bool]] = set()
        STORES.watch("events-to-write", self, lambda events: len(events._writing), MAX_WRITING)

    def record_added(self, pod: Pod, sandbox_id: str, attachments: Sequence[Attachment]) -> None:
        """Record one Event per attachment. As upstream, an attachment without a link and an address gets none.

        :param pod: the pod.
        :param sandbox_id: the sandbox's container id.
        :param attachments: the attachments that were added.
        """
        for one in attachments:
            if one.result is not None and (one.result.interfaces or one.result.ips):
                self._record(pod_id(pod), "Normal", ADDED, added_message(one), (sandbox_id, one.ifname))

    def record_no_network(self, pod: Pod, sandbox_id: str, message: str) -> None:
        """Record that the pod requests a network that does not exist.

        :param pod: the pod.
        :param sandbox_id: the sandbox's container id.
        :param message: the text of the Event.
        """
        self._record(pod_id(pod), "Warning", NO_NETWORK, message, (sandbox_id, message))

    def record_cleanup_failed(self, pod: PodId, sandbox_id: str, attachment: Attachment, error: str) -> None:
        """Record that DEL is not tried again, so that what the network's plugins may hold stays there.

        :param pod: the pod.
        :param sandbox_id: the sandbox's container id.
        :param attachment: the attachment whose DEL failed.
        :param error: the error of its last DEL.
        """
        message = f"{attachment}: DEL failed and is not tried again: {error}"
        self._record(pod, "Warning", CLEANUP_FAILED, message, (sandbox_id, attachment.ifname))

    async def flush(self) -> None:
        """Wait until every Event has been written or given up."""
        while self._writing:
            await asyncio.wait(list(self._writing))

    def _record(self, pod: PodId, type_: str, reason: str, message: str, key: tuple[str, ...]) -> None:
        if len(self._writing) >= MAX_WRITING:
            return
        about = {"kind": "Pod", "api_version": "v1", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
        work = self._events.record(
            about=about,
            type="Normal" if type_ == "Normal" else "Warning",
            reason=reason,
            message=message,
            key=(*key, reason),
        )
        # The set keeps a reference: the event loop itself has only weak ones, and a task could be lost.
        task = asyncio.create_task(work, name=f"event {reason}")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
