"""The processes of a run of a plugin: they are found by its mark, a variable in the environment of each of them.

They are found also if they have left the run's process group, but only in the daemon's own cgroup, where plugins start,
or in that of the run. The daemon sees the processes of all pods of the node: those are in cgroups of their own, are
neither moved nor killed whatever their environment is, and not even read: the kernel reads an environment from the
memory of its process, which a file system that does not answer can hold up for ever. Where all processes are in one
cgroup, nobody can guess a mark. Next: :mod:`services.multus.cni.executor`.
"""

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Final

from services.multus.cni.plugin_cgroups import PluginCgroup

PROC: Final = Path("/proc")
ROUNDS: Final = 10
"""How often the processes of a run are looked for: those found may start others meanwhile."""
TIMEOUT: Final = 5.0
"""Seconds for all rounds. A node with 10,000 processes takes 0.1 for one."""
MAX_READ: Final = 4096
"""Environments that one round reads."""
_MAX_ENVIRON: Final = 1 << 20
_MAX_CGROUPS: Final = 1 << 14


def new_mark() -> str:
    """Return the value of the variable for one run, which no other process can guess."""
    return secrets.token_hex(16)


def processes_of(mark: str, until: float, *, proc: Path = PROC, limit: int = MAX_READ) -> set[int]:
    """Return the processes of a run that are in this process' own cgroup.

    A process of another user, or without the mark in its environment, is found only as a child of one that has joined.

    :param mark: ``NAME=value`` of the environment variable that all of them have.
    :param until: monotonic time at which the search ends, with what it has found.
    :param proc: the mount point of proc.
    :param limit: the maximum number of environments that are read.
    """
    # Not once for all: the daemon moves to another cgroup when it starts.
    own = _read(f"{proc}/self/cgroup", _MAX_CGROUPS)
    needle = b"\0" + mark.encode() + b"\0"
    found = set()
    for name in os.listdir(proc):
        if limit == 0 or time.monotonic() >= until:
            break
        if not name.isdigit() or _read(f"{proc}/{name}/cgroup", _MAX_CGROUPS) != own:
            continue
        limit -= 1
        if needle in b"\0" + _read(f"{proc}/{name}/environ", _MAX_ENVIRON):
            found.add(int(name))
    return found


def join(cgroup: PluginCgroup, mark: str) -> None:
    """Move every process of a run into its cgroup."""
    until = time.monotonic() + TIMEOUT
    joined: set[int] = set()
    for _ in range(ROUNDS):
        new = processes_of(mark, until) - joined
        for pid in new:
            cgroup.add(pid)
        joined |= new
        if not new:
            return


def kill_marked(mark: str, cgroup: PluginCgroup | None) -> None:
    """Kill every process of a run.

    :param mark: as of :func:`processes_of`.
    :param cgroup: the cgroup that some of them have joined, or join meanwhile; ``None``: there is none.
    """
    until = time.monotonic() + TIMEOUT
    for _ in range(ROUNDS):
        found = processes_of(mark, until)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if cgroup is not None:
            # After the search: what had left the daemon's cgroup before it is here now.
            cgroup.kill()
        if not found:
            return


def _read(path: str, limit: int) -> bytes:
    """Return the beginning of a file; nothing if it cannot be read, as of a process that has ended."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(limit)
    except OSError:
        return b""
