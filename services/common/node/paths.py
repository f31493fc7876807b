"""Paths of the node's file system as a process sees them that has it mounted elsewhere, such as at ``/proc/1/root``.

A link of the node that is absolute must lead to the same file there. Next: :mod:`services.common.node.mounts`.
"""

import errno
import os
import re
from pathlib import Path
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
