"""A cgroup (version 2) for a run of a plugin that takes long: it is killed as a whole, and its memory is limited.

A run joins its cgroup after :data:`JOIN_AFTER`. Moving a process to a cgroup makes the kernel wait until no processor
starts or ends one (some milliseconds), during which none can on the whole node: a plug does not wait for that.

The cgroups are made below the daemon's own one. In a container, the cgroup file system is usually read-only; the same
cgroup is then found in the node's file system, if that is mounted writable. Limits need the daemon in a leaf: the
kernel gives controllers only to children of a cgroup that has no processes of its own.
Next: :mod:`services.multus.cni.plugin_marks`.
"""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES

NONE: Final = "none"
"""The setting that makes no cgroups."""
PREFIX: Final = "hotnic-plugin-"
DAEMON: Final = "hotnic-daemon"
"""The daemon's cgroup below its own one, where plugins have limits."""
CONTROLLERS: Final = ("memory", "pids")
MAX_WALKED: Final = 20_000
"""Cgroups of a node that are searched for the daemon's own one."""
JOIN_AFTER: Final = 1.0
"""Seconds after which a run joins its cgroup. Plugins of most networks take less than 0.1."""
MAX_LEFT: Final = 256
"""Cgroups with processes that a plugin has left. One more is forgotten; it goes with the daemon's own cgroup."""


class CgroupLimits(NamedTuple):
    """The limits of one run of a plugin.

    :ivar memory: bytes.
    :ivar pids: processes and threads.
    """

    memory: int
    pids: int


