"""A plugin's process: how it starts, how its end is awaited, and how it is killed.

It inherits nothing of the daemon but what its caller names: its root, working directory and umask are those of threads
that only start plugins, and it has no other descriptors than its standard ones, a session of its own, every signal at
its default and, where cgroups are writable, a cgroup of its own.

Standard input, output and error are memory files rather than pipes, for two reasons: no data has to be pumped, and a
grandchild that keeps its standard output open (a DHCP client) delays nothing. The end of the process is awaited on its
pidfd. Next: :mod:`services.multus.cni.plugin_cgroups`.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from services.common.node.capabilities import name_missing
from services.multus.cni.plugin_cgroups import PluginCgroup, PluginCgroups

KILL_TIMEOUT: Final = 2.0
"""Seconds to wait for a killed plugin. A process in an uninterruptible system call ends only when the call returns."""
MAX_OUTPUT: Final = 4 * 1024 * 1024
"""The maximum number of bytes of a plugin's standard output, and of its standard error."""
OUTPUT_INTERVAL: Final = 0.05
"""Seconds between looks at the size of the output: nothing else limits a memory file."""
THREADS: Final = 4
"""Threads that start plugins. A start takes 1 ms."""
UMASK: Final = 0o022

_CLONE_FS: Final = 0x200
"""linux/sched.h: the calling thread has a root, a working directory and a umask of its own from then on."""
_CLOSE_RANGE: Final = 436
"""Number of close_range(2), on every architecture."""
_CLOSE_RANGE_CLOEXEC: Final = 4
_DEFAULTED: Final = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_libc = ctypes.CDLL(None, use_errno=True)


class FloodError(Exception):
    """A plugin wrote more than :data:`MAX_OUTPUT` bytes and was killed."""


class Finished(NamedTuple):
    """How a plugin ended.

    :ivar code: its exit code; negative: the signal.
    :ivar out: its standard output.
    :ivar err: its standard error.
    :ivar out_of_memory: whether the kernel killed it for the memory limit of its cgroup.
    """

    code: int
    out: bytes
    err: bytes
    out_of_memory: bool = False


