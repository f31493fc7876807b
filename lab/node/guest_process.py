"""One QEMU process, or its double, that outlives the process which started it.

A restart of the kubelet must not harm its pods, so a guest is not tied to the node's process. It runs in a session
of its own and is watched through a pidfd, whether it was started here or adopted. `lab.guest` defines its
command line and console; `launcher.py` decides which guests run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.guest.console import ConsoleFollower
from lab.guest.qemu import (
    AGENT_SOCKET,
    CONSOLE_LOG,
    CONSOLE_SOCKET,
    LAB_QMP_SOCKET,
    QBOOT,
    QEMU_LOG,
    QMP_SOCKET,
    GuestSpec,
    command_line,
)

NICENESS = 10
"""Niceness of an emulated guest: a weight of 110, where a role has 1024 (sched(7))."""

UNKNOWN_EXIT = 1
"""Exit code of a process that ended while no process watched it."""

SOCKETS = (QMP_SOCKET, LAB_QMP_SOCKET, AGENT_SOCKET, CONSOLE_SOCKET)
DOUBLE = "lab.guest.double"
GRACE = 2.0
"""Seconds between SIGTERM, on which QEMU quits in an orderly way, and SIGKILL."""

SOCKETS_WITHIN = 60.0
"""Seconds within which QEMU must open its monitors: less than 1 with a free CPU, many with the priority that it has."""


class GuestStartError(Exception):
    """QEMU did not start; the message ends with its error output."""


class GuestProcess:
    """A QEMU process that runs or has ended. Create it with `start` or `adopt`."""

    def __init__(
        self, folder: Path, pid: int, child: subprocess.Popen[bytes] | None, on_end: Callable[[], None]
    ) -> None:
        self.folder = folder
        self.pid = pid
        self.console = ConsoleFollower(folder / CONSOLE_LOG)
        self.ended = asyncio.Event()
        self.code: int | None = None
        self._child = child
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @classmethod
    async def start(cls, spec: GuestSpec, launch: Sequence[str], on_end: Callable[[], None]) -> GuestProcess:
        """Start QEMU and return once its monitors are open.

        :param launch: command prefix, such as `nsenter --net=PATH --`; it must exec QEMU.
        :param on_end: called when the process ends.
        :raises GuestStartError: it did not start.
        """
        prepare(spec.folder)
        arguments = double_command_line(spec) if spec.double else command_line(spec, QBOOT if QBOOT.exists() else None)
        argv = [*launch, *arguments]
        try:
            child = spawn(argv, spec.folder / QEMU_LOG)
        except OSError as error:
            raise GuestStartError(f"cannot start {argv[0]}: {error}") from error
        if spec.accel == "tcg":
            lower_priority(child.pid)
        process = cls(spec.folder, child.pid, child, on_end)
        await process.console.__aenter__()
        try:
            async with asyncio.timeout(SOCKETS_WITHIN):
                await process.wait_until_open()
        except TimeoutError as error:
            await process.stop()
            raise GuestStartError(
                f"QEMU opened no monitor within {SOCKETS_WITHIN:g} s{process.error_output()}"
            ) from error
        if process.ended.is_set():
            raise GuestStartError(f"QEMU ended with code {process.code}{process.error_output()}")
        return process

    @classmethod
    async def adopt(cls, folder: Path, pid: int, on_end: Callable[[], None]) -> GuestProcess | None:
        """Return the QEMU process that an earlier process started, or None when it has ended."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()  # noqa: ASYNC240 (procfs does not block)
            # The folder in the command line distinguishes QEMU from an unrelated process that got the same id.
            if os.fsencode(folder) not in command:
                return None
            process = cls(folder, pid, None, on_end)
        except OSError:
            return None
        await process.console.__aenter__()
        return process

    async def wait_until_open(self) -> None:
        """Return once QEMU has opened its monitors or has ended."""
        while True:
            if self.ended.is_set() or has_sockets(self.folder):
                return
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Send SIGTERM, after a grace period SIGKILL, and return once QEMU has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self.ended.wait()
        await self.stop_watching()

    async def stop_watching(self) -> None:
        """Stop watching the process; it continues to run."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            await self.console.__aexit__(None, None, None)
            if self._child is not None and self._child.returncode is None:
                # The process keeps running on purpose; without a return code, `Popen` warns about it.
                self._child.returncode = 0

    def error_output(self) -> str:
        """Return QEMU's error output, formatted as the end of a message."""
        try:
            text = (self.folder / QEMU_LOG).read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-500:]}" if text else ""

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.code = self._child.wait() if self._child is not None else UNKNOWN_EXIT
        self.ended.set()
        self.console.end(f"QEMU ended with code {self.code}{self.error_output()}")
        self._on_end()


def lower_priority(pid: int) -> None:
    """Lower the CPU priority of an emulated guest, or its double, below the roles'.

    In a cluster no guest's CPU is emulated, and a launcher pod's share is small beside a node agent's: KubeVirt
    requests a tenth of a CPU per vCPU (``cpuAllocationRatio``, 10 by default: its user guide, "Resources requests and
    limits"). `NICENESS` gives about that ratio.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        # With autogroups, as on Debian, niceness counts only within a session; this file sets the session's.
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


def double_command_line(spec: GuestSpec) -> list[str]:
    """Return the argument vector of a guest's double, with the sockets and NICs of `spec`."""
    folder = spec.folder
    # -S leaves out site-packages, which the double does not need; it starts in half the time.
    arguments = [sys.executable, "-S", "-m", DOUBLE, "--ports", str(spec.ports), "--cpus", str(spec.cores)]
    for monitor in (QMP_SOCKET, LAB_QMP_SOCKET):
        arguments += ["--monitor", str(folder / monitor)]
    arguments += ["--agent", str(folder / AGENT_SOCKET), "--console", str(folder / CONSOLE_LOG)]
    for nic in spec.nics:
        arguments += ["--nic", f"{nic.interface}={nic.mac}"]
    return arguments


def prepare(folder: Path) -> None:
    """Create the guest's folder and remove sockets and logs of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*SOCKETS, CONSOLE_LOG):
        (folder / name).unlink(missing_ok=True)


def has_sockets(folder: Path) -> bool:
    """Return whether QEMU has opened its monitors."""
    return all((folder / name).exists() for name in (QMP_SOCKET, LAB_QMP_SOCKET))


def spawn(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; its output goes to `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
