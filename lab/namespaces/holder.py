"""The lab from outside its namespaces: lock, loopback listeners, the process that holds the namespaces, clean-up.

`launch` creates the listeners *before* it enters new namespaces, because a socket stays in the network namespace in
which it was created. It passes them to `unshare … python -m lab.supervisor` (the next package to read). That process
and its parent hold a lock on a file in the lab's directory as long as either lives. A process that gets the lock can
therefore rely on the lab being dead, whatever ended it, and call `clean`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.layout import GuestKind, LabIdentity, Layout
from lab.namespaces import cgroups


class LabRunningError(Exception):
    """A lab is running in this directory."""


class LabStuckError(Exception):
    """A part of a lab could not be stopped or removed; the message names it."""


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """The supervisor's argument, passed as JSON on its command line."""

    dir: str
    """The lab's directory."""
    bare: bool
    """Whether the sample network and VM are left out."""
    without: tuple[str, ...]
    """The roles that are not started, because the user runs them."""
    apiserver_fd: int
    """Listening socket, created outside, that the API server inherits, or that is relayed to it."""
    nats_fd: int
    """Listening socket, created outside, that the supervisor relays to nats-server."""
    progress_fd: int
    """Write end of the pipe to the caller of `lab up`."""
    deadline: float
    """Seconds from `started_at` until everything must be ready."""
    guests: GuestKind
    kubernetes: str | None
    """Version of Kubernetes itself as the cluster; None for the lab's own API server."""
    kubelet: bool
    """Whether a kubelet on containerd 2 runs the pods instead of `lab/node`."""
    kubevirt: str | None
    """Version of the played KubeVirt that owns the VMs; None if hotnic does."""
    otlp: str | None
    """URL of the collector to which the lab exports its traces."""
    nodes: int
    """The number of nodes."""
    outside_fd: int
    """The machine's network namespace, in which connections to the collector are created; -1 without a collector."""
    started_at: float
    """CLOCK_MONOTONIC at the start of `lab up`, so that times printed outside and inside have the same origin."""


def acquire(layout: Layout, timeout: float = 0.0) -> int:
    """Return a descriptor that holds the lab's lock.

    :param timeout: seconds to wait for the lock.
    :raises LabRunningError: another process holds it.
    """
    layout.dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            # flock(2) belongs to the open file, which children inherit: the lock ends with the last of them.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise LabRunningError(str(layout.dir)) from None
            time.sleep(0.01)
        else:
            return fd


def is_running(layout: Layout) -> bool:
    """Return whether a lab runs in this directory, that is: whether its lock is held."""
    if not layout.lock.exists():
        return False
    try:
        os.close(acquire(layout))
    except LabRunningError:
        return True
    return False


def launch(
    layout: Layout,
    *,
    bare: bool,
    without: tuple[str, ...],
    deadline: float,
    guests: GuestKind = "qemu",
    kubernetes: str | None = None,
    kubelet: bool = False,
    kubevirt: str | None = None,
    otlp: str | None = None,
    nodes: int = 1,
) -> Iterator[dict[str, Any]]:
    """Start a lab and yield the supervisor's progress messages until it is ready or has failed.

    The lab continues when the caller ends.

    :raises LabRunningError: a lab is already running in this directory.
    :raises LabStuckError: leftovers of an earlier lab cannot be removed.
    :raises OSError: no loopback port is free, or `unshare` cannot be run.
    """
    started_at = time.monotonic()
    lock = acquire(layout)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC) if otlp else -1
    # Both sockets must exist before `unshare`: they stay in the machine's network namespace.
    with loopback_listener() as apiserver, loopback_listener() as nats, os.fdopen(read_end) as progress:
        try:
            # Holding the lock proves that no lab runs here, so whatever is left belongs to a dead one.
            clean(layout)
            layout.prepare()
            identity = LabIdentity(
                id=secrets.token_hex(4),
                apiserver_port=apiserver.getsockname()[1],
                nats_port=nats.getsockname()[1],
                pid=0,
                started=time.time(),
            )
            layout.write_identity(identity)
            options = SupervisorOptions(
                str(layout.dir),
                bare,
                without,
                apiserver.fileno(),
                nats.fileno(),
                write_end,
                deadline,
                guests,
                kubernetes,
                kubelet,
                kubevirt,
                otlp,
                nodes,
                outside,
                started_at,
            )
            fds = (lock, write_end, apiserver.fileno(), nats.fileno(), *([outside] if otlp else []))
            holder = spawn(layout, options, fds)
        finally:
            os.close(write_end)
            os.close(lock)
            if otlp:
                os.close(outside)
        layout.write_identity(replace(identity, pid=holder.pid, holder_ticks=start_ticks(holder.pid) or 0))
        for line in progress:
            message = json.loads(line)
            yield message
            if message.get("done"):
                # Do not wait for end of file: the process that holds the namespaces has inherited the write end.
                break
    # The holder outlives this process; without a return code, `Popen` warns about a child that still runs.
    holder.returncode = holder.poll() or 0


def spawn(layout: Layout, options: SupervisorOptions, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start the process that holds the lab's namespaces, in a session of its own.

    :param fds: descriptors that it inherits.
    """
    packages = Path(__file__).resolve().parents[2]
    # If `unshare` is killed, --kill-child ends the supervisor, and the PID namespace ends with that process 1.
    unshare = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
    # With `slave`, the machine's mounts appear inside, and none of the lab's outside.
    argv = (*unshare, "--propagation", "slave", sys.executable, "-m", "lab.supervisor")
    body = json.dumps({name: getattr(options, name) for name in SupervisorOptions.__slots__})
    with layout.log("supervisor").open("ab") as log:
        return subprocess.Popen(
            (*argv, body),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"},
            pass_fds=fds,
            start_new_session=True,
        )


def loopback_listener() -> socket.socket:
    """Return a socket that listens on a free port of 127.0.0.1 in the current network namespace."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


def kill(layout: Layout) -> None:
    """Send SIGKILL to the holder of the lab's namespaces, which ends every process in them."""
    identity = layout.identity()
    # The start time tells the holder from an unrelated process that got the same id later.
    if identity is None or identity.pid <= 0 or start_ticks(identity.pid) != identity.holder_ticks:
        return
    try:
        os.kill(identity.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def clean(layout: Layout) -> None:
    """Remove what a dead lab left; the caller must hold the lab's lock.

    :raises LabStuckError: a cgroup of the lab still holds processes.
    """
    identity = layout.identity()
    if identity is not None and identity.pid > 0:
        with contextlib.suppress(ChildProcessError):
            # The holder is a child only of the process that started it; elsewhere its adoptive parent reaps it.
            os.waitpid(identity.pid, os.WNOHANG)
    if identity is not None:
        stuck = cgroups.remove(identity.cgroup)
        if stuck:
            raise LabStuckError(f"cgroups still hold processes: {', '.join(map(str, stuck))}")
    layout.remove_state()


def start_ticks(pid: int) -> int | None:
    """Return the start time of process `pid` in clock ticks since boot (field 22 of proc(5)'s stat), or None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the command in parentheses, may contain spaces and parentheses itself.
    return int(stat.rpartition(")")[2].split()[19])
