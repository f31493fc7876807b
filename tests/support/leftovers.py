"""Search for what a test leaves on the machine: links, network namespaces, mounts, processes.

The state before the test is compared with the state after it, so what existed before, or what a fixture of wider scope
holds, does not count. Cgroups are not here: they belong to the whole machine, so those of another run would count.
Who stops a lab searches for that lab's (:func:`tests.support.lab.process.stop`).
"""

import ctypes
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36

Things = dict[str, set[str]]


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that they are found."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def count() -> Things:
    """Return everything of the kinds that a test must not leave."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [(left.split()[4], right.split()[0]) for left, right in mounts]
    return {
        "link": {name for _, name in socket.if_nameindex()},
        "network namespace": {point for point, kind in points if kind == "nsfs"} | _named_namespaces(),
        "mount": {point for point, kind in points if kind != "nsfs"},
        "process": set(_descendants(os.getpid())),
    }


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if the block leaves a link, network namespace, mount or process."""
    before = count()
    yield
    found = left_over(before)
    assert not found, "left behind: " + ", ".join(found)


def left_over(before: Things, *, patience: float = 20.0) -> list[str]:
    """Return what exists now and did not exist before.

    :param patience: seconds for it to disappear by itself.
    """
    began = time.monotonic()
    while True:
        now = count()
        new = {kind: sorted(now[kind] - before[kind]) for kind in now}
        if not any(new.values()) or time.monotonic() - began > patience:
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
            # An adopted orphan that has ended: only this process can reap it, and it is no leftover.
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
