"""Execution of CNI plugins: one process each, with a deadline, captured output and classified errors.

All plugins of a call together have a deadline as well (:func:`time_limit`): the container runtime waits for the call.
What a process inherits, and how it is killed, is the subject of :mod:`services.multus.cni.plugin_process`. Chains of
plugins are the subject of :mod:`services.multus.cni.network`.
"""

import asyncio
import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentelemetry.trace import SpanKind, Tracer

from schemas import cni, multus
from services.common.domain.plugin_types import SHIMS
from services.common.node.capabilities import REASONS, name_missing
from services.common.node.paths import resolve_under
from services.common.telemetry.logs import Log
from services.common.telemetry.propagation import traceparent_of
from services.common.telemetry.redact import MAX_QUOTED, redact_configuration
from services.common.telemetry.tracer import fail_span
from services.multus.cni.errors import CniError, DeadlineError, NotStartedError, cut, decode_error
from services.multus.cni.plugin_cgroups import PluginCgroups
from services.multus.cni.plugin_process import KILL_TIMEOUT, MAX_OUTPUT, Finished, FloodError, PluginProcesses

BUSY_PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between attempts to start a plugin whose file is being written. Upstream makes six attempts and then reports
success."""

_OUT_OF_TIME: Final = "has used up its time"

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""``PATH`` of plugins where the daemon has none."""


_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)
"""When the time of the running call ends, on the monotonic clock."""


@contextlib.contextmanager
def time_limit(seconds: float, *, anew: bool = False) -> Iterator[None]:
    """Limit the time of all plugins that run inside, together. What then runs is killed, and nothing else is started.

    :param anew: whether to grant this time even after that of a limit around it.
    """
    ends_at = time.monotonic() + seconds
    token = _ends_at.set(ends_at if anew else min(ends_at, _ends_at.get()))
    try:
        yield
    finally:
        _ends_at.reset(token)


def seconds_left(most: float = math.inf) -> float:
    """Return how long the running call may still take, but no more than a number of seconds."""
    return max(0.0, min(most, _ends_at.get() - time.monotonic()))


@dataclass(frozen=True)
class Invocation:
    """The environment of a plugin's process: the ``CNI_*`` variables of the specification.

    :ivar command: the CNI command.
    :ivar container_id: the sandbox's container id.
    :ivar netns: path of its network namespace; empty when the plugin must not touch a link.
    :ivar ifname: the link's name.
    :ivar args: the text of ``CNI_ARGS``.
    """

    command: cni.CniCommand
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""

    def environ(self) -> dict[str, str]:
        """Return the ``CNI_*`` variables that this command has."""
        values = {"CNI_COMMAND": self.command.value}
        if self.command not in (cni.CniCommand.STATUS, cni.CniCommand.GC, cni.CniCommand.VERSION):
            values |= {"CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": self.ifname}
            values["CNI_ARGS"] = self.args
        return values


