"""The supervisor's children: start, watch, stop, reap.

The supervisor is process 1 of its PID namespace, so every orphan (containerd's shims, guests of a node process
that died) becomes its child too. One SIGCHLD handler therefore reaps them all, and asyncio's own subprocess
support, which waits for single children, is not used beside it. A child that dies is not started again: it stays
visible as exited, with its code, until someone asks for a restart.
What is started, with which arguments, is said in `services.lab.components`.
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
class Spec:
    """How to run one process."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """Standard output and error are appended to it."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment, not an addition to the supervisor's."""
    pass_fds: tuple[int, ...] = ()
    grace: float = 5.0
    """Seconds between SIGTERM and SIGKILL."""


class Child:
    """One started process; `exit` resolves to its exit code, negative for a signal."""

    def __init__(self, spec: Spec, pid: int, exit_: asyncio.Future[int]) -> None:
        self.spec = spec
        self.pid = pid
        self.started = time.time()
        self.exit = exit_
        self.asked_to_stop = False

    @property
    def state(self) -> State:
        """Return running, stopped (asked for) or exited (by itself)."""
        if not self.exit.done():
            return "running"
        return "stopped" if self.asked_to_stop else "exited"

    @property
    def code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.exit.result() if self.exit.done() else None


class EarlyExitError(Exception):
    """A process ended before it was ready; the message carries the end of its log."""

    def __init__(self, child: Child) -> None:
        tail = "\n".join(last_lines(child.spec.log, 12))
        super().__init__(f"{child.spec.name} ended with code {child.code} ({child.spec.log}):\n{tail}")


class Processes:
    """All children, by name; the newest child of a name replaces an ended one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_pid: dict[int, Child] = {}
        self._handles: dict[int, subprocess.Popen[bytes]] = {}
        self.children: dict[str, Child] = {}
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, spec: Spec) -> Child:
        """Start `spec`; raises OSError when it cannot be executed, ValueError when the name still runs."""
        running = self.children.get(spec.name)
        if running is not None and running.state == "running":
            raise ValueError(f"{spec.name} runs already (pid {running.pid})")
        with spec.log.open("ab") as log:
            handle = subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(spec.env),
                pass_fds=spec.pass_fds,
                start_new_session=True,
            )
        child = Child(spec, handle.pid, self._loop.create_future())
        self._by_pid[handle.pid] = child
        self._handles[handle.pid] = handle
        self.children[spec.name] = child
        return child

    async def run(self, spec: Spec, timeout: float) -> None:
        """Run `spec` to its end; raises EarlyExitError for a code other than 0, TimeoutError after `timeout` s."""
        child = self.start(spec)
        try:
            async with asyncio.timeout(timeout):
                code = await asyncio.shield(child.exit)
        except TimeoutError:
            os.kill(child.pid, signal.SIGKILL)
            await child.exit
            raise
        finally:
            self.children.pop(spec.name, None)
        if code != 0:
            raise EarlyExitError(child)

    async def stop(self, name: str) -> float:
        """Stop `name` (SIGTERM, after its grace SIGKILL) and return the seconds it took."""
        child = self.children.get(name)
        before = time.monotonic()
        if child is None:
            return 0.0
        child.asked_to_stop = True
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
        """Stop watching for children."""
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
            if handle is not None:
                handle.returncode = code
            if child is not None and not child.exit.done():
                child.exit.set_result(code)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log, fewer when it is short, none when it is missing."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 64 * 1024))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
