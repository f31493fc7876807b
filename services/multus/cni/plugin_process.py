"""A plugin's process: how it starts, how its end is awaited, and how it is killed.

It inherits nothing of the daemon but what its caller names: it has the node's root, ``/`` as its working directory, a
umask of its own, no other descriptors than its standard ones, and every signal at its default.

Standard input, output and error are memory files rather than pipes, for two reasons: no data has to be pumped, and a
grandchild that keeps its standard output open (a DHCP client) delays nothing. The end of the process is awaited on its
pidfd; it is reaped later. Next: :mod:`services.multus.cni.plugin_cgroups`.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from services.common.node.capabilities import name_missing
from services.multus.cni.plugin_cgroups import PluginCgroup, PluginCgroups
from services.multus.cni.plugin_marks import join, kill_marked, new_mark

KILL_TIMEOUT: Final = 2.0
"""Seconds to wait for a killed plugin. A process in an uninterruptible system call ends only when the call returns."""
MAX_OUTPUT: Final = 4 * 1024 * 1024
"""The maximum number of bytes of a plugin's standard output, and of its standard error."""
OUTPUT_INTERVAL: Final = 0.05
"""Seconds between looks at the size of the output: nothing else limits a memory file."""
THREADS: Final = 4
"""Threads that reap processes, and look for those of plugins that take long, or have to be killed."""
REAP_AFTER: Final = 0.1
"""Seconds from the end of a process until it is reaped. Until the process has left its processor, waitpid(2) spins: for
5 ms of CPU time, and up to 100, where others wait for one. The exit code is known before."""
UMASK: Final = 0o022

_CLONE_FS: Final = 0x200
"""linux/sched.h: the root, the working directory and the umask of a thread."""
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


def reap(pid: int) -> None:
    """Let the kernel release a process that has ended."""
    os.waitpid(pid, 0)


class PluginProcesses:
    """Runs plugins.

    :param root: directory in which plugins run as their root; ``None``: the daemon's own.
    :param cgroups: makes a cgroup for each plugin that takes long; ``None``: they stay in the daemon's own.
    :param mark: name of the environment variable by which the processes of a plugin are found.
    :param kill_timeout: seconds to wait for a killed plugin.
    :param reap: :func:`reap`; it may block.
    """

    def __init__(
        self,
        *,
        root: Path | None,
        cgroups: PluginCgroups | None,
        mark: str,
        kill_timeout: float = KILL_TIMEOUT,
        reap: Callable[[int], None] = reap,
    ) -> None:
        self._root = root
        self._cgroups = cgroups
        self._mark = mark
        self._kill_timeout = kill_timeout
        self._reap = reap
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="plugin-processes")

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
            value = new_mark()
            pid = self._start(program, {**environ, self._mark: value}, files)
            run = _Run(pid, f"{self._mark}={value}", self._threads, self._cgroups)
            try:
                code = await self._wait(run, files)
                return Finished(
                    code,
                    os.pread(files[1], MAX_OUTPUT, 0),
                    os.pread(files[2], MAX_OUTPUT, 0),
                    code == -signal.SIGKILL and run.cgroup is not None and run.cgroup.is_out_of_memory(),
                )
            except FloodError:
                run.kill_rest()
                raise
            finally:
                # What the plugin leaves running must not fill the memory with output that nobody reads.
                limited = [limit_size(file) for file in files[1:]]
                if not all(limited):
                    run.kill_rest()
                run.release()

    def _start(self, program: str, environ: Mapping[str, str], files: Sequence[int]) -> int:
        """Start a plugin and return its process id. The start (vfork and exec) blocks the event loop, but briefly."""
        _keep_descriptors()
        with _inside(self._root):
            return os.posix_spawn(
                program,
                [program],
                environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
                # Not a session, which costs 0.6 ms: the kernel makes a scheduling group for each.
                setpgroup=0,
                setsigmask=(),
                # Python ignores some, as does whoever starts the daemon with `nohup`, and a child would inherit that.
                setsigdef=_DEFAULTED,
            )

    async def _wait(self, run: "_Run", files: Sequence[int]) -> int:
        """Wait until the process ends and return its exit code (negative: the signal).

        The child is reaped in any case, also if it does not end in time after it was killed: a blocking wait would stop
        the daemon for as long as the kernel holds the process.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        descriptor = os.pidfd_open(run.pid)
        loop.add_reader(descriptor, ended.set)
        flood = _FloodWatch(files[1:], run.kill)
        code = 0
        try:
            await ended.wait()
        except asyncio.CancelledError:
            killed = run.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._kill_timeout):
                    await asyncio.shield(killed)
                    await ended.wait()
            raise
        finally:
            flood.stop()
            if ended.is_set():
                code = self._collect(run.pid, descriptor)
            else:
                loop.add_reader(descriptor, self._collect, run.pid, descriptor)
        if flood.found:
            raise FloodError
        return code

    def _collect(self, pid: int, descriptor: int) -> int:
        """Return the exit code of a process that has ended, and have it reaped (:data:`REAP_AFTER`)."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)
        os.close(descriptor)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        # In a thread, because it may block nevertheless.
        loop.call_later(REAP_AFTER, self._threads.submit, self._reap, pid)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


