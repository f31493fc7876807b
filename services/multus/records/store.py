"""The files that hold the records, one per sandbox, and survive the daemon.

A record is written before a plugin runs (``adding``) and again after it (``added``). So DEL finds everything that may
exist, whenever the daemon dies: attachments of the sandbox's creation and hot-plugged ones alike.

A call does not wait for the disk. Its record is written at once to ``<id>.unsettled`` in a memory file system
(``/run``), which survives the process. A few milliseconds after the plugin has ended, or after a second, it is written
and synced to ``<id>.json``, which survives a loss of power; then the record is settled. Users read pod annotations;
records are for this node only.
When an attachment may be deleted is decided in :mod:`services.multus.plan`. Next: :mod:`services.multus.records.locks`.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from opentelemetry.trace import Tracer

from schemas import cni, multus
from schemas.inputs import Edge, RejectedInput, rejecting
from services.common.node.files import FileTooLarge, file_names, read_bounded, replace_file
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES
from services.multus.cni.call import is_valid_sandbox_id
from services.multus.cni.errors import CniError
from services.multus.records.locks import SandboxLocks
from services.multus.records.sandbox import SandboxState

SETTLED: Final = ".json"
"""Suffix of a record that is synced to disk."""
UNSETTLED: Final = ".unsettled"
"""Suffix of a newer record that is not synced yet."""
DAMAGED: Final = ".damaged"
"""Suffix of a file that held a record and cannot be decoded."""
MAX_DAMAGED: Final = 256
"""Damaged files that are kept, beyond which the oldest is removed. One goes with its sandbox, so only a node that
never gets a DEL, and does not know its runtime's sandboxes either, has many."""
MAX_LOGGED: Final = 8
"""Paths in one line of the log."""
SETTLE_AFTER: Final = 0.02
"""Seconds between a record and its copy on disk: the call is answered first, and several writes are synced as one."""
SETTLE_ADDING: Final = 1.0
"""Seconds for which the copy waits for the end of a plugin: a sync beside it would cost both time, and the next record
follows at once."""

RecordChange = Literal["adding", "added", "removed", "updated"]
"""What happens to an attachment with a write: its plugins will run, they have run, it is gone, or anything else."""


class _Settling(NamedTuple):
    """A record that is not synced yet.

    :ivar due: set when the copy waits for no plugin.
    """

    task: asyncio.Task[None]
    due: asyncio.Event


