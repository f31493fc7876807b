"""One watch of a VMI for all streams of its hot-plug status, which would each keep its objects and decode each change.

Next: :mod:`services.common.kube.cache.vmi_watch`, the watch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from schemas.kubernetes.objects import ObjectMeta
from services.common.kube.cache.vmi_watch import VmiWatch, WatchedVmi, watch_vmi
from services.common.kube.client import Kube
from services.common.telemetry.logs import Log

CATCH_UP = 0.5
"""Seconds for a watch that is open already to see what a request has just read."""


class VmiView:
    """What one stream sees of a shared watch.

    :ivar changed: set by every change. The stream clears it.
    """

    def __init__(self, watched: VmiWatch) -> None:
        self._watched = watched
        self.changed = asyncio.Event()

    async def wait_synced(self, version: str) -> None:
        """Wait until the objects are known, and the VMI as a request has read it, or for ``CATCH_UP``.

        :param version: the VMI's ``resourceVersion`` of that request. A later one is as good, and cannot be told.
        """
        await self._watched.wait_synced()
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP):
                while (vmi := self.read().vmi) is not None and vmi.metadata.resource_version != version:
                    self.changed.clear()
                    await self.changed.wait()

    def read(self) -> WatchedVmi:
        """Return the objects as last seen."""
        return self._watched.read()


class _Shared:
    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.opening = asyncio.Lock()
        self.watched: VmiWatch | None = None
        self.views = 0


class SharedWatches:
    """The open watches of VMIs, each with its VM and its pods."""

    def __init__(self, kube: Kube, log: Log) -> None:
        self._kube = kube
        self._log = log
        self._open: dict[str, _Shared] = {}

    @asynccontextmanager
    async def watching(self, meta: ObjectMeta) -> AsyncIterator[VmiView]:
        """Provide a view of a VMI; the watch ends with the last view of it.

        :param meta: metadata of the VMI.
        """
        shared = self._open.setdefault(meta.uid, _Shared())
        shared.views += 1
        try:
            async with shared.opening:
                if shared.watched is None:
                    opened = watch_vmi(self._kube, meta, with_vm=True, log=self._log)
                    shared.watched = await shared.stack.enter_async_context(opened)
            view = VmiView(shared.watched)
            shared.watched.listeners.add(view.changed)
            try:
                yield view
            finally:
                shared.watched.listeners.discard(view.changed)
        finally:
            shared.views -= 1
            if not shared.views:
                # A stream that begins while this watch ends opens another one.
                del self._open[meta.uid]
                await shared.stack.aclose()
