"""Start, watch, stop and reap the supervisor's child processes.

The supervisor is process 1 of its PID namespace, so every orphan (containerd's shims, guests of a node process
that died) becomes its child too. One SIGCHLD handler therefore reaps all of them; asyncio's subprocess support is not
used, because it waits for individual children and the two would compete. A child that dies is not restarted: it is
shown as exited, with its code, until a restart is requested.
`components.py` defines what is started, with which arguments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["running", "exited", "stopped"]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one process."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """File to which standard output and error are appended."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The complete environment; the child inherits no other variable."""
    pass_fds: tuple[int, ...] = ()
    grace: float = 5.0
    """Seconds between SIGTERM and SIGKILL."""


class Child:
    """One started process.

    :ivar exit: resolves to the exit code; a negative code is the number of the signal that ended the process.
    """

    def __init__(self, spec: ProcessSpec, pid: int, exit_: asyncio.Future[int]) -> None:
        self.spec = spec
        self.pid = pid
        self.started = time.time()
        self.exit = exit_
        self.stop_requested = False

    @property
    def state(self) -> State:
        """Return `running`, `stopped` (as requested) or `exited` (by itself)."""
        if not self.exit.done():
            return "running"
        return "stopped" if self.stop_requested else "exited"

    @property
    def code(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.exit.result() if self.exit.done() else None


class EarlyExitError(Exception):
    """A process ended before it was ready; the message contains the end of its log."""

    def __init__(self, child: Child) -> None:
        tail = "\n".join(last_lines(child.spec.log, 12))
        super().__init__(f"{child.spec.name} ended with code {child.code} ({child.spec.log}):\n{tail}")


class Processes:
    """All children by name; a new child replaces an ended one of the same name."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_pid: dict[int, Child] = {}
        self._handles: dict[int, subprocess.Popen[bytes]] = {}
        self.children: dict[str, Child] = {}
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, spec: ProcessSpec) -> Child:
        """Start a process.

        :raises OSError: it cannot be executed.
        :raises ValueError: a process of the same name still runs.
        """
        running = self.children.get(spec.name)
        if running is not None and running.state == "running":
            raise ValueError(f"cannot start {spec.name}: it is already running (pid {running.pid})")
        with spec.log.open("ab") as log:
            handle = subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(spec.env),
                pass_fds=spec.pass_fds,
                # A session of its own keeps terminal signals such as Ctrl-C of `lab up` away from the process.
                start_new_session=True,
            )
        child = Child(spec, handle.pid, self._loop.create_future())
        self._by_pid[handle.pid] = child
        self._handles[handle.pid] = handle
        self.children[spec.name] = child
        return child

    async def run(self, spec: ProcessSpec, timeout: float) -> None:
        """Run a process to its end.

        :param timeout: seconds after which it is killed.
        :raises EarlyExitError: its exit code was not 0.
        :raises TimeoutError: it was killed.
        """
        child = self.start(spec)
        try:
            async with asyncio.timeout(timeout):
                # Without the shield, the timeout would cancel the future that the SIGCHLD handler resolves.
                code = await asyncio.shield(child.exit)
        except (TimeoutError, asyncio.CancelledError):
            if not child.exit.done():
                os.kill(child.pid, signal.SIGKILL)
                await child.exit
            raise
        finally:
            self.children.pop(spec.name, None)
        if code != 0:
            raise EarlyExitError(child)

    async def stop(self, name: str) -> float:
        """Stop `name`: SIGTERM, then SIGKILL after its grace period. Return the seconds that this took."""
        child = self.children.get(name)
        before = time.monotonic()
        if child is None:
            return 0.0
        child.stop_requested = True
        if not child.exit.done():
            os.kill(child.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(child.spec.grace):
                    await asyncio.shield(child.exit)
            except TimeoutError:
                os.kill(child.pid, signal.SIGKILL)
                await child.exit
        return time.monotonic() - before

    def close(self) -> None:
        """Remove the handler of SIGCHLD."""
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._by_pid.pop(pid, None)
            handle = self._handles.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            # `Popen` must not wait for this process again: its id may belong to another process by then.
            if handle is not None:
                handle.returncode = code
            if child is not None and not child.exit.done():
                child.exit.set_result(code)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log: fewer when it is shorter, none when it is missing."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 64 * 1024))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
