"""The ladder's bucket as the projector last saw it: read whole, followed, read whole again every minute.

So whatever happens to the bucket (wiped, rolled back, deleted, written by another) is noticed; what to do about it is
:mod:`services.controller.projector`'s to say.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from services.common.bus.protocol import BusUnavailable, KeyValue, KeyValueEntry, WrongRevision
from services.common.logs import Log

RELOAD = 60.0
"""Seconds between two whole readings."""
RETRY = 1.0
"""Seconds until the bucket is tried again while the bus is away."""


class Mirror:
    """What the bucket holds, and its only writer's hands.

    :param changed: called with a key that changed other than by us, with ``None`` after a whole reading.
    """

    def __init__(
        self, bucket: KeyValue, changed: Callable[[str | None], None], *, log: Log, reload: float = RELOAD
    ) -> None:
        self._bucket = bucket
        self._changed = changed
        self._log = log
        self._reload = reload
        self._held: dict[str, KeyValueEntry] | None = None

    @property
    def known(self) -> bool:
        """Whether it is known what the bucket holds; not while the bus is away."""
        return self._held is not None

    def held(self) -> list[str]:
        """The keys it holds."""
        return list(self._held or ())

    def get(self, key: str) -> bytes | None:
        """What it holds under a key."""
        found = (self._held or {}).get(key)
        return found.value if found is not None else None

    async def put(self, key: str, value: bytes) -> None:
        """Set a key, over what is known of it.

        :raises WrongRevision: somebody else changed it; it is known anew. :raises BusUnavailable: nothing happened, or
            it is unknown what did.
        """
        before = (self._held or {}).get(key)
        try:
            if before is None:
                revision = await self._bucket.create(key, value)
            else:
                revision = await self._bucket.update(key, value, before.revision)
        except WrongRevision:
            self._keep(key, await self._bucket.get(key))
            raise
        self._keep(key, KeyValueEntry(key, value, revision))

    async def remove(self, key: str) -> None:
        """Remove a key.

        :raises BusUnavailable: it may still be there.
        """
        await self._bucket.delete(key)
        self._keep(key, None)

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._reload):
                    await self._follow()
            except TimeoutError:
                continue
            except BusUnavailable as error:
                if self._held is not None:
                    self._log.info("the ladder's bucket is away", error=str(error))
                self._held = None
                await asyncio.sleep(RETRY)

    async def _follow(self) -> None:
        read: dict[str, KeyValueEntry] | None = {}
        leftovers: list[str] = []
        async with aclosing(self._bucket.watch()) as found:
            async for entry in found:
                if entry is None:
                    self._held, read = read, None
                    await self._forget(leftovers)
                    self._changed(None)
                elif read is None:
                    self._see(entry)
                elif entry.value is None:
                    leftovers.append(entry.key)
                else:
                    read[entry.key] = entry

    def _see(self, entry: KeyValueEntry) -> None:
        known = (self._held or {}).get(entry.key)
        if known is not None and entry.revision <= known.revision:
            return  # our own change, or one before it
        self._keep(entry.key, entry if entry.value is not None else None)
        if entry.value != (known.value if known is not None else None):
            self._changed(entry.key)

    async def _forget(self, keys: list[str]) -> None:
        """Marks of deleted keys would fill the bucket in the end."""
        for key in keys:
            if key not in (self._held or {}):
                await self._bucket.forget(key)

    def _keep(self, key: str, entry: KeyValueEntry | None) -> None:
        if self._held is None:
            return
        if entry is None:
            self._held.pop(key, None)
        else:
            self._held[key] = entry
