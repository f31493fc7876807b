"""Executes CNI plugins: one process each, with a deadline, its output taken and its error sorted.

Standard input, output and error are memory files rather than pipes: nothing has to be pumped, and a grandchild that
keeps its standard output open (a DHCP client) holds up nobody. The end of the process is awaited on its pidfd,
so neither a thread nor a child watcher is involved; that is also why this is not ``asyncio.subprocess``
(1 ms cheaper an execution). Not here: chains of plugins, see :mod:`services.multus.network`.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from structlog.typing import FilteringBoundLogger

from schemas import cni
from services.common.telemetry.propagation import traceparent_of
from services.multus.errors import CniError, NotStartedError, decode_error

BUSY_PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between attempts to start a plugin whose file is being written right now."""

_CHROOT: Final = shutil.which("chroot", path=f"{os.defpath}:/usr/sbin:/sbin") or "/usr/sbin/chroot"
_CHROOT_FAILED: Final = 126
"""With this code ``chroot`` ends when it could not execute the program."""

KILL_PATIENCE: Final = 2.0
"""Seconds in which a killed plugin is waited for: one that hangs in the kernel ends when the kernel lets it."""

MAX_OUTPUT: Final = 4 * 1024 * 1024
"""Bytes read of what a plugin prints."""


@dataclass(frozen=True)
class Invocation:
    """The environment of a CNI call; the names are the specification's."""

    command: cni.Command
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    def environ(self) -> dict[str, str]:
        """The ``CNI_*`` variables, without the ones that this command does not have."""
        values = {"CNI_COMMAND": self.command.value}
        if self.command not in (cni.Command.STATUS, cni.Command.GC, cni.Command.VERSION):
            values |= {"CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": self.ifname}
            values["CNI_ARGS"] = self.args
        return values


