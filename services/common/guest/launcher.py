"""Find libvirt's socket inside a launcher's container without following symbolic links.

The container belongs to the user's pod. A symbolic link in it could lead to a socket of the node, so none is followed.
The path returned names the socket that was opened, even if the container replaces it afterwards.
Next: :mod:`services.common.guest.libvirt_domain`, which connects to the socket.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePath

from services.common.cri.client import CriClient
from services.common.cri.errors import CriError
from services.common.guest.port import GuestNotReachable
from services.common.guest.sockets import open_below
from services.common.node.capabilities import name_missing

CONTAINER = "compute"
"""The launcher's container that runs the guest."""

SOCKETS = tuple(
    PurePath(folder, "libvirt", name)
    # /var/run is a symbolic link to /run on most systems, and is not followed then.
    for name in ("virtqemud-sock", "libvirt-sock")
    for folder in ("run", "var/run")
)
"""Paths of libvirt's socket relative to the container's root. The first that exists is used."""


def libvirt_socket_finder(
    cri: CriClient, pod_uid: str, host_root: Path
) -> Callable[[], Awaitable[AbstractContextManager[str]]]:
    """Return a function that finds libvirt's socket in a pod's launcher container.

    The function returns a context manager; the socket's path is valid inside the context. The function raises
    :class:`GuestNotReachable` when the container or the socket does not exist.

    :param host_root: where the node's file system, ``/proc`` included, is mounted.
    """

    async def find() -> AbstractContextManager[str]:
        try:
            pid = await cri.find_container_pid(pod_uid, CONTAINER)
        except CriError as error:
            raise GuestNotReachable(f"libvirt of pod {pod_uid}: {error}") from error
        return libvirt_socket(host_root / "proc" / str(pid) / "root")

    return find


@contextmanager
def libvirt_socket(root: Path) -> Iterator[str]:
    """Open libvirt's socket below a container's root and yield a path of it, valid inside the context.

    :param root: the container's root, ``/proc/PID/root``.
    :raises GuestNotReachable: there is no socket.
    """
    lacking = ""
    for socket in SOCKETS:
        try:
            found = open_below(root, socket)
        except OSError as error:
            lacking = lacking or name_missing(error.errno, "SYS_PTRACE", "DAC_OVERRIDE")
            continue
        try:
            yield f"/proc/self/fd/{found}"
        finally:
            os.close(found)
        return
    raise GuestNotReachable(f"no libvirt socket in {root} ({', '.join(map(str, SOCKETS))}){lacking}")
