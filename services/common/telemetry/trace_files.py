"""The file of a process' spans: it is private, and replaced before it grows too large; the oldest files are removed.

A process writes ``<role>-<node>-<pid>.jsonl``, and renames it to ``<role>-<node>-<pid>.<time>.jsonl`` when it is full.
All files of a role on a node count, also those of processes that have ended. The lines come from OpenTelemetry's
exporter. Next: :mod:`services.common.telemetry.setup`, which connects the two.
"""

import fcntl
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

MAX_BYTES = 4 * 1024 * 1024
"""Size of a file: some thousand spans."""
MAX_FILES = 64
"""Files of a role on a node, the current one included; each invocation of a command has one."""
MIN_FILES = 2
MODE = 0o600


class TraceFile:
    """A stream that OpenTelemetry's exporter can write to, line by line.

    :param directory: the directory; it is created for its owner alone if it does not exist.
    :param node: the Kubernetes node; ``_`` for a role that belongs to none.
    :param max_files: how many files of the role and node are kept, at least :data:`MIN_FILES`.
    :param max_bytes: the largest size of a file.
    :raises OSError: the file cannot be written, or its name belongs to something else, such as a link.
    """

    def __init__(
        self, directory: Path, role: str, node: str, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        prefix = f"{quote(role, safe='')}-{quote(node or '_', safe='')}"
        self._path = directory / f"{prefix}-{os.getpid()}.jsonl"
        self._ours = re.compile(rf"{re.escape(prefix)}-\d+(?:\.\d+)?\.jsonl", re.ASCII)
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._descriptor = self._open()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._descriptor < 0

    def write(self, line: str) -> None:
        """Append a line, to a new file if this one has no room for it.

        :raises ValueError: the line is larger than a file may be.
        """
        data = line.encode()
        if len(data) > self._max_bytes:
            raise ValueError(f"a span of {len(data)} bytes; the limit is {self._max_bytes}")
        if os.fstat(self._descriptor).st_size + len(data) > self._max_bytes:
            self._replace()
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def flush(self) -> None:
        """Do nothing: each line is written at once."""

    def close(self) -> None:
        """Close the file; may be called repeatedly."""
        if not self.closed:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _open(self) -> int:
        self._remove_oldest()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, MODE)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(f"{self._path} is no file of this user; remove it")
            # A file of an earlier version, or one of a process with the same id.
            os.fchmod(descriptor, MODE)
            # Shows other processes that this one is alive.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _replace(self) -> None:
        with suppress(FileNotFoundError):
            # Processes of several containers may have the same id: another one may have renamed the file before.
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                os.rename(self._path, self._path.with_suffix(f".{time.time_ns()}.jsonl"))
        before, self._descriptor = self._descriptor, self._open()
        os.close(before)

    def _remove_oldest(self) -> None:
        """Remove files until there is room for one more."""
        found: list[tuple[int, str]] = []
        with os.scandir(self._path.parent) as entries:
            for entry in entries:
                if self._ours.fullmatch(entry.name) and entry.name != self._path.name:
                    with suppress(FileNotFoundError):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
        for _, path in sorted(found)[: max(0, len(found) - self._max_files + 1)]:
            _remove_unused(path)


def _remove_unused(path: str) -> None:
    """Remove a file that no process writes to."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
