"""Files of a node: atomic replacement, so that a reader sees either the old content or the new one, and so does a power
failure; and reading up to a limit.

A CNI plugin runs as root and makes directories wherever a network's author says. So none of these directories counts as
a file, and none is in the way of one.

:func:`stamps` tells a reader that a file was replaced. Synchronous: a caller that must not wait for the disk uses a
thread. Next: :mod:`services.common.node.cni_conf`.
"""

import contextlib
import errno
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from schemas.inputs import MAX_BYTES

_ABANDONED: Final = 3600.0
"""Seconds after which a temporary file belongs to no writer any more."""
_PIECE: Final = 4096
"""Bytes of one read of a file that has no size."""

_log = logging.getLogger("hotnic.files")


class FileTooLarge(OSError):
    """A file is larger than its reader takes."""


def read_bounded(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file, never more than a limit, whatever is at its path.

    :param limit: bytes.
    :raises FileTooLarge: it has more.
    :raises OSError: it cannot be read, or is no regular file. The error names the path.
    """
    # Of a named pipe, O_RDONLY alone would wait for a writer.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        data = bytearray()
        # Files below /proc have no size, and one read may return less than there is.
        expected = max(found.st_size + 1, _PIECE)
        while len(data) <= limit and (piece := file.read(min(expected, limit + 1 - len(data)))):
            data += piece
    if len(data) > limit:
        raise FileTooLarge(errno.EFBIG, f"larger than the limit of {limit} bytes", str(path))
    return bytes(data)


def file_names(folder: Path) -> list[str]:
    """Return the names of the regular files of a directory, and of its links, in order.

    :raises OSError: the directory cannot be read.
    """
    with os.scandir(folder) as entries:
        # Where a link leads is its reader's business: the node may be mounted elsewhere.
        return sorted(entry.name for entry in entries if entry.is_symlink() or entry.is_file())


def is_file(path: Path) -> bool:
    """Return whether there is a file or a link, wherever that leads."""
    return os.path.lexists(path) and not path.is_dir()


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, synced: bool = False) -> None:
    """Replace a file atomically. A directory in its place is moved aside.

    :param path: the file.
    :param data: the new content.
    :param mode: the new file's permissions.
    :param synced: whether to wait until the new content survives a loss of power.
    :raises OSError: the file cannot be written; the old one is unchanged.
    """
    # Beside the file, because a rename does not cross file systems. Containers have process ids of their own, so a
    # process id does not tell two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            # The umask may have removed bits of the mode.
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            temporary.replace(path)
        except IsADirectoryError:
            move_aside(path)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if synced:
        # The rename is durable only after the directory is synced too.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def move_aside(path: Path) -> None:
    """Rename what is at a path, a directory with all that is in it included, and log where it is now.

    :raises OSError: there is nothing, or it cannot be renamed, as a mount.
    """
    aside = path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}")
    path.rename(aside)
    _log.error("moved aside what does not belong there: path=%s aside=%s", path, aside)


def install_executable(source: Path, target: Path) -> bool:
    """Install a program; return whether anything was written.

    The file is replaced as a whole, so that running copies keep the file they started from. Writing into it would fail:
    "text file busy" (multus-cni#1221). A file with the same content and mode is left alone.

    :param source: the program.
    :param target: its path on the node.
    :raises OSError: the program cannot be read, or the directory of the target does not exist or is not writable.
    """
    data = source.read_bytes()
    for leftover in temporary_files(target):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED:
                leftover.unlink()
    try:
        if target.stat().st_mode & 0o7777 == 0o755 and target.read_bytes() == data:
            return False
    except (FileNotFoundError, IsADirectoryError):
        pass
    replace_file(target, data, mode=0o755, synced=True)
    return True


def stamps(paths: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Return what changes when one of these files is replaced or written: its inode and the time of its last change.

    :raises OSError: there is no such file; one that is being replaced reappears in a moment.
    """
    return tuple((found.st_ino, found.st_mtime_ns) for found in map(os.stat, paths))


def temporary_files(path: Path) -> list[Path]:
    """Return the temporary files beside a file that killed processes have left."""
    return sorted(found for found in path.parent.glob(f".{path.name}.*.tmp") if found.is_file())
