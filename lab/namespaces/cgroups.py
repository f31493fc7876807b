"""Create, find and remove the cgroups of a lab by name.

When the lab's namespaces end, its processes, links and mounts end with them. Its cgroups remain, because the cgroup
file systems belong to the machine. containerd creates its own below `/<lab's cgroup>` in each hierarchy (one per
controller with cgroup v1, a single one with v2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lab.namespaces.isolation import unescape


def hierarchies(mountinfo: str) -> list[Path]:
    """Return the mount points of all cgroup hierarchies, from the text of /proc/self/mountinfo."""
    points = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            points.append(Path(unescape(left.split(" ")[4])))
    return points


def folders(name: str) -> Iterator[Path]:
    """Yield the cgroup called `name` in every hierarchy that has one."""
    for point in hierarchies(Path("/proc/self/mountinfo").read_text()):
        folder = point / name
        if folder.is_dir():
            yield folder


def create(name: str) -> None:
    """Create the cgroup called `name` in every hierarchy, such that processes can run in it at once.

    :raises OSError: the kernel rejected it.
    """
    for point in hierarchies(Path("/proc/self/mountinfo").read_text()):
        folder = point / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # A new cgroup of cgroup v1 has no CPUs and no memory, and refuses processes.
            own, parent = folder / file, point / file
            if own.exists() and parent.exists() and not own.read_text().strip():
                own.write_text(parent.read_text())


def remove(name: str, timeout: float = 3.0) -> list[Path]:
    """Remove the cgroups called `name` with all their descendants; return those that cannot be removed.

    :param timeout: seconds to retry. A killed process leaves its cgroup shortly after it was reaped, so that
        rmdir(2) fails with EBUSY at first.
    """
    deadline = time.monotonic() + timeout
    while True:
        for top in list(folders(name)):
            for folder, _, _ in os.walk(top, topdown=False):
                # A cgroup can be removed only when it has no children, hence bottom-up.
                try:
                    os.rmdir(folder)
                except OSError:
                    continue
        left = list(folders(name))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)
