"""What a test might leave on the machine: links, network namespaces, mounts, processes, cgroups.

Counted before and after, so that what stood there already, or what a fixture of wider scope holds, does not matter.
"""

import ctypes
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36

_CGROUPS = ("hotnic", "k8s.io", "kubepods", "containerd")

Things = dict[str, set[str]]


def adopt_orphans() -> None:
    """Make processes whose parent ended ours, so that none gets out of sight."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def count() -> Things:
    """Everything of the kinds that a test must not leave."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [(left.split()[4], right.split()[0]) for left, right in mounts]
    return {
        "link": {name for _, name in socket.if_nameindex()},
        "network namespace": {point for point, kind in points if kind == "nsfs"} | _named_namespaces(),
        "mount": {point for point, kind in points if kind != "nsfs"},
        "process": set(_descendants(os.getpid())),
        "cgroup": _empty_cgroups(point for point, kind in points if kind.startswith("cgroup")),
    }


def left_over(before: Things, *, patience: float = 3.0, cgroup_patience: float = 20.0) -> list[str]:
    """What is there now and was not before; what goes by itself within ``patience`` seconds does not count.

    Cgroups belong to the whole machine: a lab that somebody else starts and stops meanwhile has some, too, so they
    are given more time.
    """
    began = time.monotonic()
    while True:
        now = count()
        new = {kind: sorted(now[kind] - before[kind]) for kind in now}
        waited = time.monotonic() - began
        others = any(things for kind, things in new.items() if kind != "cgroup")
        if not any(new.values()) or waited > cgroup_patience or (others and waited > patience):
            return [f"{kind} {thing}" for kind, things in new.items() for thing in things]
        time.sleep(0.05)


def _named_namespaces() -> set[str]:
    try:
        return {f"/run/netns/{name}" for name in os.listdir("/run/netns")}
    except FileNotFoundError:
        return set()


def _descendants(pid: int) -> Iterator[str]:
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if state == "Z" and int(parent) == pid:
            # An adopted orphan that has ended: nobody else collects it, and it is no leftover. A child of our own
            # that nobody waited for is one.
            _reap(int(entry))
            continue
        parents.setdefault(int(parent), []).append((int(entry), name))
    waiting = [pid]
    while waiting:
        for child, name in parents.get(waiting.pop(), []):
            waiting.append(child)
            yield f"{child} ({name})"


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _empty_cgroups(points: Iterable[str]) -> set[str]:
    """Cgroups as the lab and container runtimes make them, without a process in them or below.

    One with processes belongs to somebody who still runs, and other names are the machine's own affair.
    By name, whatever the hierarchy: where version 1 is in use, processes are only in some of the folders of a name.
    """
    found: set[str] = set()
    busy: set[str] = set()
    for point in points:
        for folder, _, _ in os.walk(point):
            name = os.path.relpath(folder, point)
            if not name.startswith(_CGROUPS):
                continue
            try:
                used = bool((Path(folder) / "cgroup.procs").read_text().strip())
            except OSError:
                continue
            found.add(name)
            if used:
                busy |= {name, *map(str, Path(name).parents)}
    return found - busy
