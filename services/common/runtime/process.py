"""Frame of every role's process: settings, logs, telemetry, health endpoints, tasks, signals, ordered shutdown.

A role's ``__main__.py`` calls ``main("controller", Settings, start)``. ``start(runtime)`` opens what the role needs on
``runtime.stack``, spawns its tasks and returns. This module knows nothing about roles.
Next: :mod:`services.common.reconcile`, which a reconciler spawns.
"""

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from services.common.kube.errors import KubeconfigError, KubeError
from services.common.runtime import settings as settings_module
from services.common.runtime.health import Readiness, health_app, serve_when_free
from services.common.runtime.settings import CommonSettings, SettingsError
from services.common.runtime.tasks import Tasks, Work
from services.common.telemetry import Telemetry
from services.common.telemetry import configure as configure_telemetry
from services.common.telemetry.logs import Log, configure
from services.common.telemetry.otlp import InvalidOtelVariable
from services.common.telemetry.variables import check_variables

S = TypeVar("S", bound=CommonSettings)
Instrument: TypeAlias = Callable[[Telemetry], Telemetry]
"""A function that returns the telemetry to use instead of a role's own, for example with another tracer."""

TASKS_TIMEOUT = 3.0
"""Seconds for the tasks to end after the signal. With the default of the stack, all timeouts are below 10 s in all."""
STACK_TIMEOUT = 5.0
"""Seconds for closing servers and connections; of these, a server gives running requests 4 s."""
HEALTH_TIMEOUT = 0.9
"""Seconds for closing the health endpoints; before that, telemetry takes as long for exporting the remaining spans."""
STARTED, HEALTH, HEALTH_SOCKET = "started", "health-port", "health-socket"


class StartRefused(Exception):
    """Raised by a role's ``start``: it must not run here. The text names the object in the way, and the way out."""


@dataclass(slots=True)
class RoleRuntime(Generic[S]):
    """The runtime of a role, passed to its ``start``.

    :ivar readiness: conditions that ``/readyz`` shows.
    :ivar stack: contexts that are closed in reverse order at shutdown, after the tasks have ended.
    :ivar stack_timeout: seconds for closing them; more for a server whose requests may take longer.
    :ivar stopping: set when the process has to end.
    """

    role: str
    settings: S
    telemetry: Telemetry
    log: Log
    readiness: Readiness
    tasks: Tasks
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    stack_timeout: float = STACK_TIMEOUT
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def spawn(self, name: str, work: Work | Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task; see :meth:`services.common.runtime.tasks.Tasks.spawn`."""
        return self.tasks.spawn(name, work)


def main(
    role: str,
    settings: type[S],
    start: Callable[[RoleRuntime[S]], Awaitable[None]],
    argv: Sequence[str] | None = None,
    *,
    instrument: Instrument | None = None,
) -> int:
    """Run a role until SIGTERM or SIGINT, and return the exit code.

    The code is 0 after an ordered shutdown, 1 if ``start`` failed or something hung, 2 for a bad setting or option or
    an unusable kubeconfig. ``--help`` lists the variables. ``--print-config`` prints their values without secrets.

    :param settings: struct of the role's settings.
    :param start: starts the role.
    :param argv: command line arguments; those of the process by default.
    :param instrument: applied to the role's telemetry at start; ``None`` leaves it unchanged.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(help_text(role, settings))
        return 0
    unknown = [argument for argument in arguments if argument != "--print-config"]
    if unknown:
        sys.stderr.write(f"hotnic run {role}: no such option: {unknown[0]}; use --help or --print-config\n")
        return 2
    try:
        loaded = settings_module.load(settings)
        check_variables(os.environ)  # those of OpenTelemetry are no fields of the settings
    except (SettingsError, InvalidOtelVariable) as error:
        sys.stderr.write(f"hotnic run {role}: {error}\n")
        return 2
    if arguments:
        shown = msgspec.json.encode(settings_module.redacted(loaded))
        sys.stdout.write(msgspec.json.format(shown, indent=2).decode() + "\n")
        return 0
    log = configure(role, level=loaded.log_level, form=loaded.log_format)
    with asyncio.Runner() as runner:
        code, hung = runner.run(_run(role, loaded, start, log, instrument))
        if hung:
            # The runner would wait for ever for a task that ignores its cancellation.
            sys.stderr.flush()
            os._exit(code)
        return code


def help_text(role: str, settings: type[msgspec.Struct]) -> str:
    """Return the text of ``--help``: every variable with its description and default, and examples."""
    variables = settings_module.variables(settings)
    lines = [
        f"usage: hotnic run {role} [--help] [--print-config]",
        "",
        "Environment variables (besides OTEL_* of OpenTelemetry):",
        "",
    ]
    for variable in variables:
        default = "required" if variable.required else f"default: {_format_default(variable.default)}"
        lines += [f"  {variable.name}", f"      {variable.description or 'no description'} ({default})"]
    required = "".join(f"{variable.name}=VALUE " for variable in variables if variable.required)
    lines += [
        "",
        "Examples:",
        "  # Print the settings in effect",
        f"  {required}hotnic run {role} --print-config",
        "  # Run the role and log in detail",
        f"  {required}HOTNIC_LOG_LEVEL=debug hotnic run {role}",
    ]
    return "\n".join(lines) + "\n"


def _format_default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


async def _run(
    role: str,
    settings: S,
    start: Callable[[RoleRuntime[S]], Awaitable[None]],
    log: Log,
    instrument: Instrument | None,
) -> tuple[int, bool]:
    telemetry = configure_telemetry(role, settings.node_name)
    if instrument is not None:
        telemetry = instrument(telemetry)

    runtime = make_runtime(role, settings, telemetry, log)
    # Before the start, so that a signal also ends a start that waits.
    with _signals(runtime.stopping, log):
        health = contextlib.AsyncExitStack()
        try:
            # Before the start too: `/readyz` shows what the start waits for.
            make = functools.partial(health_app, telemetry, runtime.readiness)
            for listen in settings.health_listen:
                name = HEALTH_SOCKET if listen.startswith("unix:") else HEALTH
                await health.enter_async_context(serve_when_free(name, make, listen, runtime.readiness, log))
            code = await start_role(runtime, start)
            if code == 0:
                await runtime.stopping.wait()
        except (OSError, ValueError) as error:
            log.error("cannot serve health endpoints", listen=",".join(settings.health_listen), error=str(error))
            code = 1
        return await shutdown(runtime, health, code)


def make_runtime(role: str, settings: S, telemetry: Telemetry, log: Log) -> RoleRuntime[S]:
    """Return the runtime of a role that has not started."""

    def readiness_changed(name: str, ok: bool, why: str) -> None:
        log.info("condition met" if ok else "condition not met", condition=name, why=why)

    runtime = RoleRuntime(role, settings, telemetry, log, Readiness(readiness_changed), Tasks(log))
    runtime.readiness.set(STARTED, False, "starting")
    return runtime


async def start_role(runtime: RoleRuntime[S], start: Callable[[RoleRuntime[S]], Awaitable[None]]) -> int:
    """Run the role's ``start`` until it returns or the process has to end; return the exit code."""
    starting = asyncio.ensure_future(start(runtime))
    stopping = asyncio.create_task(runtime.stopping.wait(), name="stopping")
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=TASKS_TIMEOUT)
        return 0
    # A start that cancels itself has failed too.
    error = asyncio.CancelledError("start cancelled") if starting.cancelled() else starting.exception()
    if error is None:
        runtime.readiness.set(STARTED, True)
        return 0
    runtime.stopping.set()
    if isinstance(error, SettingsError):
        runtime.log.error("bad setting", variable=error.variable, error=error.message)
        return 2
    if isinstance(error, StartRefused):
        runtime.log.error("start refused", reason=str(error))
        return 1
    # These say what is wrong. Anything else is a bug.
    expected = isinstance(error, (KubeError, OSError))
    runtime.log.error("start failed", error=str(error), exc_info=None if expected else error)
    return 2 if isinstance(error, KubeconfigError) else 1


