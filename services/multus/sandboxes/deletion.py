"""DEL of a whole sandbox, with or without a record. Its links may be deleted, because the sandbox is being deleted.

A sandbox has no record if it is older than this daemon, if its record is lost, or if it is already deleted. Then the
configuration and the pod, if it still exists, show which attachments it may have.
Next: :mod:`services.multus.sandboxes.sweep`, for what is deleted without a call.
"""

from collections.abc import Sequence
from typing import Final

from services.common.telemetry.logs import Log
from services.common.telemetry.stores import Bounded
from services.multus.apply import Applier
from services.multus.cni.call import CniCall
from services.multus.cni.errors import CniError, DeadlineError, as_cni_error, combine_errors
from services.multus.observe import CallObserver
from services.multus.plan import DELETE_TRIES_OF_ADDED, DeleteUnrecorded, DesiredAttachment, plan_delete
from services.multus.pod.events import PodEvents
from services.multus.records.sandbox import SandboxState

MAX_DELETED_IDS: Final = 1024
"""How many deleted sandboxes are remembered. A runtime may request DEL more than once, and a networks controller may
send a late ADD."""


async def delete_sandbox(applier: Applier, sandbox: SandboxState, netns: str) -> None:
    """Delete every attachment of a sandbox that is being deleted. The caller holds its lock.

    :param applier: runs the plugins.
    :param sandbox: the sandbox's record.
    :param netns: path of the network namespace; empty when the runtime has closed it.
    :raises CniError: the errors of all attachments that could not be deleted; these stay in the record.
    """
    links = await applier.list_links(netns)
    failures = await applier.delete_attachments(sandbox, plan_delete(sandbox, None, links, deleting_sandbox=True))
    applier.close_netns(sandbox.netns)
    if failures:
        raise combine_errors(failures)


class UnrecordedSandboxes:
    """Deletes sandboxes without a record and remembers those that are deleted.

    :param observer: finds the attachments that a sandbox may have.
    :param applier: runs the plugins.
    :param pod_events: records Events on pods.
    :param log: the daemon's log.
    """

    def __init__(self, observer: CallObserver, applier: Applier, pod_events: PodEvents, log: Log) -> None:
        self._observer = observer
        self._applier = applier
        self._pod_events = pod_events
        self._log = log
        self._deleted: Bounded[str, None] = Bounded("deleted-sandboxes", MAX_DELETED_IDS)
        self._failed: Bounded[str, int] = Bounded("failed-deletions", MAX_DELETED_IDS)

    def __contains__(self, sandbox_id: str) -> bool:
        """Return whether the sandbox has been deleted completely."""
        return sandbox_id in self._deleted

    def mark_created(self, sandbox_id: str) -> None:
        """Forget the deletion of a sandbox that the runtime creates now."""
        self._deleted.pop(sandbox_id)

    def mark_deleted(self, sandbox_id: str) -> None:
        """Remember that a sandbox has been deleted completely."""
        self._deleted[sandbox_id] = None

    async def delete(self, call: CniCall) -> None:
        """Run DEL for every attachment that the sandbox may have, the last one first. The caller holds its lock.

        :param call: the call.
        :raises CniError: the errors of all networks whose plugins failed.
        """
        # A runtime may send DEL several times.
        if call.sandbox_id in self:
            return
        try:
            possible = await self._observer.list_possible(call)
        except Exception as error:
            # DEL succeeds nevertheless: a runtime repeats a failed DEL and does not delete the pod before (ADR 12).
            self._log.warning("networks of an unrecorded sandbox unknown", sandbox=call.sandbox_id, error=str(error))
            return
        netns = call.netns if await self._applier.list_links(call.netns) is not None else ""
        failures: list[tuple[DesiredAttachment, CniError]] = []
        for one in reversed(possible):
            action = DeleteUnrecorded(one.network, one.ifname, one.attributes, with_netns=bool(netns))
            try:
                await self._applier.delete_unrecorded(action, call.sandbox_id, netns, call.pod)
            except DeadlineError:
                # Not counted: the call had no time for the others.
                self._applier.close_netns(call.netns)
                raise
            except Exception as error:
                failures.append((one, as_cni_error(error)))
        self._applier.close_netns(call.netns)
        if failures:
            self._count_failure(call, failures)
        self.mark_deleted(call.sandbox_id)

    def _count_failure(self, call: CniCall, failures: Sequence[tuple[DesiredAttachment, CniError]]) -> None:
        """Give up the failed DELs if they have failed often enough, as for a sandbox with a record.

        :raises CniError: they are to be tried again.
        """
        failed = (self._failed.pop(call.sandbox_id) or 0) + 1
        if failed < DELETE_TRIES_OF_ADDED:
            self._failed[call.sandbox_id] = failed
            raise combine_errors([error for _, error in failures])
        for one, error in failures:
            self._log.error("failed DEL given up", sandbox=call.sandbox_id, ifname=one.ifname, error=error.msg)
            if call.pod is not None:
                self._pod_events.record_cleanup_failed(call.pod, call.sandbox_id, one.attachment(), error.msg)
