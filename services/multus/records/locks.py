"""Locks: one per sandbox, and one over all of them.

The CNI specification requires calls for a container to run one after the other, and no GC during an ADD or DEL.
Records are read and written under these locks. Next: :mod:`services.multus.records.upstream`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from schemas import cni
from services.common.telemetry.stores import STORES
from services.multus.cni.errors import CniError
from services.multus.cni.executor import seconds_left, time_limit

BLOCKED_AT_MOST: Final = 5.0
"""Seconds for which a GC that waits for running calls keeps new ones waiting, before it lets them in for twice as
long."""


class SandboxLocks:
    """The locks of a node.

    :param timeout: seconds to wait for other calls, if the call has as much time left.
    :param blocked: :data:`BLOCKED_AT_MOST`.
    """

    def __init__(self, timeout: float, *, blocked: float = BLOCKED_AT_MOST) -> None:
        self._timeout = timeout
        self._blocked = blocked
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        STORES.watch("sandbox-calls", self, len)
        self._held = 0
        self._exclusive = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Return how many sandboxes are locked or waited for."""
        return len(self._locks)

    def __contains__(self, sandbox_id: str) -> bool:
        """Return whether a call holds the sandbox or waits for it."""
        return sandbox_id in self._locks

    @contextlib.asynccontextmanager
    async def hold(self, sandbox_id: str) -> AsyncIterator[None]:
        """Hold the lock of one sandbox.

        :param sandbox_id: the sandbox's container id.
        :raises CniError: code 11, another call held it for too long.
        """
        lock, users = self._locks.get(sandbox_id, (asyncio.Lock(), 0))
        self._locks[sandbox_id] = (lock, users + 1)
        try:
            async with self._limit_wait(f"another call for sandbox {sandbox_id}"):
                await lock.acquire()
            try:
                # A GC that waits or runs holds `_exclusive`, so no new call starts.
                async with self._limit_wait("a GC"), self._exclusive:
                    self._held += 1
                    self._idle.clear()
                try:
                    yield
                finally:
                    self._held -= 1
                    if not self._held:
                        self._idle.set()
            finally:
                lock.release()
        finally:
            # The lock is removed with its last user; otherwise the dictionary would grow with every sandbox.
            lock, users = self._locks.pop(sandbox_id)
            if users > 1:
                self._locks[sandbox_id] = (lock, users - 1)

    @contextlib.asynccontextmanager
    async def hold_all(self) -> AsyncIterator[None]:
        """Hold all sandboxes: wait until no call holds one, and let no new call start.

        :raises CniError: code 11, the running calls took too long.
        """
        limit = seconds_left(self._timeout)
        with time_limit(limit):
            while True:
                async with self._limit_wait("a GC"):
                    await self._exclusive.acquire()
                if await self._until_idle():
                    break
                self._exclusive.release()
                if not seconds_left():
                    raise _running("other calls", limit)
                # A running plugin may take its whole deadline; no new call has to wait as long.
                await asyncio.sleep(seconds_left(self._blocked * 2))
        try:
            yield
        finally:
            self._exclusive.release()

    async def _until_idle(self) -> bool:
        """Wait for the running calls, but not long; return whether all have ended."""
        try:
            async with asyncio.timeout(seconds_left(self._blocked)):
                await self._idle.wait()
        except TimeoutError:
            return False
        except BaseException:
            self._exclusive.release()
            raise
        return True

    @contextlib.asynccontextmanager
    async def _limit_wait(self, holder: str) -> AsyncIterator[None]:
        seconds = seconds_left(self._timeout)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise _running(holder, seconds) from None


def _running(holder: str, seconds: float) -> CniError:
    return CniError(cni.CniErrorCode.TRY_AGAIN_LATER, f"{holder} has been running for {seconds:.3g} s")