class Records:
    """The records of a node, below ``<cniDir>/sandboxes``, and one lock per sandbox.

    :param cni_dir: multus' ``cniDir``.
    :param tracer: the tracer; each write and each sync has a span.
    :param log: the daemon's log.
    :param unsettled: directory of unsettled records, preferably in a memory file system; ``None``: beside the others.
    :param lock_timeout: seconds to wait for another call on the same sandbox.
    """

    def __init__(
        self,
        cni_dir: str | Path,
        *,
        tracer: Tracer,
        log: Log,
        unsettled: Path | None = None,
        lock_timeout: float = 90.0,
    ) -> None:
        self._folder = Path(cni_dir) / "sandboxes"
        self._unsettled = unsettled if unsettled is not None else self._folder
        self._tracer = tracer
        self._log = log
        self._locks = SandboxLocks(lock_timeout)
        self._directories_logged = False
        self._newest: dict[str, bytes | None] = {}
        self._waiting: set[str] = set()
        self._settling: dict[str, _Settling] = {}
        STORES.watch("unsettled-records", self, lambda records: len(records._settling))
        self._decoder = msgspec.json.Decoder(SandboxState)
        for folder in (self._folder, self._unsettled):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Temporary files of writes that a killed process did not finish.
            for leftover in folder.glob(".*.tmp"):
                _unlink(leftover)

    def lock(self, sandbox_id: str) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a sandbox's lock, so that its calls run one after the other."""
        return self._locks.hold(sandbox_id)

    def is_locked(self, sandbox_id: str) -> bool:
        """Return whether a call holds a sandbox's lock, or waits for it."""
        return sandbox_id in self._locks

    def lock_all(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold all sandboxes' locks, for GC."""
        return self._locks.hold_all()

    def read(self, sandbox_id: str, *, rename_damaged: bool = True) -> SandboxState | None:
        """Return the record of a sandbox; ``None`` if there is none.

        :param sandbox_id: the container id.
        :param rename_damaged: rename a damaged file to ``….damaged``, which counts as absent from then on; otherwise it
            is an error.
        :raises CniError: code 5, the record cannot be read.
        """
        if sandbox_id in self._newest:
            # The files can hold an older record while a worker thread replaces them.
            newest = self._newest[sandbox_id]
            return self._decoder.decode(newest) if newest is not None else None
        # If both files exist, the unsettled one is newer.
        for suffix in (UNSETTLED, SETTLED):
            path = self._path(sandbox_id, suffix)
            with _io_failure_as_cni_error(f"the record of sandbox {sandbox_id} cannot be read"):
                try:
                    # `write` makes none that is larger.
                    data = read_bounded(path, multus.MAX_RECORD_BYTES)
                    with rejecting(Edge.FILE):
                        return self._decoder.decode(data)
                except (FileNotFoundError, IsADirectoryError):
                    continue
                # With a torn file, upstream's DEL does nothing (multus-cni#1087); here other sources are used instead.
                except (RejectedInput, FileTooLarge) as error:
                    if not rename_damaged:
                        raise CniError(
                            cni.CniErrorCode.IO_FAILURE, f"the record of sandbox {sandbox_id} is damaged: {error}"
                        ) from error
                    damaged = path.with_name(f"{path.name}{DAMAGED}")
                    self._log.error("damaged sandbox record renamed", path=str(damaged), error=str(error))
                    path.replace(damaged)
                    for _, oldest in self._damaged()[:-MAX_DAMAGED]:
                        _unlink(oldest)
        return None

    def write(self, sandbox: SandboxState, *, change: RecordChange = "updated") -> None:
        """Write a record, or remove it if it has no attachments.

        :param sandbox: the record.
        :param change: the reason of the write, for its span.
        :raises CniError: code 5, the record cannot be written; the earlier record stays.
        """
        sandbox_id = sandbox.sandbox_id
        data = msgspec.json.encode(sandbox) if sandbox.attachments else None
        if data is not None and len(data) > multus.MAX_RECORD_BYTES:
            # No reader would take it, and what it names would never be released.
            message = f"the record of sandbox {sandbox_id} would have {len(data)} bytes"
            raise CniError(cni.CniErrorCode.IO_FAILURE, f"{message}; the limit is {multus.MAX_RECORD_BYTES}")
        settled, unsettled = self._path(sandbox_id, SETTLED), self._path(sandbox_id, UNSETTLED)
        with (
            self._tracer.start_as_current_span("record write", attributes={"hotnic.record.change": change}),
            _io_failure_as_cni_error(f"the record of sandbox {sandbox_id} cannot be written"),
        ):
            if data is not None:
                # Not synced: it has to survive the process only (ADR 11).
                replace_file(unsettled, data)
            else:
                # The settled file goes first: after a kill between the two, the newer one is still found.
                _unlink(settled)
                _unlink(unsettled)
        self._settle_soon(sandbox_id, data, adding=change == "adding")

    def settle(self, sandbox_id: str) -> None:
        """Write an unsettled record to disk that an earlier process or a full disk left in memory.

        :param sandbox_id: the container id.
        :raises CniError: code 5, the record cannot be read.
        """
        if sandbox_id not in self._settling and self._path(sandbox_id, UNSETTLED).is_file():
            sandbox = self.read(sandbox_id)
            if sandbox is not None:
                self._settle_soon(sandbox_id, msgspec.json.encode(sandbox))

    async def flush(self) -> None:
        """Wait until every record is synced to disk."""
        while self._settling:
            for settling in self._settling.values():
                settling.due.set()
            await asyncio.gather(*(settling.task for settling in self._settling.values()))

    def ids(self) -> list[str]:
        """Return the container ids of the sandboxes that have a record."""
        stems: set[str] = set()
        for folder in {self._folder, self._unsettled}:
            names = file_names(folder)
            stems |= {Path(name).stem for name in names if Path(name).suffix in (SETTLED, UNSETTLED)}
            self._log_directories(folder, {*os.listdir(folder)} - {*names})
        return sorted(stem for stem in stems if is_valid_sandbox_id(stem))

    def _log_directories(self, folder: Path, names: Set[str]) -> None:
        """Log the first time that directories are among the records. None is one; a CNI plugin has made them."""
        # A worker thread can have made a temporary file since the files were listed.
        found = sorted(str(folder / name) for name in names if (folder / name).is_dir())
        if found and not self._directories_logged:
            self._directories_logged = True
            self._log.error("directories among the sandbox records", paths=found[:MAX_LOGGED], count=len(found))

    def keep_damaged(self, existing: Set[str]) -> dict[str, CniError]:
        """Remove the damaged records of sandboxes that are gone; return the others' errors.

        The other sandboxes may have attachments that no record names.

        :param existing: the container ids of all sandboxes that are not gone.
        """
        damaged = {path.name.partition(".")[0] for _, path in self._damaged()}
        for sandbox_id in damaged - existing:
            self.forget_damaged(sandbox_id)
        message = "the record of sandbox {} is damaged, so its attachments are not known: delete its pod"
        return {one: CniError(cni.CniErrorCode.IO_FAILURE, message.format(one)) for one in sorted(damaged & existing)}

    def forget_damaged(self, sandbox_id: str) -> None:
        """Remove the damaged records of a sandbox that is gone."""
        for suffix in (UNSETTLED, SETTLED):
            path = self._path(sandbox_id, suffix)
            _unlink(path.with_name(f"{path.name}{DAMAGED}"))

    def _damaged(self) -> list[tuple[float, Path]]:
        """Return the damaged files with the times of their last change, the oldest first."""
        found = {
            path for folder in (self._folder, self._unsettled) for path in folder.glob(f"*{DAMAGED}") if path.is_file()
        }
        return sorted(
            (path.stat().st_mtime, path) for path in found if is_valid_sandbox_id(path.name.partition(".")[0])
        )

    def changed_at(self, sandbox_id: str) -> float | None:
        """Return when a record was last written, in seconds since the epoch; ``None`` when there is none."""
        for suffix in (UNSETTLED, SETTLED):
            try:
                return self._path(sandbox_id, suffix).stat().st_mtime
            except FileNotFoundError:
                continue
        return None

    def _settle_soon(self, sandbox_id: str, data: bytes | None, *, adding: bool = False) -> None:
        self._newest[sandbox_id] = data
        self._waiting.add(sandbox_id)
        settling = self._settling.get(sandbox_id)
        if settling is None:
            due = asyncio.Event()
            task = asyncio.create_task(self._settle(sandbox_id, due), name=f"settle {sandbox_id}")
            settling = self._settling[sandbox_id] = _Settling(task, due)
        if not adding:
            settling.due.set()

    async def _settle(self, sandbox_id: str, due: asyncio.Event) -> None:
        """Write the newest record of a sandbox to disk. A worker thread syncs it, because ``fsync`` blocks."""
        settled, unsettled = self._path(sandbox_id, SETTLED), self._path(sandbox_id, UNSETTLED)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_ADDING):
                    await due.wait()
            await asyncio.sleep(SETTLE_AFTER)
            while sandbox_id in self._waiting:
                self._waiting.discard(sandbox_id)
                data = self._newest[sandbox_id]
                if data is None:
                    _unlink(settled)
                    continue
                with self._tracer.start_as_current_span("record sync"):
                    await asyncio.to_thread(replace_file, settled, data, synced=True)
                # A record written during the sync is still unsettled.
                if sandbox_id not in self._waiting:
                    _unlink(unsettled)
        except OSError as error:
            # The unsettled file still has the record; the next sweep settles it.
            self._log.error("sandbox record not synced to disk", path=str(settled), error=str(error))
        finally:
            # Done here and not in a callback: a record written before the callback runs would never be settled.
            self._waiting.discard(sandbox_id)
            del self._newest[sandbox_id], self._settling[sandbox_id]

    def _path(self, sandbox_id: str, suffix: str) -> Path:
        if not is_valid_sandbox_id(sandbox_id):
            raise CniError(cni.CniErrorCode.INVALID_ENVIRONMENT, f"{sandbox_id!r} is not a container id")
        return (self._unsettled if suffix == UNSETTLED else self._folder) / f"{sandbox_id}{suffix}"


def _unlink(path: Path) -> None:
    """Remove a file; a directory at its path is no record and stays."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()


@contextlib.contextmanager
def _io_failure_as_cni_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CniError(cni.CniErrorCode.IO_FAILURE, f"{what}: {error}") from error
