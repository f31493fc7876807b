"""Paths of the node's file system as a process sees them that has it mounted elsewhere, such as at ``/proc/1/root``.

A link of the node that is absolute must lead to the same file there. :func:`resolve_under` returns a path, for a root
that is the node's own; :func:`open_under` a descriptor, for one whose user can change a link while it is followed.
Next: :mod:`services.common.node.mounts`.
"""

import contextlib
import errno
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Final

_NAMESPACE_LINK: Final = re.compile(r"\w+:\[\d+\]")
_MAX_LINKS: Final = 40
"""Symbolic links in one path: the kernel's own limit (path_resolution(7))."""


def resolve_under(root: Path, path: str) -> Path:
    """Return a path as seen under another root, with symbolic links resolved there.

    ``/var/run`` is such a link on every node.

    :raises OSError: the path has too many symbolic links.
    """
    if root == Path("/"):
        return Path(path)
    resolved, rest, hops = root, list(Path(path).parts[1:]), 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            resolved = resolved.parent if resolved != root else root
            continue
        candidate = resolved / part
        # A link such as ``net:[4026531840]`` below /proc names a kernel object, not a path.
        if candidate.is_symlink() and not _NAMESPACE_LINK.fullmatch(target := os.readlink(candidate)):
            hops += 1
            if hops > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            parts = Path(target).parts
            if target.startswith("/"):
                resolved, parts = root, parts[1:]
            rest = [*parts, *rest]
        else:
            resolved = candidate
    return resolved


def open_under(root: Path, path: str) -> int:
    """Return a descriptor (``O_PATH``) of a file as seen under another root, with symbolic links resolved there.

    Each part is opened below the descriptor of the folder before it, and the kernel follows none. So nobody leads the
    walk out of the root, also by replacing a part or moving a folder meanwhile.

    :raises OSError: there is no such file, or its path has too many symbolic links.
    """
    with contextlib.ExitStack() as stack:

        def opened(part: str | Path, flags: int, at: int | None = None) -> int:
            descriptor = os.open(part, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=at)
            stack.callback(os.close, descriptor)
            return descriptor

        # The folders from the root to the last part: `..` goes back in this list and asks no folder for its parent.
        walked = [opened(root, os.O_DIRECTORY)]
        rest, hops = [part for part in PurePosixPath(path).parts if part != "/"], 0
        while rest:
            part = rest.pop(0)
            if part == "..":
                walked = walked[:-1] or walked
                continue
            found = opened(part, os.O_NOFOLLOW, walked[-1])
            if not stat.S_ISLNK(os.fstat(found).st_mode):
                walked.append(found)
                continue
            hops += 1
            if hops > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            # The text of the link that was opened, whatever has its name by now. One below /proc that names a kernel
            # object (`net:[4026531840]`) leads nowhere.
            target = PurePosixPath(os.readlink("", dir_fd=found))
            if target.is_absolute():
                walked = walked[:1]
            rest = [*(part for part in target.parts if part != "/"), *rest]
        return os.dup(walked[-1])
