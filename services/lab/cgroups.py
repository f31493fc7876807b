"""A lab's cgroup folders, found and removed by name.

Namespaces take every process, link and mount of a lab with them; cgroup folders stay, because they belong to the
machine. containerd makes them below `/<lab's cgroup>` of each hierarchy (cgroup v1: one per controller, v2: one).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from services.lab.isolation import unescape


def hierarchies(mountinfo: str) -> list[Path]:
    """Return the mount points of all cgroup hierarchies, from the text of /proc/self/mountinfo."""
    points = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            points.append(Path(unescape(left.split(" ")[4])))
    return points


def folders(name: str) -> Iterator[Path]:
    """Yield the folder called `name` in every hierarchy that has one."""
    for point in hierarchies(Path("/proc/self/mountinfo").read_text()):
        folder = point / name
        if folder.is_dir():
            yield folder


def remove(name: str, timeout: float = 3.0) -> list[Path]:
    """Remove the cgroups called `name` with all below; return those that still hold processes after `timeout` s.

    A killed process leaves its cgroup a little after its death is seen, so a busy folder is tried again.
    """
    deadline = time.monotonic() + timeout
    while True:
        for top in list(folders(name)):
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    continue
        left = list(folders(name))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)
