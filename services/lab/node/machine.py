"""One QEMU process, or its double, that outlives the process which started it.

A kubelet may be restarted without harm to its pods, so a guest is not tied to the node's process: it runs in a
session of its own and is watched through a pidfd, whether it was started here or found running (`adopt`). Command
line and console are those of `services.lab.guest`; which guests run is decided in `launcher.py`.
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

from services.lab.guest.console import ConsoleFollower
from services.lab.guest.qemu import (
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

NICE = 10
"""Of an emulated guest: a weight of 110 where a role has 1024 (sched(7))."""

UNKNOWN_EXIT = 1
"""Exit code of a process that ended while nobody was there to ask."""

SOCKETS = (QMP_SOCKET, LAB_QMP_SOCKET, AGENT_SOCKET, CONSOLE_SOCKET)
DOUBLE = "services.lab.guest.double"
GRACE = 2.0
"""Seconds between SIGTERM, on which QEMU quits in order, and SIGKILL."""

SOCKETS_WITHIN = 5.0
"""Seconds QEMU may take to open its monitor."""


class MachineError(Exception):
    """QEMU could not be started; the message ends with its own words."""


class Machine:
    """A running, or ended, QEMU. Made by `start` or `adopt`."""

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
        self._loop.add_reader(self._pidfd, self._has_ended)

    @classmethod
    async def start(cls, spec: GuestSpec, launch: Sequence[str], on_end: Callable[[], None]) -> Machine:
        """Start QEMU behind the prefix `launch` (which must exec); returns once its monitors are open.

        :raises MachineError: it did not start.
        """
        prepare(spec.folder)
        machine_line = double_line(spec) if spec.double else command_line(spec, QBOOT if QBOOT.exists() else None)
        argv = [*launch, *machine_line]
        try:
            child = spawn(argv, spec.folder / QEMU_LOG)
        except OSError as error:
            raise MachineError(f"{argv[0]} cannot be started: {error}") from error
        if spec.accel == "tcg":
            give_way(child.pid)
        machine = cls(spec.folder, child.pid, child, on_end)
        await machine.console.__aenter__()
        try:
            async with asyncio.timeout(SOCKETS_WITHIN):
                await machine.opened()
        except TimeoutError as error:
            await machine.stop()
            raise MachineError(f"QEMU opened no monitor in {SOCKETS_WITHIN:g} s{machine.last_words()}") from error
        if machine.ended.is_set():
            raise MachineError(f"QEMU ended with code {machine.code}{machine.last_words()}")
        return machine

    @classmethod
    async def adopt(cls, folder: Path, pid: int, on_end: Callable[[], None]) -> Machine | None:
        """Return the QEMU that an earlier process started, None when it has ended since."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()  # noqa: ASYNC240 (procfs does not block)
            if os.fsencode(folder) not in command:
                return None
            machine = cls(folder, pid, None, on_end)
        except OSError:
            return None
        await machine.console.__aenter__()
        return machine

    async def opened(self) -> None:
        """Return once QEMU has opened its monitors, or has ended."""
        while True:
            if self.ended.is_set() or has_sockets(self.folder):
                return
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """End QEMU: SIGTERM, after a grace SIGKILL; returns once it is gone. Harmless when it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self.ended.wait()
        await self.release()

    async def release(self) -> None:
        """Stop watching; the machine goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            await self.console.__aexit__(None, None, None)
            if self._child is not None and self._child.returncode is None:
                # Left running on purpose; `Popen` would warn about a child that nobody waited for.
                self._child.returncode = 0

    def last_words(self) -> str:
        """Return what QEMU wrote on its standard error, for a message."""
        try:
            text = (self.folder / QEMU_LOG).read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-500:]}" if text else ""

    def _has_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.code = self._child.wait() if self._child is not None else UNKNOWN_EXIT
        self.ended.set()
        self.console.end(f"QEMU ended with code {self.code}{self.last_words()}")
        self._on_end()


def give_way(pid: int) -> None:
    """Let an emulated guest, or its double, give way to the roles: its session, and where there are none, the process.

    In a cluster no guest's processor is emulated, and a launcher pod's share is small beside a node agent's: KubeVirt
    asks for a tenth of a processor per vCPU (``cpuAllocationRatio``, 10 by default: its user guide, "Resources requests
    and limits"). NICE gives about that ratio.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
        # With autogroups, as on Debian, niceness counts within a session only; the session has its own.
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def double_line(spec: GuestSpec) -> list[str]:
    """Return the argument vector of a guest's double: the same sockets and cards, no machine."""
    folder = spec.folder
    # Without site-packages: it needs none, and starts in half the time.
    arguments = [sys.executable, "-S", "-m", DOUBLE, "--ports", str(spec.ports), "--cpus", str(spec.cores)]
    for monitor in (QMP_SOCKET, LAB_QMP_SOCKET):
        arguments += ["--monitor", str(folder / monitor)]
    arguments += ["--agent", str(folder / AGENT_SOCKET), "--console", str(folder / CONSOLE_LOG)]
    for nic in spec.nics:
        arguments += ["--nic", f"{nic.interface}={nic.mac}"]
    return arguments


def prepare(folder: Path) -> None:
    """Make the guest's folder, without sockets and logs of an earlier run."""
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