class Executor:
    """Runs plugins found in a list of directories, and then in those of the daemon's own ``CNI_PATH``.

    :param timeout: seconds that one plugin may take; then its process group is killed.
    :param chroot: the node's root as seen from here, where the daemon is in a container: plugins are found and executed
        inside it, so that the paths in their configurations are the node's.
    """

    def __init__(
        self,
        search: Sequence[str],
        *,
        tracer: Tracer,
        log: FilteringBoundLogger,
        timeout: float = 60.0,
        environ: Mapping[str, str] = os.environ,
        chroot: Path | None = None,
        busy_pauses: Sequence[float] = BUSY_PAUSES,
        kill_patience: float = KILL_PATIENCE,
    ) -> None:
        self._search = [*search, *filter(None, environ.get("CNI_PATH", "").split(":"))]
        self._chroot = chroot
        self._tracer = tracer
        self._log = log
        self._timeout = timeout
        self._busy_pauses = busy_pauses
        self._kill_patience = kill_patience
        self._environ = {key: value for key, value in environ.items() if not key.startswith("CNI_")}

    def find(self, plugin: str) -> str:
        """The path of a plugin, inside the root where it will be executed: the first regular file of that name.

        :raises CniError: there is none.
        """
        for folder in self._search:
            path = os.path.join(folder, plugin)
            if os.path.isfile(f"{self._chroot}{path}" if self._chroot else path):
                return path
        raise CniError(cni.Code.INTERNAL, f'failed to find plugin "{plugin}" in path [{" ".join(self._search)}]')

    async def run(self, plugin: str, call: Invocation, stdin: bytes) -> bytes:
        """Execute a plugin and return what it printed.

        :raises NotStartedError: it could not be started.
        :raises CniError: it failed (its own code), or did not end in time (code 11).
        """
        with self._tracer.start_as_current_span(
            f"cni {call.command.value} {plugin}", kind=SpanKind.CLIENT, record_exception=False
        ) as span:
            span.set_attribute("cni.command", call.command.value)
            span.set_attribute("cni.plugin", plugin)
            span.set_attribute("cni.ifname", call.ifname)
            try:
                return await self._run(plugin, call, stdin)
            except CniError as error:
                span.set_attribute("cni.error.code", error.code)
                span.set_status(Status(StatusCode.ERROR, error.msg))
                raise

    async def _run(self, plugin: str, call: Invocation, stdin: bytes) -> bytes:
        path = self.find(plugin)
        argv = [_CHROOT, str(self._chroot), path] if self._chroot else [path]
        environ = self._environ | call.environ() | {"CNI_PATH": ":".join(self._search)}
        traceparent = traceparent_of()
        if traceparent:
            environ["TRACEPARENT"] = traceparent
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                code, out, err = await self._patiently(argv, environ, stdin)
        except TimeoutError:
            message = f"{_failed(plugin, call)}: it did not end within {self._timeout:g} s and was killed"
            raise CniError(cni.Code.TRY_AGAIN_LATER, message) from None
        except OSError as error:
            raise NotStartedError(cni.Code.IO_FAILURE, f"{_failed(plugin, call)}: {error}") from error
        text = err.decode(errors="replace").strip()
        self._log.debug(
            "plugin ended",
            plugin=plugin,
            command=call.command.value,
            container=call.container_id,
            ifname=call.ifname,
            exit=code,
            ms=round((time.monotonic() - started) * 1000, 1),
        )
        if text:
            self._log.info("plugin wrote to standard error", plugin=plugin, command=call.command.value, stderr=text)
        if code:
            raise _error(plugin, call, code, out, text)
        return out

    async def _patiently(self, argv: list[str], environ: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Run it; a file that is still open for writing is tried again."""
        for pause in self._busy_pauses:
            try:
                code, out, err = await _once(argv, environ, stdin, self._kill_patience)
                if not (code == _CHROOT_FAILED and self._chroot and b"Text file busy" in err):
                    return code, out, err
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise
            await asyncio.sleep(pause)
        return await _once(argv, environ, stdin, self._kill_patience)


def _failed(plugin: str, call: Invocation) -> str:
    return f'plugin type="{plugin}" failed ({call.command.value.lower()})'


def _error(plugin: str, call: Invocation, code: int, out: bytes, err: str) -> CniError:
    error = decode_error(out)
    if error is not None:
        return error.prefixed(_failed(plugin, call))
    how = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    said = out[:500].decode(errors="replace").strip() or err[:500]
    return CniError(cni.Code.INTERNAL, f"{_failed(plugin, call)}: {how}" + (f": {said}" if said else ""))


async def _once(
    argv: list[str], environ: Mapping[str, str], stdin: bytes, kill_patience: float
) -> tuple[int, bytes, bytes]:
    """Run it in a process group of its own. The spawn (vfork and exec) is the short part, so it is on the loop."""
    with contextlib.ExitStack() as stack:
        files = [_memory_file(stack, name, data) for name, data in (("stdin", stdin), ("stdout", b""), ("stderr", b""))]
        pid = os.posix_spawn(  # noqa: ASYNC221
            argv[0],
            argv,
            environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)],
            setpgroup=0,
            # What Python ignores, a plugin must not.
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
        code = await _ended(pid, kill_patience)
        return code, _content(files[1]), _content(files[2])


async def _ended(pid: int, kill_patience: float) -> int:
    """Wait for the end and give the exit code (negative: the signal).

    A cancelled wait (deadline, shutdown) kills the whole group. The child is reaped in any case, at the latest when it
    has ended: to wait for it here, without the loop, would stop the daemon for as long as the kernel holds it.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    status = 0
    try:
        await ended.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(kill_patience):
                await ended.wait()
        raise
    finally:
        if ended.is_set():
            status = _reaped(pid, descriptor)
        else:
            loop.add_reader(descriptor, _reaped, pid, descriptor)
    return os.waitstatus_to_exitcode(status)


def _reaped(pid: int, descriptor: int) -> int:
    """The status of a process that has ended."""
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
    return os.waitpid(pid, 0)[1]


def _memory_file(stack: contextlib.ExitStack, name: str, data: bytes) -> int:
    descriptor = os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    if data:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, MAX_OUTPUT, 0)