class Executor:
    """Runs plugins from a list of directories, followed by those of the daemon's own ``CNI_PATH``.

    :param search: the directories.
    :param tracer: the tracer.
    :param log: the daemon's log.
    :param timeout: seconds that one plugin may take; after that it is killed with everything that it has started.
    :param environ: the daemon's environment, of which plugins get ``PATH`` alone: it may hold passwords and tokens.
    :param chroot: path of the node's root when the daemon runs in a container. Plugins are found and executed inside
        it, so that paths in their configurations are the node's.
    :param busy_pauses: seconds between attempts to start a plugin whose file is being written.
    :param kill_timeout: seconds to wait for a killed plugin.
    :param cgroups: makes a cgroup for each execution that takes long; ``None``: plugins stay in the daemon's own.
    """

    def __init__(
        self,
        search: Sequence[str],
        *,
        tracer: Tracer,
        log: Log,
        timeout: float = 60.0,
        environ: Mapping[str, str] = os.environ,
        chroot: Path | None = None,
        busy_pauses: Sequence[float] = BUSY_PAUSES,
        kill_timeout: float = KILL_TIMEOUT,
        cgroups: PluginCgroups | None = None,
    ) -> None:
        # Absolute, because plugins do not start in this process' working directory.
        folders = [*search, *environ.get("CNI_PATH", "").split(":")]
        self._search = [os.path.abspath(folder) for folder in folders if folder]
        self._chroot = chroot
        self._processes = PluginProcesses(
            root=chroot, cgroups=cgroups, mark=multus.PLUGIN_MARK, kill_timeout=kill_timeout
        )
        self._tracer = tracer
        self._log = log
        self._timeout = timeout
        self._busy_pauses = busy_pauses
        self._environ = {"PATH": environ.get("PATH") or DEFAULT_PATH}

    def find(self, plugin: str) -> str:
        """Return the path of a plugin inside the root where it will be executed: the first regular file of that name.

        :param plugin: the plugin's type.
        :raises CniError: code 999, there is no such plugin; code 7, it is the shim of a multus.
        """
        if plugin in SHIMS:
            # It would call this daemon for the same sandbox and wait for the call that runs it (multus-cni#1099).
            message = f"plugin type {plugin} {cni.NOT_ALLOWED}: only the container runtime calls it"
            raise NotStartedError(cni.CniErrorCode.INVALID_CONFIG, message)
        for folder in self._search:
            path = os.path.join(folder, plugin)
            if self._is_file(path):
                return path
        raise CniError(
            cni.CniErrorCode.INTERNAL, f'failed to find plugin "{plugin}" in path [{" ".join(self._search)}]'
        )

    def _is_file(self, path: str) -> bool:
        if self._chroot is None:
            return os.path.isfile(path)
        try:
            # A link inside the root, such as those of k3s, must not lead out of it.
            return os.path.isfile(resolve_under(self._chroot, path))
        except (OSError, ValueError):
            return False

    async def run(self, plugin: str, invocation: Invocation, stdin: bytes) -> bytes:
        """Execute a plugin and return what it printed.

        :param plugin: the plugin's type.
        :param invocation: its environment.
        :param stdin: its standard input.
        :raises NotStartedError: the plugin could not be started.
        :raises DeadlineError: code 11, the call has no time left for the plugin, or had less than a plugin may take.
        :raises CniError: the plugin failed (with its own code), or exceeded the deadline (code 11).
        """
        with self._tracer.start_as_current_span(
            f"cni {invocation.command.value} {plugin}", kind=SpanKind.CLIENT, record_exception=False
        ) as span:
            span.set_attribute("cni.command", invocation.command.value)
            span.set_attribute("cni.plugin", plugin)
            span.set_attribute("cni.ifname", invocation.ifname)
            try:
                return await self._run(plugin, invocation, stdin)
            except CniError as error:
                span.set_attribute("cni.error.code", error.code)
                fail_span(span, error.msg)
                raise

    async def _run(self, plugin: str, invocation: Invocation, stdin: bytes) -> bytes:
        path = self.find(plugin)
        environ = self._environ | invocation.environ() | {"CNI_PATH": ":".join(self._search)}
        traceparent = traceparent_of()
        if traceparent:
            environ["TRACEPARENT"] = traceparent
        started, limit = time.monotonic(), seconds_left(self._timeout)
        if not limit:
            message = f"{_failure_prefix(plugin, invocation)}: it was not started, because the call {_OUT_OF_TIME}"
            raise DeadlineError(cni.CniErrorCode.TRY_AGAIN_LATER, message)
        try:
            # Upstream waits for a plugin without a limit.
            async with asyncio.timeout(limit):
                finished = await self._run_with_retries(path, environ, stdin)
        except FloodError:
            message = f"{_failure_prefix(plugin, invocation)}: it wrote more than {MAX_OUTPUT} bytes and was killed"
            raise CniError(cni.CniErrorCode.INTERNAL, message) from None
        except TimeoutError:
            message = f"{_failure_prefix(plugin, invocation)}: it did not end within {limit:.3g} s and was killed"
            if limit < self._timeout:
                message = f"{message}, because the call {_OUT_OF_TIME}"
                raise DeadlineError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from None
            raise CniError(cni.CniErrorCode.TRY_AGAIN_LATER, message) from None
        # ValueError: a NUL byte in the environment.
        except (OSError, ValueError) as error:
            message = f"{_failure_prefix(plugin, invocation)}: {error}"
            raise NotStartedError(cni.CniErrorCode.IO_FAILURE, message) from error
        # A plugin may quote its configuration, which may contain a password.
        text = redact_configuration(finished.err.decode(errors="replace").strip(), stdin)
        self._log.debug(
            "plugin exited",
            plugin=plugin,
            command=invocation.command.value,
            container=invocation.container_id,
            ifname=invocation.ifname,
            exit=finished.code,
            ms=round((time.monotonic() - started) * 1000, 1),
        )
        if text:
            self._log.info(
                "plugin output on standard error", plugin=plugin, command=invocation.command.value, stderr=cut(text)
            )
        if finished.code:
            raise _plugin_error(plugin, invocation, finished, text, stdin)
        return finished.out

    async def _run_with_retries(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Finished:
        """Run a plugin; if its file is still open for writing (ETXTBSY), try again after a pause."""
        for pause in self._busy_pauses:
            try:
                return await self._processes.run(path, environ, stdin)
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise
            await asyncio.sleep(pause)
        return await self._processes.run(path, environ, stdin)


def _failure_prefix(plugin: str, invocation: Invocation) -> str:
    # libcni's text. networks recognizes `failed (add)` in it, from either daemon, and then sends DEL (ADR 10).
    return f'plugin type="{plugin}" failed ({invocation.command.value.lower()})'


def _plugin_error(plugin: str, invocation: Invocation, finished: Finished, err: str, stdin: bytes) -> CniError:
    error = decode_error(finished.out, stdin)
    if error is not None:
        lacking = _lacking(f"{error.msg} {error.details or ''}")
        return CniError(error.code, f"{error.msg}{lacking}", error.details).with_prefix(
            _failure_prefix(plugin, invocation)
        )
    code = finished.code
    how = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    if finished.out_of_memory:
        how += ", because it needed more memory than HOTNIC_PLUGIN_MEMORY allows"
    output = redact_configuration(finished.out[:MAX_QUOTED].decode(errors="replace").strip(), stdin)[:500] or err[:500]
    said = f": {output}{_lacking(output)}" if output else ""
    return CniError(cni.CniErrorCode.INTERNAL, f"{_failure_prefix(plugin, invocation)}: {how}{said}")


def _lacking(said: str) -> str:
    """Return the capabilities that a plugin may have missed, which inherits the daemon's."""
    refused = any(text in said.lower() for text in ("operation not permitted", "permission denied"))
    return name_missing(errno.EPERM, *REASONS["multus"]) if refused else ""
