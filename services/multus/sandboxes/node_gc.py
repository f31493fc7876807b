"""GC of a node: delete the sandboxes that the runtime does not know, then run GC for the plugins of every network.

It has the time of its call, of which the sandboxes get half at most. What it does not finish, the next GC begins with.
Calls for other sandboxes run meanwhile. The CNI specification forbids GC of plugins during an ADD or DEL, so only that
excludes calls, for one network at a time. Next: :mod:`services.multus.cni.network`.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Final

from schemas import cni
from services.common.telemetry.logs import Log
from services.multus import plan
from services.multus.apply import Applier
from services.multus.cni import network
from services.multus.cni.call import CniCall
from services.multus.cni.conflist import NetworkConfig
from services.multus.cni.errors import CniError, DeadlineError, as_cni_error
from services.multus.cni.executor import Executor, seconds_left, time_limit
from services.multus.observe import CallObserver
from services.multus.records.sandbox import SandboxState
from services.multus.records.store import Records
from services.multus.sandboxes.deletion import delete_sandbox

NETWORK_TIME: Final = 20.0
"""Seconds for the plugins of one network: no other call runs meanwhile."""

NetworkKey = tuple[str, str]
"""Name and configuration of a network."""


class NodeGc:
    """Carries out the command GC.

    :param records: the sandboxes' records.
    :param applier: deletes attachments.
    :param executor: runs plugins.
    :param observer: finds the cluster network.
    :param log: the daemon's log.
    """

    def __init__(
        self, *, records: Records, applier: Applier, executor: Executor, observer: CallObserver, log: Log
    ) -> None:
        self._records = records
        self._applier = applier
        self._executor = executor
        self._observer = observer
        self._log = log
        self._next_sandbox = ""
        self._next_network: NetworkKey = ("", "")

    async def run(self, call: CniCall) -> None:
        """Carry out a GC.

        :raises CniError: code 11, it had no time for everything; otherwise the first failure, after all else was tried.
        """
        # Upstream takes all entries of its own cache for valid, and so collects nothing.
        valid = plan.parse_valid_attachments(call.config_object)
        recorded = self._records.ids()
        in_use = {sandbox_id for sandbox_id, _ in valid}
        # A call for a sandbox that is not listed creates or deletes it now.
        in_use |= {sandbox_id for sandbox_id in recorded if self._records.is_locked(sandbox_id)}
        gone = sorted(set(recorded) - in_use)
        failures: list[CniError] = []
        with time_limit(seconds_left() / 2):
            finished = await self._delete(gone, failures)
        async with self._records.lock_all():
            kept = self._read_kept(gone, in_use)
        cluster = await self._observer.cluster_network(call)
        keys = sorted((one.name, one.text) for one, _ in plan.plan_gc(cluster, valid, kept) if network.has_gc(one))
        first = bisect_left(keys, self._next_network)
        left = [*keys[first:], *keys[:first]]
        while left and seconds_left():
            key = left.pop(0)
            async with self._records.lock_all():
                # Read again: sandboxes that were created since are in use, too.
                kept = self._read_kept(gone, in_use)
                for one, attachments in plan.plan_gc(cluster, valid, kept):
                    if (one.name, one.text) == key:
                        await self._collect(one, attachments, failures)
        if left:
            self._next_network = left[0]
        if left or not finished or any(isinstance(failure, DeadlineError) for failure in failures):
            raise self._out_of_time(gone, len(left), failures)
        if failures:
            raise failures[0]

    async def _delete(self, gone: Sequence[str], failures: list[CniError]) -> bool:
        """Delete sandboxes while there is time; return whether it was enough for all of them."""
        first = bisect_left(gone, self._next_sandbox)
        for sandbox_id in (*gone[first:], *gone[:first]):
            if not seconds_left():
                self._next_sandbox = sandbox_id
                return False
            try:
                async with self._records.lock(sandbox_id):
                    sandbox = self._records.read(sandbox_id)
                    if sandbox is not None:
                        await delete_sandbox(self._applier, sandbox, sandbox.netns)
            except Exception as error:
                failures.append(as_cni_error(error))
        return True

    async def _collect(
        self, one: NetworkConfig, attachments: Sequence[tuple[str, str]], failures: list[CniError]
    ) -> None:
        try:
            with time_limit(NETWORK_TIME):
                await network.collect_garbage(self._executor, one, attachments)
        except Exception as error:
            failures.append(as_cni_error(error))

    def _read_kept(self, gone: Collection[str], in_use: Collection[str]) -> list[SandboxState]:
        """Return the records of all sandboxes but those that the runtime does not know.

        :raises CniError: one is damaged or cannot be read. No list of attachments would be complete: plugins would free
            addresses that its sandbox uses.
        """
        ids = [sandbox_id for sandbox_id in self._records.ids() if sandbox_id not in gone]
        found = [self._records.read(sandbox_id) for sandbox_id in ids]
        for error in self._records.keep_damaged({*in_use, *ids}).values():
            raise error
        return [sandbox for sandbox in found if sandbox is not None]

    def _out_of_time(self, gone: Sequence[str], networks: int, failures: Sequence[CniError]) -> CniError:
        """Return the error of a GC that has used up its time: what the next one has to do."""
        sandboxes = attachments = 0
        for sandbox_id in gone:
            try:
                sandbox = self._records.read(sandbox_id, rename_damaged=False)
            except CniError:
                continue
            if sandbox is not None:
                sandboxes, attachments = sandboxes + 1, attachments + len(sandbox.attachments)
        self._log.warning("GC out of time", sandboxes=sandboxes, attachments=attachments, networks=networks)
        message = (
            f"GC has used up its time: {attachments} attachments of {sandboxes} sandboxes that the runtime does not "
            f"list are left, and the plugins of {networks} networks; the next GC continues"
        )
        causes = "; ".join(error.msg for error in failures[:1])
        return DeadlineError(cni.CniErrorCode.TRY_AGAIN_LATER, f"{message}: {causes}" if causes else message)
