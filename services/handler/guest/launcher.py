"""Where libvirt listens inside a launcher's container, without being led out of it.

The container belongs to the user's pod: a symbolic link in it could lead to a socket of the node, so none is followed.
The path that is given back names what was found, whatever the container changes afterwards.
Next: :mod:`services.handler.guest.libvirt_domain`, which connects there.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from services.handler.guest.port import GuestNotReachable

CONTAINER = "compute"
"""The launcher's container that runs the guest."""

SOCKETS = tuple(
    PurePath(folder, "libvirt", name)
    # On most systems the second folder is a symbolic link to the first.
    for name in ("virtqemud-sock", "libvirt-sock")
    for folder in ("run", "var/run")
)
"""Relative to the container's root; the first that is there is taken."""


@contextmanager
def libvirt_socket(root: Path) -> Iterator[str]:
    """A path of libvirt's socket below a container's root (``/proc/PID/root``); good inside the context.

    :raises GuestNotReachable: there is none.
    """
    for socket in SOCKETS:
        found = _open_below(root, socket)
        if found is not None:
            try:
                yield f"/proc/self/fd/{found}"
            finally:
                os.close(found)
            return
    raise GuestNotReachable(f"no libvirt socket in {root} ({', '.join(map(str, SOCKETS))})")


def _open_below(root: Path, socket: PurePath) -> int | None:
    """A descriptor of the socket, or ``None`` when there is none or a symbolic link is on the way."""
    at: int | None = None
    try:
        at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in socket.parts:
            above, at = at, os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(above)
        if stat.S_ISSOCK(os.fstat(at).st_mode):
            return at
    except OSError:
        # Not there, or a link, which cannot be opened as a folder.
        pass
    if at is not None:
        os.close(at)
    return None
