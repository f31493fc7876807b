"""The frame every role runs in: settings, logs, telemetry, health endpoints, tasks, signals, ordered shutdown.

A role's ``__main__.py`` is ``main("controller", Settings, start)``; ``start(runtime)`` opens what the role needs on
``runtime.stack``, spawns its tasks and returns. Nothing about a role is known here.
Next: :mod:`services.common.reconcile`, what a reconciler spawns.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from services.common import faults
from services.common import settings as settings_module
from services.common.health import Readiness, health_app
from services.common.http.server import serve
from services.common.logs import Log, configure
from services.common.settings import Common, SettingsError
from services.common.tasks import Tasks, Work
from services.common.telemetry import Telemetry
from services.common.telemetry import configure as configure_telemetry

S = TypeVar("S", bound=Common)

TASKS_SHARE = 3.0
"""Seconds in which the tasks must end after the signal. All shares together stay below 10 s, if none of them hangs."""
STACK_SHARE = 5.0
"""Seconds for servers and connections; a server gives requests under way 4 s of these."""
TELEMETRY_SHARE = 0.9
"""Seconds for exporting what is left, and again for the health endpoints."""
STARTED = "started"


@dataclass(slots=True)
class RoleRuntime(Generic[S]):
    """What a role is handed.

    :ivar readiness: ``set(name, ok, why)``; shown by ``/readyz``.
    :ivar stack: what is entered here is closed in reverse order at shutdown, after the tasks have ended.
    :ivar stack_share: seconds for that; more where a server's requests may take longer.
    :ivar stopping: set as soon as the process shall end.
    """

    role: str
    settings: S
    telemetry: Telemetry
    log: Log
    readiness: Readiness
    tasks: Tasks
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    stack_share: float = STACK_SHARE
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def spawn(self, name: str, work: Work | Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task for as long as the process lives; see :meth:`services.common.tasks.Tasks.spawn`."""
        return self.tasks.spawn(name, work)


def main(
    role: str,
    settings: type[S],
    start: Callable[[RoleRuntime[S]], Awaitable[None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a role until SIGTERM or SIGINT; gives the exit code.

    0 after an ordered shutdown, 1 when ``start`` failed or something hung, 2 for a bad setting or option.
    ``--help`` lists the variables, ``--print-config`` prints what they say, with secrets redacted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(help_text(role, settings))
        return 0
    unknown = [argument for argument in arguments if argument != "--print-config"]
    if unknown:
        sys.stderr.write(f"hotnic run {role}: no such option: {unknown[0]} (there are --help and --print-config)\n")
        return 2
    try:
        loaded = settings_module.load(settings)
    except SettingsError as error:
        sys.stderr.write(f"hotnic run {role}: {error}\n")
        return 2
    if arguments:
        shown = msgspec.json.encode(settings_module.redacted(loaded))
        sys.stdout.write(msgspec.json.format(shown, indent=2).decode() + "\n")
        return 0
    faults.configure(loaded.test_faults)
    log = configure(role, level=loaded.log_level, form=loaded.log_format)
    with asyncio.Runner() as runner:
        code, hung = runner.run(_run(role, loaded, start, log))
        if hung:
            # What ignores its cancellation would keep the runner waiting for ever.
            sys.stderr.flush()
            os._exit(code)
        return code


def help_text(role: str, settings: type[msgspec.Struct]) -> str:
    """What ``--help`` prints: every variable with its default and meaning."""
    lines = [
        f"usage: hotnic run {role} [--help] [--print-config]",
        "",
        "Configured by environment variables (OTEL_* are those of OpenTelemetry):",
        "",
    ]
    for variable in settings_module.variables(settings):
        default = "required" if variable.required else f"default: {_shown_default(variable.default)}"
        lines += [f"  {variable.name}", f"      {variable.description or 'no description'} ({default})"]
    return "\n".join(lines) + "\n"


def _shown_default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


async def _run(
    role: str, settings: S, start: Callable[[RoleRuntime[S]], Awaitable[None]], log: Log
) -> tuple[int, bool]:
    telemetry = configure_telemetry(role, settings.node_name)

    def readiness_changed(name: str, ok: bool, why: str) -> None:
        log.info("condition met" if ok else "condition not met", condition=name, why=why)

    runtime = RoleRuntime(role, settings, telemetry, log, Readiness(readiness_changed), Tasks(log))
    runtime.readiness.set(STARTED, False, "starting")
    with _signals(runtime.stopping, log):
        health = contextlib.AsyncExitStack()
        try:
            if settings.health_listen:
                address = await health.enter_async_context(
                    serve(health_app(telemetry, runtime.readiness), settings.health_listen, shutdown=1.0)
                )
                log.info("health served", address=address)
            code = await _start(runtime, start)
            if code == 0:
                await runtime.stopping.wait()
        except (OSError, ValueError) as error:
            log.error("cannot serve health", listen=settings.health_listen, error=str(error))
            code = 1
        return await shutdown(runtime, health, code)


async def _start(runtime: RoleRuntime[S], start: Callable[[RoleRuntime[S]], Awaitable[None]]) -> int:
    """Run the role's start, until it is done or the process shall end."""
    starting = asyncio.ensure_future(start(runtime))
    stopping = asyncio.create_task(runtime.stopping.wait(), name="stopping")
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=TASKS_SHARE)
        return 0
    error = starting.exception()
    if error is None:
        runtime.readiness.set(STARTED, True)
        return 0
    runtime.stopping.set()
    if isinstance(error, SettingsError):
        runtime.log.error("bad setting", variable=error.variable, error=error.message)
        return 2
    runtime.log.error("start failed", error=str(error), exc_info=error)
    return 1


async def shutdown(runtime: RoleRuntime[Any], health: contextlib.AsyncExitStack, code: int) -> tuple[int, bool]:
    """End what the role has opened, in order and in time; gives the exit code and whether something hangs.

    First the tasks, then the stack, then telemetry (so that their spans are exported), the health endpoints last.
    """
    log = runtime.log
    log.info("stopping")
    runtime.readiness.set(STARTED, False, "stopping")
    hung = bool(await runtime.tasks.stop(TASKS_SHARE))
    # Exporters block while they send what is left, hence the thread.
    steps: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
        ("connections", runtime.stack_share, runtime.stack.aclose),
        ("telemetry", TELEMETRY_SHARE, lambda: asyncio.to_thread(runtime.telemetry.shutdown)),
        ("health", TELEMETRY_SHARE, health.aclose),
    ]
    for step, share, close in steps:
        try:
            async with asyncio.timeout(share):
                await close()
        except TimeoutError:
            log.error("closing takes too long", step=step, waited=share)
            hung = True
        except Exception as error:
            log.error("closing failed", step=step, exc_info=error)
            code = code or 1
    log.info("stopped")
    return (code or 1 if hung else code), hung


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, log: Log) -> Any:
    """The first SIGTERM or SIGINT sets ``stopping``; the second ends the process at once."""
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stopping.is_set():
            log.error("second signal: ending at once", signal=number.name)
            os._exit(128 + number)
        log.info("signal", signal=number.name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
