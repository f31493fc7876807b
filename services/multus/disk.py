"""Files that are replaced as a whole: whoever reads one sees what was there before or what is there now.

Synchronous; what must not wait for the disk is called in a thread. Next: :mod:`services.multus.records`.
"""

import os
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int = 0o600, synced: bool = False) -> None:
    """Replace a file so that a reader sees the old one or the new one, never a part.

    :param synced: after a loss of power too, and then it is the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
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
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
