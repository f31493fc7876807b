"""Deletion of attachments for which no call will come: at the daemon's start, and then once a minute.

Some sandboxes still hold leases and records although they are gone: the network namespace is gone, a DEL could not be
finished or found no daemon, or the container runtime has lost the sandbox. An ADD that the daemon's end interrupted
leaves half an attachment. The sweep acts on records only and never guesses from a link's name.
Next: :mod:`services.multus.sandboxes.adoption`, which runs before the first sweep.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, NamedTuple, Protocol

from services.common.runtime.fair_queue import FairSlots
from services.common.telemetry.logs import Log
from services.multus import plan
from services.multus.apply import Applier
from services.multus.cni.errors import CniError, combine_errors
from services.multus.records.sandbox import AttachmentState, SandboxState
from services.multus.records.store import Records
from services.multus.sandboxes.adoption import Adoption
from services.multus.sandboxes.deletion import delete_sandbox

SWEEP_INTERVAL: Final = 60.0
"""Seconds between sweeps."""
AT_ONCE: Final = 8
"""Sandboxes that are checked at the same time. One whose plugins take their whole deadline delays no other."""
LOST_AFTER: Final = 120.0
"""Seconds after the last change of a record until a sandbox missing from the runtime's list counts as lost. The runtime
calls ADD before it lists a new sandbox."""


class SandboxLister(Protocol):
    """Lists the container runtime's sandboxes."""

    async def list_sandboxes(self) -> dict[str, bool] | None:
        """Return whether each sandbox is ready, by container id; ``None`` when the runtime does not answer."""
        ...


class RuntimeListing(NamedTuple):
    """The container runtime's sandboxes at one time.

    :ivar at: the time just before the request, in seconds since the epoch.
    :ivar ready: whether each sandbox is ready, by container id.
    """

    at: float
    ready: dict[str, bool]


class Sweep:
    """Deletes what calls have left behind.

    :param records: the records.
    :param applier: runs plugins and lists links.
    :param adoption: adopts multus-cni's sandboxes at the start.
    :param log: the daemon's log.
    :param runtime: lists the runtime's sandboxes; ``None``: only what the records themselves show is deleted.
    :ivar lost_after: :data:`LOST_AFTER`.
    """

    def __init__(
        self,
        records: Records,
        applier: Applier,
        adoption: Adoption,
        log: Log,
        *,
        runtime: SandboxLister | None = None,
    ) -> None:
        self._records = records
        self._applier = applier
        self._adoption = adoption
        self._log = log
        self._runtime = runtime
        self.lost_after = LOST_AFTER

    async def run(self) -> None:
        """Adopt multus-cni's sandboxes, then sweep until cancelled."""
        await self._isolated(self._adoption.adopt_all())
        while True:
            await self._isolated(self.run_once())
            await asyncio.sleep(SWEEP_INTERVAL)

    async def _isolated(self, work: Awaitable[object]) -> None:
        """Await the work; log its failure, because the next sweep has other sandboxes to clean up."""
        try:
            await work
        except Exception as error:
            self._log.error("unexpected sweep error", exc_info=error)

    async def run_once(self) -> int:
        """Check every record once and return how many sandboxes were deleted as a whole."""
        ids = self._records.ids()
        # Listed before the records are read: a record that is written meanwhile is newer than the list.
        listing = await self._list_runtime() if ids else None
        if listing is not None:
            self._records.keep_damaged(listing.ready.keys())
        slots = FairSlots(AT_ONCE)
        return sum(await asyncio.gather(*(self._check(sandbox_id, listing, slots) for sandbox_id in ids)))

    async def _check(self, sandbox_id: str, listing: RuntimeListing | None, slots: FairSlots) -> int:
        """Check one record; return 1 if its sandbox was deleted as a whole, otherwise 0."""
        try:
            async with slots.hold(self._namespace(sandbox_id)), self._records.lock(sandbox_id):
                self._records.settle(sandbox_id)
                return await self._sweep_sandbox(sandbox_id, listing)
        except CniError as error:
            self._log.warning("sandbox cleanup failed", sandbox=sandbox_id, error=error.msg)
        except Exception as error:
            self._log.error("unexpected cleanup error", sandbox=sandbox_id, exc_info=error)
        return 0

    def _namespace(self, sandbox_id: str) -> str | None:
        # Not the whole record: all of a node's sandboxes wait for a slot at once.
        sandbox = self._records.read(sandbox_id)
        return sandbox.pod_id.namespace if sandbox is not None else None

    async def _list_runtime(self) -> RuntimeListing | None:
        at = time.time()
        ready = await self._runtime.list_sandboxes() if self._runtime is not None else None
        return RuntimeListing(at, ready) if ready is not None else None

    async def _sweep_sandbox(self, sandbox_id: str, listing: RuntimeListing | None) -> int:
        sandbox = self._records.read(sandbox_id)
        if sandbox is None:
            return 0
        reason = ""
        if sandbox.deletion_requested:
            reason = "DEL requested"
        elif self._lost(sandbox_id, listing):
            reason = "unknown to the runtime"
        if await self._applier.list_links(sandbox.netns) is None and not reason:
            if listing is not None and listing.ready.get(sandbox_id):
                # A missing mount hides the namespaces of all pods; deleting would free the addresses of running ones.
                self._log.error(
                    "network namespace of a running sandbox not visible, sandbox kept",
                    sandbox=sandbox_id,
                    pod=str(sandbox.pod_id),
                    netns=sandbox.netns,
                )
                return 0
            reason = "netns gone"
        if reason:
            self._log.info("leftover sandbox cleanup", sandbox=sandbox_id, pod=str(sandbox.pod_id), reason=reason)
            await delete_sandbox(self._applier, sandbox, sandbox.netns)
            return 1
        await self._delete_cut_off(sandbox)
        return 0

    def _lost(self, sandbox_id: str, listing: RuntimeListing | None) -> bool:
        """Return whether the runtime should have listed the sandbox: its record was old enough at that time."""
        if listing is None or sandbox_id in listing.ready:
            return False
        changed = self._records.changed_at(sandbox_id)
        return changed is not None and changed < listing.at - self.lost_after

    async def _delete_cut_off(self, sandbox: SandboxState) -> None:
        """Delete attachments whose ADD was interrupted; the sandbox's lock is held, so no ADD runs now."""
        interrupted = [a.ifname for a in sandbox.attachments if a.state is AttachmentState.ADDING]
        if interrupted:
            links = await self._applier.list_links(sandbox.netns)
            self._log.info("interrupted ADD rollback", sandbox=sandbox.sandbox_id, ifname=interrupted)
            failures: list[CniError] = []
            for ifname in reversed(interrupted):
                try:
                    actions = plan.plan_delete(sandbox, [ifname], links, deleting_sandbox=False)
                except CniError as error:
                    # Its link must stay; the other attachments need not.
                    failures.append(error)
                    continue
                failures += await self._applier.delete_attachments(sandbox, actions)
                sandbox = self._records.read(sandbox.sandbox_id) or sandbox.without_attachment(ifname)
            if failures:
                raise combine_errors(failures)