class PluginCgroup:
    """The cgroup of one run.

    :param path: its directory; ``None`` if it could not be made.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, pid: int) -> None:
        """Move a process into the cgroup, unless it has ended."""
        self._write("cgroup.procs", str(pid))

    def kill(self) -> None:
        """Kill every process of the cgroup."""
        if self.path is None or self._write("cgroup.kill", "1"):
            return
        # Linux before 5.14. What forks meanwhile is killed by the next look.
        for _ in range(8):
            pids = self._read("cgroup.procs").split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if not pids:
                return

    def is_out_of_memory(self) -> bool:
        """Return whether the kernel has killed a process of it for its memory limit."""
        events = dict(line.split() for line in self._read("memory.events").splitlines())
        return events.get("oom_kill", "0") != "0"

    def limit(self, limits: CgroupLimits) -> None:
        """Set the limits."""
        self._write("memory.max", str(limits.memory))
        # Without it, the kernel kills one process, and the others wait for it.
        self._write("memory.oom.group", "1")
        self._write("pids.max", str(limits.pids))

    def remove(self) -> bool:
        """Remove the cgroup, unless it has processes; return whether it is gone."""
        if self.path is not None:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return True
            except OSError:
                return False
        return True

    def _write(self, name: str, value: str) -> bool:
        if self.path is None:
            return False
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text() if self.path is not None else ""
        except OSError:
            return ""


class PluginCgroups:
    """Makes and removes the cgroups of plugins.

    :param parent: the cgroup below which they are made.
    :param limits: their limits; ``None``: the kernel has none here.
    :ivar join_after: :data:`JOIN_AFTER`.
    """

    def __init__(self, parent: Path, limits: CgroupLimits | None = None, *, join_after: float = JOIN_AFTER) -> None:
        self.parent = parent
        self.limits = limits
        self.join_after = join_after
        self._number = 0
        self._left: deque[PluginCgroup] = deque(maxlen=MAX_LEFT)
        STORES.watch("plugin-cgroups", self, lambda cgroups: len(cgroups._left), MAX_LEFT)
        for leftover in parent.glob(f"{PREFIX}*"):
            # Of a daemon that was killed.
            PluginCgroup(leftover).remove()

    def make(self) -> PluginCgroup:
        """Make the cgroup of one run."""
        self._number += 1
        path = self.parent / f"{PREFIX}{os.getpid()}-{self._number}"
        try:
            path.mkdir()
        except OSError:
            # Such as for `cgroup.max.descendants`. The plugin runs nevertheless.
            return PluginCgroup(None)
        cgroup = PluginCgroup(path)
        if self.limits is not None:
            cgroup.limit(self.limits)
        return cgroup

    def release(self, cgroup: PluginCgroup) -> None:
        """Remove the cgroup of a run that has ended, and those of earlier runs whose last process has ended by now."""
        self._left.append(cgroup)
        self.close()

    def close(self) -> None:
        """Remove all cgroups that have no processes."""
        left = [cgroup for cgroup in self._left if not cgroup.remove()]
        self._left.clear()
        self._left.extend(left)


def open_cgroups(setting: str | None, limits: CgroupLimits, host_root: str, log: Log) -> PluginCgroups | None:
    """Return the cgroups for plugins; ``None``, with one line in the log, where they cannot be made.

    :param setting: the parent's name, as in ``/proc/self/cgroup``; ``none``; or ``None`` for the daemon's own cgroup.
    :param limits: the limits of one run.
    :param host_root: where the node's file system is mounted.
    """
    if setting == NONE:
        return None
    mounts = cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    parent = find_named(mounts, setting) if setting else find_own(mounts, _own_name(), host_root)
    if parent is None:
        log.warning(
            "plugins have no cgroups of their own",
            reason="no writable cgroup v2",
            effect="plugins have no limits, and those of their processes that have changed user are not killed",
        )
        return None
    limited = enable_limits(parent)
    log.info("plugins have cgroups of their own", parent=str(parent), limits=limited)
    return PluginCgroups(parent, limits if limited else None)


def _own_name() -> str | None:
    """Return the name of this process' cgroup; ``None`` without cgroup v2."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def cgroup_mounts(mountinfo: str) -> list[tuple[str, Path]]:
    """Return the mounts of cgroup v2: the cgroup at their root, and their mount point."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            fields = left.split(" ")
            found.append((fields[3], Path(fields[4].encode().decode("unicode_escape"))))
    return found


def find_named(mounts: list[tuple[str, Path]], name: str) -> Path | None:
    """Return the writable directory of a named cgroup, which is made if need be; ``None`` if there is none."""
    for directory in _directories(mounts, name):
        if not directory.exists() and _is_writable(directory.parent):
            directory.mkdir(exist_ok=True)
        if _is_writable(directory):
            return directory
    return None


def find_own(mounts: list[tuple[str, Path]], name: str | None, host_root: str) -> Path | None:
    """Return a writable directory of this process' own cgroup; ``None`` if there is none.

    :param mounts: the mounts of cgroup v2.
    :param name: the cgroup's name as this process sees it.
    :param host_root: where the node's file system is mounted.
    """
    seen = [directory for directory in _directories(mounts, name or "") if directory.is_dir()]
    for directory in seen:
        if _is_writable(directory):
            return directory
    # In a cgroup namespace, the names above its root are not shown, but a cgroup has one inode number everywhere.
    for name in ("sys/fs/cgroup", "sys/fs/cgroup/unified") if seen and host_root != "/" else ():
        top = Path(host_root) / name
        if (top / "cgroup.controllers").exists() and _is_writable(top):
            return _find_inode(top, seen[0].stat().st_ino)
    return None


def _directories(mounts: list[tuple[str, Path]], name: str) -> Iterator[Path]:
    for root, point in mounts:
        with contextlib.suppress(ValueError):
            yield point / PurePosixPath(name).relative_to(root)


def _find_inode(top: Path, inode: int) -> Path | None:
    for number, (directory, _, _) in enumerate(os.walk(top)):
        if number > MAX_WALKED:
            break
        if os.stat(directory).st_ino == inode:
            return Path(directory)
    return None


def enable_limits(parent: Path) -> bool:
    """Let the children of a cgroup have limits; return whether they have.

    Where this process is in the cgroup, it moves to a child, unless it shares the cgroup with others: these are none of
    hotnic's.
    """
    try:
        available = (parent / "cgroup.controllers").read_text().split()
        if not set(CONTROLLERS) <= set(available):
            return False
        processes = (parent / "cgroup.procs").read_text().split()
        if processes == [str(os.getpid())]:
            leaf = PluginCgroup(parent / DAEMON)
            (parent / DAEMON).mkdir(exist_ok=True)
            leaf.add(os.getpid())
        elif processes:
            return False
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
    except OSError:
        return False
    return True


def _is_writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)