class PluginProcesses:
    """Runs plugins.

    :param root: directory in which plugins run as their root; ``None``: the daemon's own.
    :param cgroups: makes a cgroup for each plugin; ``None``: they stay in the daemon's own.
    :param kill_timeout: seconds to wait for a killed plugin.
    """

    def __init__(self, *, root: Path | None, cgroups: PluginCgroups | None, kill_timeout: float = KILL_TIMEOUT) -> None:
        self._root = root
        self._cgroups = cgroups
        self._kill_timeout = kill_timeout
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="start-plugin")
        self._entered = threading.local()

    async def run(self, program: str, environ: Mapping[str, str], stdin: bytes) -> Finished:
        """Run a plugin to its end. A cancelled run (deadline, shutdown) kills it with everything that it has started.

        :param program: its path inside the root.
        :param environ: its whole environment.
        :param stdin: its standard input.
        :raises OSError: it could not be started.
        :raises ValueError: a NUL byte is in its path or environment.
        :raises FloodError: it wrote too much.
        """
        with contextlib.ExitStack() as stack:
            files = [_memory_file(stack, name) for name in ("stdin", "stdout", "stderr")]
            _fill(files[0], stdin)
            cgroup = stack.enter_context(self._cgroups.use()) if self._cgroups is not None else None
            _keep_descriptors()
            start = asyncio.get_running_loop().run_in_executor(
                self._threads, self._start, program, environ, files, cgroup
            )
            try:
                pid = await asyncio.shield(start)
            except asyncio.CancelledError:
                # The thread cannot be stopped. What it has started must be killed and reaped, too.
                with contextlib.suppress(OSError, ValueError, TimeoutError, FloodError):
                    pid = await start
                    _kill(pid, cgroup)
                    async with asyncio.timeout(self._kill_timeout):
                        await self._wait(pid, files, cgroup)
                raise
            try:
                code = await self._wait(pid, files, cgroup)
            finally:
                for file in files[1:]:
                    # What the plugin leaves running must not fill the memory with output that nobody reads.
                    _stop_growth(file)
            return Finished(
                code,
                os.pread(files[1], MAX_OUTPUT, 0),
                os.pread(files[2], MAX_OUTPUT, 0),
                code == -signal.SIGKILL and cgroup is not None and cgroup.is_out_of_memory(),
            )

    def _start(
        self, program: str, environ: Mapping[str, str], files: Sequence[int], cgroup: PluginCgroup | None
    ) -> int:
        """Start a plugin in one of the threads and return its process id."""
        if not getattr(self._entered, "done", False):
            _enter(self._root)
            self._entered.done = True
        pid = os.posix_spawn(
            program,
            [program],
            environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
            setsid=True,
            setsigmask=(),
            # Python ignores some, as does whoever starts the daemon with `nohup`, and a child would inherit that.
            setsigdef=_DEFAULTED,
        )
        if cgroup is not None:
            # The kernel could start it there at once (CLONE_INTO_CGROUP), but posix_spawn cannot. A child that the
            # plugin starts before this (0.1 ms) stays outside, and is killed with the process group.
            cgroup.add(pid)
        return pid

    async def _wait(self, pid: int, files: Sequence[int], cgroup: PluginCgroup | None) -> int:
        """Wait until the process ends and return its exit code (negative: the signal).

        The child is reaped in any case. If it does not end in time after it was killed, the event loop reaps it later:
        a blocking wait would stop the daemon for as long as the kernel holds the process.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, ended.set)
        flood = _FloodWatch(files[1:], lambda: _kill(pid, cgroup))
        status = 0
        try:
            await ended.wait()
        except asyncio.CancelledError:
            _kill(pid, cgroup)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._kill_timeout):
                    await ended.wait()
            raise
        finally:
            flood.stop()
            if ended.is_set():
                status = _reap(pid, descriptor)
            else:
                loop.add_reader(descriptor, _reap, pid, descriptor)
        if flood.found:
            raise FloodError
        return os.waitstatus_to_exitcode(status)


class _FloodWatch:
    """Kills a plugin that writes too much."""

    def __init__(self, files: Sequence[int], kill: Callable[[], None]) -> None:
        self._files = files
        self._kill = kill
        self.found = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(OUTPUT_INTERVAL, self._look)

    def stop(self) -> None:
        """Stop to look; a plugin that has ended is looked at once more."""
        self._timer.cancel()
        self.found = self.found or self._exceeded()

    def _exceeded(self) -> bool:
        return any(os.fstat(file).st_size > MAX_OUTPUT for file in self._files)

    def _look(self) -> None:
        if not self._exceeded():
            self._timer = self._loop.call_later(OUTPUT_INTERVAL, self._look)
            return
        self.found = True
        for file in self._files:
            _stop_growth(file)
        self._kill()


def _enter(root: Path | None) -> None:
    """Give the calling thread the root, working directory and umask that the plugins it starts inherit.

    :raises OSError: this process may not change its root.
    """
    if _libc.unshare(_CLONE_FS) != 0:
        raise OSError(ctypes.get_errno(), "cannot give a thread a working directory of its own")
    os.umask(UMASK)
    if root is not None:
        try:
            os.chroot(root)
        except PermissionError as error:
            lacking = name_missing(error.errno, "SYS_CHROOT")
            raise PermissionError(error.errno, f"cannot run plugins in {root}: {error.strerror}{lacking}") from error
    os.chdir("/")


def _keep_descriptors() -> None:
    """Let no program that this process starts inherit a descriptor beyond its standard ones.

    Python opens none otherwise, but whoever started the daemon may have, and so may libraries.
    """
    if _libc.syscall(_CLOSE_RANGE, 3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_CLOEXEC) != 0:
        # Linux before 5.11.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if int(name) > 2:
                    os.set_inheritable(int(name), False)


def _kill(pid: int, cgroup: PluginCgroup | None) -> None:
    """Kill a plugin that is not reaped yet, with its process group and its cgroup."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if cgroup is not None:
        cgroup.kill()


def _reap(pid: int, descriptor: int) -> int:
    """Reap a process that has ended and return its wait status."""
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
    return os.waitpid(pid, 0)[1]


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    descriptor = os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    return descriptor


def _fill(descriptor: int, data: bytes) -> None:
    """Write the content of a memory file, which then can only be read."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)


def _stop_growth(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
