"""What the Events on a pod say of its sandbox's networks: reasons and texts as multus writes them.

Written in the background: no sandbox waits for an Event. Those about hot-plug are the networks controller's.
"""

import asyncio
from collections.abc import Sequence

from schemas.kube import Pod
from services.common.kube.event_recorder import EventRecorder
from services.multus.records import Attachment

ADDED = "AddedInterface"
NO_NETWORK = "NoNetworkFound"


def added_text(attachment: Attachment) -> str:
    """The text for one attachment, as multus phrases it: ``Add net1 [10.1.1.4/24] from default/blue``."""
    ips = [ip.address for ip in attachment.result.ips] if attachment.result else []
    return f"Add {attachment.ifname} [{' '.join(ips)}] from {attachment.network}"


class Reports:
    """The EventRecorder of ``/cni``."""

    def __init__(self, events: EventRecorder) -> None:
        self._events = events
        self._writing: set[asyncio.Task[None]] = set()

    def added(self, pod: Pod, sandbox_id: str, attachments: Sequence[Attachment]) -> None:
        """Attachments have been made; one that has neither link nor address is not worth an Event, as upstream."""
        for one in attachments:
            if one.result is not None and (one.result.interfaces or one.result.ips):
                self._emit(pod, "Normal", ADDED, added_text(one), (sandbox_id, one.ifname))

    def no_network(self, pod: Pod, sandbox_id: str, message: str) -> None:
        """The pod asks for a network that does not exist."""
        self._emit(pod, "Warning", NO_NETWORK, message, (sandbox_id, message))

    async def written(self) -> None:
        """Wait until every Event has been written, or given up."""
        while self._writing:
            await asyncio.wait(list(self._writing))

    def _emit(self, pod: Pod, type_: str, reason: str, message: str, key: tuple[str, ...]) -> None:
        meta = pod.metadata
        about = {
            "kind": "Pod",
            "api_version": "v1",
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        }
        work = self._events.emit(
            about=about,
            type="Normal" if type_ == "Normal" else "Warning",
            reason=reason,
            message=message,
            key=(*key, reason),
        )
        task = asyncio.create_task(work, name=f"event {reason}")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
