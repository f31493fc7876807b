"""Locks: one per sandbox, and one over all of them.

The CNI specification requires calls for a container to run one after the other, and no GC during an ADD or DEL.
Records are read and written under these locks. Next: :mod:`services.multus.records.upstream`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from schemas import cni
from services.common.telemetry.stores import STORES
from services.multus.cni.errors import CniError


class SandboxLocks:
    """The locks of a node.

    :param timeout: seconds to wait for other calls.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        STORES.watch("sandbox-calls", self, len)
        self._held = 0
        self._exclusive = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Return how many sandboxes are locked or waited for."""
        return len(self._locks)

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
        async with self._limit_wait("a GC"):
            await self._exclusive.acquire()
        try:
            async with self._limit_wait("other calls"):
                await self._idle.wait()
            yield
        finally:
            self._exclusive.release()

    @contextlib.asynccontextmanager
    async def _limit_wait(self, holder: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            message = f"{holder} has been running for {self._timeout:g} s"
            raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from None
