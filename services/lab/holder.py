"""The outside of a lab: its lock, its loopback listeners, the process that holds its namespaces, its remains.

`launch` makes the listeners *before* the namespaces are entered, because a socket keeps the network namespace it
was made in, and hands them to `unshare … python -m services.lab.supervisor` (next module to read). A lock on a
file of the lab's directory is held by that process and its parent as long as either lives; whoever gets the lock
knows that the lab is dead, however it died, and may `clean` after it.
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

from services.lab import cgroups
from services.lab.layout import Guests, Identity, Layout


class LabRunningError(Exception):
    """A lab is alive in this directory."""


class LabStuckError(Exception):
    """Something of a lab could not be ended or removed; the message names it."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the supervisor is told on its command line."""

    dir: str
    bare: bool
    without: tuple[str, ...]
    apiserver_fd: int
    nats_fd: int
    progress_fd: int
    deadline: float
    """Seconds that may pass until everything is ready."""
    guests: Guests
    began: float
    """Monotonic time of the `up`, so that inside and outside count from the same instant."""


def acquire(layout: Layout, timeout: float = 0.0) -> int:
    """Return a descriptor that holds the lab's lock; raises LabRunningError when it is taken for `timeout` s."""
    layout.dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise LabRunningError(str(layout.dir)) from None
            time.sleep(0.01)
        else:
            return fd


def alive(layout: Layout) -> bool:
    """Return whether a lab holds the lock of this directory."""
    if not layout.lock.exists():
        return False
    try:
        os.close(acquire(layout))
    except LabRunningError:
        return True
    return False


def launch(
    layout: Layout, *, bare: bool, without: tuple[str, ...], deadline: float, guests: Guests = "qemu"
) -> Iterator[dict[str, Any]]:
    """Start a lab and yield the supervisor's progress messages until it is up, or has failed.

    Raises LabRunningError when one runs here already, OSError when there is no loopback port or no `unshare`.
    The lab goes on when the caller ends.
    """
    began = time.monotonic()
    lock = acquire(layout)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with loopback_listener() as apiserver, loopback_listener() as nats, os.fdopen(read_end) as progress:
        try:
            clean(layout)
            layout.prepare()
            identity = Identity(
                id=secrets.token_hex(4),
                apiserver_port=apiserver.getsockname()[1],
                nats_port=nats.getsockname()[1],
                pid=0,
                started=time.time(),
            )
            layout.remember(identity)
            orders = Orders(
                str(layout.dir), bare, without, apiserver.fileno(), nats.fileno(), write_end, deadline, guests, began
            )
            fds = (lock, write_end, apiserver.fileno(), nats.fileno())
            holder = spawn(layout, orders, fds)
        finally:
            os.close(write_end)
            os.close(lock)
        layout.remember(replace(identity, pid=holder.pid, holder_ticks=start_ticks(holder.pid) or 0))
        for line in progress:
            message = json.loads(line)
            yield message
            if message.get("done"):
                # Not the pipe's end: the process that holds the namespaces has inherited it and never closes it.
                break
    # The holder lives on without us; `Popen` would complain about a child nobody waited for.
    holder.returncode = holder.poll() or 0


def spawn(layout: Layout, orders: Orders, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start the process that holds the lab's namespaces, in a session of its own."""
    packages = Path(__file__).resolve().parents[2]
    unshare = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
    argv = (*unshare, "--propagation", "slave", sys.executable, "-m", "services.lab.supervisor")
    body = json.dumps({name: getattr(orders, name) for name in Orders.__slots__})
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
    """Return a socket that listens on a free port of this network namespace's 127.0.0.1."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


def kill(layout: Layout) -> None:
    """End the lab at once: SIGKILL to the holder of its namespaces takes everything in them along."""
    identity = layout.identity()
    if identity is None or identity.pid <= 0 or start_ticks(identity.pid) != identity.holder_ticks:
        return
    try:
        os.kill(identity.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def clean(layout: Layout) -> None:
    """Remove what a dead lab left; the caller holds its lock. Raises LabStuckError for what cannot be removed."""
    identity = layout.identity()
    if identity is not None and identity.pid > 0:
        with contextlib.suppress(ChildProcessError):
            # Only where the same process brought the lab up; otherwise whoever adopted the holder collects it.
            os.waitpid(identity.pid, os.WNOHANG)
    if identity is not None:
        stuck = cgroups.remove(identity.cgroup)
        if stuck:
            raise LabStuckError(f"cgroups still hold processes: {', '.join(map(str, stuck))}")
    layout.sweep()


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started (clock ticks since boot; field 22 of proc(5)'s stat), None without it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