async def shutdown(runtime: RoleRuntime[Any], health: contextlib.AsyncExitStack, code: int) -> tuple[int, bool]:
    """Stop the role in order; return the exit code and whether something hangs.

    The tasks end first, then the stack closes, then telemetry, which exports their last spans, and the health endpoints
    last.
    """
    code, hung = await stop_role(runtime, code)
    code, late = await _close(
        runtime.log,
        [
            ("telemetry", None, lambda: close_telemetry(runtime.telemetry, runtime.log)),
            ("health", HEALTH_TIMEOUT, health.aclose),
        ],
        code,
    )
    hung = hung or late
    runtime.log.info("stopped")
    return (code or 1 if hung else code), hung


async def stop_role(runtime: RoleRuntime[Any], code: int) -> tuple[int, bool]:
    """Stop the tasks of a role and close its stack; return the exit code and whether something hangs."""
    runtime.log.info("stopping")
    runtime.readiness.set(STARTED, False, "stopping")
    hung = bool(await runtime.tasks.stop(TASKS_TIMEOUT))
    code, late = await _close(runtime.log, [("connections", runtime.stack_timeout, runtime.stack.aclose)], code)
    return code, hung or late


async def _close(
    log: Log, steps: list[tuple[str, float | None, Callable[[], Awaitable[None]]]], code: int
) -> tuple[int, bool]:
    """Run the steps of a shutdown; return the exit code and whether one of them timed out."""
    late = False
    for name, timeout, close in steps:
        try:
            async with asyncio.timeout(timeout):
                await close()
        except TimeoutError:
            log.error("shutdown step timed out", step=name, waited=timeout)
            late = True
        except Exception as error:
            log.error("shutdown step failed", step=name, exc_info=error)
            code = code or 1
    return code, late


async def close_telemetry(telemetry: Telemetry, log: Log) -> None:
    """Export the remaining spans. It is no failure of the role if the collector does not take them."""
    # This has a timeout of its own and blocks the event loop, which has nothing left to do but to answer probes. A
    # thread of the loop's pool would keep the process from ending, and may have to wait for threads that hang.
    telemetry.shutdown()
    if count := telemetry.undelivered_spans:
        log.warning("spans not delivered", count=count)


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, log: Log) -> Any:
    """Set ``stopping`` at the first SIGTERM or SIGINT, and end the process at the second one."""
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stopping.is_set():
            log.error("second signal, immediate exit", signal=number.name)
            os._exit(128 + number)
        log.info("signal received", signal=number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
