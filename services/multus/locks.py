"""One lock per sandbox, and one for all: the CNI specification wants calls of a container one after the other, and
no GC beside an ADD or DEL.

Next: :mod:`services.multus.records`, what is read and written under them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from schemas import cni
from services.multus.errors import CniError


class Locks:
    """The locks of a node.

    :param timeout: seconds to wait for other calls.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._held = 0
        self._exclusive = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """How many sandboxes are held or waited for."""
        return len(self._locks)

    @contextlib.asynccontextmanager
    async def one(self, sandbox_id: str) -> AsyncIterator[None]:
        """Hold a sandbox.

        :raises CniError: code 11, another call has held it for too long.
        """
        lock, users = self._locks.get(sandbox_id, (asyncio.Lock(), 0))
        self._locks[sandbox_id] = (lock, users + 1)
        try:
            async with self._within(f"another call for sandbox {sandbox_id}"):
                await lock.acquire()
            try:
                async with self._within("a GC"), self._exclusive:
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
            lock, users = self._locks.pop(sandbox_id)
            if users > 1:
                self._locks[sandbox_id] = (lock, users - 1)

    @contextlib.asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Hold every sandbox: wait until no call holds one, and let none begin.

        :raises CniError: code 11, they took too long.
        """
        async with self._within("a GC"):
            await self._exclusive.acquire()
        try:
            async with self._within("other calls"):
                await self._idle.wait()
            yield
        finally:
            self._exclusive.release()

    @contextlib.asynccontextmanager
    async def _within(self, who: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            message = f"{who} has been running for {self._timeout:g} s"
            raise CniError(cni.Code.TRY_AGAIN_LATER, message) from None