class _Run:
    """One run of a plugin: its cgroup once it takes long, and how it is killed."""

    def __init__(self, pid: int, mark: str, threads: ThreadPoolExecutor, cgroups: PluginCgroups | None) -> None:
        self.pid = pid
        self.cgroup: PluginCgroup | None = None
        self._mark = mark
        self._threads = threads
        self._cgroups = cgroups
        self._loop = asyncio.get_running_loop()
        self._joining: asyncio.Future[None] | None = None
        self._timer = self._loop.call_later(cgroups.join_after, self._join) if cgroups is not None else None

    def kill(self) -> asyncio.Future[None]:
        """Kill the plugin, which is not reaped yet, with its process group and its cgroup; then what else it started.

        :return: done when nothing of it is found any more.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.kill_rest()

    def kill_rest(self) -> asyncio.Future[None]:
        """Kill what the plugin, which may be reaped, has started.

        :return: done when nothing of it is found any more.
        """
        if self._timer is not None:
            # What joined a cgroup from now on would not be found.
            self._timer.cancel()
        if self.cgroup is not None:
            self.cgroup.kill()
        return self._loop.run_in_executor(self._threads, kill_marked, self._mark, self.cgroup)

    def release(self) -> None:
        """Remove the cgroup, or leave it to the processes that the plugin has left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._joining is not None:
            # Not before all have joined: the last one would not find it.
            self._joining.add_done_callback(self._release)

    def _join(self) -> None:
        assert self._cgroups is not None
        self.cgroup = self._cgroups.make()
        self._joining = self._loop.run_in_executor(self._threads, join, self.cgroup, self._mark)

    def _release(self, _: asyncio.Future[None]) -> None:
        if self._cgroups is not None and self.cgroup is not None:
            self._cgroups.release(self.cgroup)


class _FloodWatch:
    """Kills a plugin that writes too much."""

    def __init__(self, files: Sequence[int], kill: Callable[[], object]) -> None:
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
        self._kill()
        for file in self._files:
            limit_size(file)


@contextlib.contextmanager
def _inside(root: Path | None) -> Iterator[None]:
    """Give the calling thread the root, working directory and umask that a process it starts inherits.

    They are the thread's alone meanwhile: other threads open files by the same paths as before. Nothing else may run in
    it. A program such as chroot(1), which would change the root in the child, takes 1 ms more.

    :raises OSError: this process may not change its root.
    """
    if _libc.unshare(_CLONE_FS) != 0:
        raise OSError(ctypes.get_errno(), "cannot give a thread a working directory of its own")
    own_root, own_folder = (os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", "."))
    umask = os.umask(UMASK)
    changed = False
    try:
        if root is not None:
            try:
                os.chroot(root)
                changed = True
            except PermissionError as error:
                lacking = name_missing(error.errno, "SYS_CHROOT")
                message = f"cannot run plugins in {root}: {error.strerror}{lacking}"
                raise PermissionError(error.errno, message) from error
        os.chdir("/")
        yield
    finally:
        if changed:
            os.fchdir(own_root)
            os.chroot(".")
        os.fchdir(own_folder)
        os.umask(umask)
        os.close(own_root)
        os.close(own_folder)


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


def limit_size(descriptor: int) -> bool:
    """Let a memory file have at most ``MAX_OUTPUT`` bytes from now on.

    A hole that a plugin has made in it must go, too: whoever writes into it makes the file no larger.

    :return: whether that is so: a plugin can forbid it (``F_SEAL_SEAL``, ``F_SEAL_SHRINK``).
    """
    try:
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        if os.fstat(descriptor).st_size > MAX_OUTPUT:
            os.ftruncate(descriptor, MAX_OUTPUT)
    except OSError:
        return False
    return True
