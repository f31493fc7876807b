"""The store of the hot-plug status bucket: a copy of its entries, loaded by a watch.

Whatever happens to the bucket is found: wiped, rolled back, deleted, or written by another process. Once a minute the
copy is compared with what the bucket says of itself, which is one answer of any size of a cluster. If that differs, and
every ten minutes in any case, all entries are loaded again. Not the decision what the entries should be: that is in
:mod:`services.controller.projector`.
Next: :mod:`services.common.bus.protocol`, the key-value store underneath.
"""

import asyncio
import contextlib
from collections.abc import Callable

from services.common.bus.protocol import BusUnavailable, KeyValue, KeyValueEntry, WrongRevision
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES

RELOAD_INTERVAL = 600.0
"""Seconds after which the whole bucket is loaded again."""
CHECKS = 10
"""Number of comparisons in that time."""
MAX_MARKERS = 1000
"""Markers of deleted keys in the bucket beyond which it is loaded again, because that removes them."""
GRACE = 1.0
"""Seconds in which a change of the bucket arrives by the watch."""
RETRY_DELAY = 1.0
"""Seconds between two attempts to load the bucket while the bus is unavailable."""


class StatusBucket:
    """The entries of the bucket, and the writes of its only writer.

    :param bucket: the key-value bucket.
    :param on_change: called with a key that another writer has changed, and with ``None`` when the bucket is loaded.
    :param reload: seconds after which the whole bucket is loaded again, unless a comparison shows sooner that it must.
    """

    def __init__(
        self, bucket: KeyValue, on_change: Callable[[str | None], None], *, log: Log, reload: float = RELOAD_INTERVAL
    ) -> None:
        self._bucket = bucket
        self._on_change = on_change
        self._log = log
        self._reload = reload
        # By VMI, so that no write of one costs a walk over the entries of all others.
        self._entries: dict[str, dict[str, KeyValueEntry]] | None = None
        self._revision = 0
        STORES.watch("status-entries", self, len)

    def __len__(self) -> int:
        return sum(map(len, (self._entries or {}).values()))

    @property
    def loaded(self) -> bool:
        """Whether the entries are loaded; they are not while the bus is unavailable."""
        return self._entries is not None

    def list_vmis(self) -> list[str]:
        """Return the VMIs that have entries, each as the part of its keys; none while the bucket is not loaded."""
        return list(self._entries or ())

    def list_keys(self, vmi: str) -> list[str]:
        """Return the keys of one VMI.

        :param vmi: as in :meth:`list_vmis`.
        """
        return list((self._entries or {}).get(vmi, ()))

    def get(self, key: str) -> bytes | None:
        """Return the value of a key; ``None`` when the bucket has no such key or is not loaded."""
        entry = self._find(key)
        return entry.value if entry is not None else None

    async def put(self, key: str, value: bytes) -> None:
        """Set a key, provided that its revision in the bucket is the stored one.

        :raises WrongRevision: another writer has changed the key; its entry is read again.
        :raises BusUnavailable: the bus is unavailable; the write may have happened nevertheless.
        """
        stored = self._find(key)
        try:
            if stored is None:
                revision = await self._bucket.create(key, value)
            else:
                revision = await self._bucket.update(key, value, stored.revision)
        except WrongRevision:
            self._store(key, await self._bucket.get(key))
            raise
        self._revision = max(self._revision, revision)
        self._store(key, KeyValueEntry(key, value, revision))

    async def remove(self, key: str) -> None:
        """Delete a key.

        :raises BusUnavailable: the bus is unavailable; the key may still exist.
        """
        await self._bucket.delete(key)
        self._store(key, None)

    async def run(self) -> None:
        """Load and watch the bucket until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._reload) as until:
                    checking = asyncio.create_task(self._check(until))
                    try:
                        await self._watch()
                    finally:
                        checking.cancel()
            # It is time to load the bucket again; this is no failure.
            except TimeoutError:
                continue
            except BusUnavailable as error:
                if self._entries is not None:
                    self._log.info("hot-plug status bucket unavailable", error=str(error))
                self._entries = None
                await asyncio.sleep(RETRY_DELAY)

    async def _check(self, until: asyncio.Timeout) -> None:
        """Compare the entries with the state of the bucket again and again, and end the watch if they differ."""
        while True:
            await asyncio.sleep(self._reload / CHECKS)
            # While the bus is unavailable, the watch ends by itself.
            with contextlib.suppress(BusUnavailable):
                if self.loaded and not await self._is_complete():
                    until.reschedule(asyncio.get_running_loop().time())
                    return

    async def _is_complete(self) -> bool:
        """Return whether the bucket has the entries of this copy, as far as its state shows."""
        seen, entries = self._revision, len(self)
        state = await self._bucket.state()
        await asyncio.sleep(GRACE)
        return seen <= state.revision <= self._revision and entries <= state.stored <= entries + MAX_MARKERS

    async def _watch(self) -> None:
        # All changes before are in what the watch reads first.
        self._revision = (await self._bucket.state()).revision
        read: dict[str, KeyValueEntry] | None = {}
        deleted: list[str] = []
        async with contextlib.aclosing(self._bucket.watch()) as stream:
            async for entry in stream:
                # `None` follows the last entry that existed when the watch began.
                if entry is None:
                    before, self._entries, read = self._entries, _group(read or {}), None
                    try:
                        await self._purge_deleted(deleted)
                    finally:
                        # Also if the next load begins before all are purged: it compares with this one.
                        self._report_loaded(before)
                elif read is None:
                    self._on_entry(entry)
                elif entry.value is None:
                    deleted.append(entry.key)
                else:
                    read[entry.key] = entry

    def _report_loaded(self, before: dict[str, dict[str, KeyValueEntry]] | None) -> None:
        """Report the first load as such, and of a later one the keys that the watch has missed."""
        if before is None:
            self._on_change(None)
            return
        now = self._entries or {}
        for vmi in {*before, *now}:
            earlier, later = before.get(vmi, {}), now.get(vmi, {})
            for key in {*earlier, *later}:
                if key not in earlier or key not in later or earlier[key].value != later[key].value:
                    self._on_change(key)

    def _on_entry(self, entry: KeyValueEntry) -> None:
        self._revision = max(self._revision, entry.revision)
        stored = self._find(entry.key)
        if stored is not None and entry.revision <= stored.revision:
            return  # our own write, or an older one
        self._store(entry.key, entry if entry.value is not None else None)
        if entry.value != (stored.value if stored is not None else None):
            self._on_change(entry.key)

    async def _purge_deleted(self, keys: list[str]) -> None:
        """Purge deleted keys: the server keeps a marker for each, and the markers would fill the bucket."""
        for key in keys:
            if self._find(key) is None:
                await self._bucket.purge(key)

    def _find(self, key: str) -> KeyValueEntry | None:
        return (self._entries or {}).get(_vmi_of(key), {}).get(key)

    def _store(self, key: str, entry: KeyValueEntry | None) -> None:
        if self._entries is None:
            return
        vmi = _vmi_of(key)
        if entry is not None:
            self._entries.setdefault(vmi, {})[key] = entry
            return
        entries = self._entries.get(vmi, {})
        entries.pop(key, None)
        if not entries:
            self._entries.pop(vmi, None)


def _vmi_of(key: str) -> str:
    return key.rpartition(".")[0]


def _group(entries: dict[str, KeyValueEntry]) -> dict[str, dict[str, KeyValueEntry]]:
    found: dict[str, dict[str, KeyValueEntry]] = {}
    for key, entry in entries.items():
        found.setdefault(_vmi_of(key), {})[key] = entry
    return found
