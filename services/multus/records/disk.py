"""Atomic replacement of files: a reader sees either the old content or the new one.

Synchronous. A caller that must not wait for the disk uses a thread. Next: :mod:`services.multus.records.locks`.
"""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, synced: bool = False) -> None:
    """Replace a file atomically.

    :param path: the file.
    :param data: the new content.
    :param mode: the new file's permissions.
    :param synced: whether to wait until the new content survives a loss of power.
    :raises OSError: the file cannot be written; the old one is unchanged.
    """
    # Beside the file, because a rename does not cross file systems. The store removes what a killed process leaves.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
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
