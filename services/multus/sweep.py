"""Undoes what no call will come for: at the daemon's start, and once a minute.

A sandbox whose network namespace is gone, whose DEL could not be finished or found no daemon, or that the container
runtime has lost, still holds leases and records; an ADD that the daemon's end cut off left half an attachment.
Everything here is in the records, nothing is guessed from links that merely look like ours.
"""

import asyncio
import time
from typing import Final, NamedTuple, Protocol

from structlog.typing import FilteringBoundLogger

from services.multus import plan
from services.multus.adoption import Adoption
from services.multus.apply import Apply
from services.multus.calls import Calls
from services.multus.errors import CniError
from services.multus.records import Records, Sandbox, State

EVERY: Final = 60.0
"""Seconds between sweeps."""
LOST_AFTER: Final = 120.0
"""Seconds since the last change of a record before the runtime's not knowing the sandbox counts: it calls ADD before it
lists a new one."""


class Runtime(Protocol):
    """The container runtime."""

    async def sandboxes(self) -> dict[str, bool] | None:
        """All sandboxes, each with whether it is ready; ``None`` when the runtime does not answer."""
        ...


class Listed(NamedTuple):
    """What the runtime knew at a moment (seconds since the epoch)."""

    at: float
    ready: dict[str, bool]


class Sweep:
    """The daemon's own tidying.

    :param runtime: ``None``: only what the records themselves show is undone.
    :ivar lost_after: :data:`LOST_AFTER`.
    """

    def __init__(
        self,
        records: Records,
        apply: Apply,
        calls: Calls,
        adoption: Adoption,
        log: FilteringBoundLogger,
        *,
        runtime: Runtime | None = None,
    ) -> None:
        self._records = records
        self._apply = apply
        self._calls = calls
        self._adoption = adoption
        self._log = log
        self._runtime = runtime
        self.lost_after = LOST_AFTER

    async def run(self) -> None:
        """Take over what multus-cni has left, then sweep until cancelled."""
        await self._adoption.all()
        while True:
            await self.once()
            await asyncio.sleep(EVERY)

    async def once(self) -> int:
        """Look at every record once; gives how many sandboxes were undone as a whole."""
        undone = 0
        ids = self._records.ids()
        listed = await self._listed() if ids else None
        for sandbox_id in ids:
            try:
                async with self._records.locked(sandbox_id):
                    self._records.settle(sandbox_id)
                    undone += await self._sweep(sandbox_id, listed)
            except CniError as error:
                self._log.warning("a sandbox is not undone yet", sandbox=sandbox_id, error=error.msg)
        return undone

    async def _listed(self) -> Listed | None:
        at = time.time()
        ready = await self._runtime.sandboxes() if self._runtime is not None else None
        return Listed(at, ready) if ready is not None else None

    async def _sweep(self, sandbox_id: str, listed: Listed | None) -> int:
        sandbox = self._records.read(sandbox_id)
        if sandbox is None:
            return 0
        why = "released" if sandbox.released else "unknown to the runtime" if self._lost(sandbox_id, listed) else ""
        if await self._apply.links(sandbox.netns) is None and not why:
            if listed is not None and listed.ready.get(sandbox_id):
                # To believe it would free the addresses of every running pod, where only a mount is missing.
                self._log.error(
                    "the network namespace of a running sandbox is not to be seen; nothing of it is undone",
                    sandbox=sandbox_id,
                    pod=str(sandbox.pod_id),
                    netns=sandbox.netns,
                )
                return 0
            why = "netns gone"
        if why:
            self._log.info("undoing what a sandbox has left", sandbox=sandbox_id, pod=str(sandbox.pod_id), why=why)
            await self._calls.remove(sandbox, sandbox.netns)
            return 1
        await self._finish(sandbox)
        return 0

    def _lost(self, sandbox_id: str, listed: Listed | None) -> bool:
        """Whether the runtime should have listed it: the record was an old one at that moment already."""
        if listed is None or sandbox_id in listed.ready:
            return False
        changed = self._records.changed_at(sandbox_id)
        return changed is not None and changed < listed.at - self.lost_after

    async def _finish(self, sandbox: Sandbox) -> None:
        """Undo attachments whose ADD was cut off: no ADD runs now, the sandbox's lock is held."""
        cut_off = [a.ifname for a in sandbox.attachments if a.state is State.ADDING]
        if cut_off:
            links = await self._apply.links(sandbox.netns)
            for action in plan.deleting(sandbox, cut_off, links, going=False):
                self._log.info("undoing an ADD that was cut off", sandbox=sandbox.sandbox_id, ifname=cut_off)
                sandbox = await self._apply.detach(sandbox, action)
