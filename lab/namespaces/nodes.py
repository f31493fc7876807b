"""The namespaces of each further node of a lab: a mount and a network namespace below the lab's own.

The first node is in the lab's own namespaces (`isolation.py`). A further one has the same fixed paths with folders and
a loopback interface of its own; all nodes share the PID namespace and whatever else the lab's file system shows. No
process holds these namespaces: process 1 keeps descriptors of them, which the other processes of the lab reach below
`/proc/1/fd`. `lab.node.uplinks` joins the nodes' bridges.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.layout import SCRATCH, Layout
from lab.namespaces import isolation
from lab.namespaces.isolation import mount

# <linux/sched.h>
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000
# <linux/mount.h>
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2


@dataclass(frozen=True, slots=True)
class NodeNamespaces:
    """The namespaces of a further node, as process 1 holds them.

    :ivar mounts: descriptor of the mount namespace.
    :ivar network: descriptor of the network namespace.
    :ivar root: descriptor of the root directory, with the node's mounts below it.
    :ivar listeners: sockets that listen on 127.0.0.1 in the network namespace.
    """

    mounts: int
    network: int
    root: int
    listeners: tuple[socket.socket, ...]

    @property
    def enter(self) -> tuple[str, ...]:
        """Return the command prefix that runs a program on the node."""
        return ("nsenter", f"--mount=/proc/1/fd/{self.mounts}", f"--net=/proc/1/fd/{self.network}", "--")

    def path(self, inside: Path) -> Path:
        """Return the path by which process 1 reaches a file of the node."""
        return Path(f"/proc/self/fd/{self.root}") / inside.relative_to("/")


async def create(layout: Layout, ports: Sequence[int]) -> NodeNamespaces:
    """Create the namespaces of the node in `layout`, with its mounts and its loopback interface.

    :param ports: ports of 127.0.0.1 inside on which to listen.
    :raises OSError: the kernel refused one of them.
    """
    # A thread of its own: it is in other namespaces than the rest of the process, and must not serve anything else.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, _create_in_thread, layout, ports)


def _create_in_thread(layout: Layout, ports: Sequence[int]) -> NodeNamespaces:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (unshare)", str(layout.node_state))
    # As between machine and lab: mounts come in and do not go out, and containerd's shims see the sandboxes' mounts.
    mount("none", "/", None, isolation.MS_REC | MS_SLAVE)
    mount("none", "/", None, isolation.MS_REC | isolation.MS_SHARED)
    isolation.set_loopback_up()
    isolation.mount_sysfs()
    layout.prepare_node()
    for path in (*layout.binds(), *SCRATCH):
        # What is mounted here is the first node's: nothing of it may be seen, or kept, by this node.
        if libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} (umount)", str(path))
    isolation.mount_fixed_paths(layout)
    listeners = tuple(socket.create_server(("127.0.0.1", port)) for port in ports)
    own = Path("/proc/thread-self/ns")
    # Not inherited by other processes, which open them below /proc/1/fd.
    mounts, network = (os.open(own / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("mnt", "net"))
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return NodeNamespaces(mounts, network, root, listeners)
