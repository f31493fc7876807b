"""Run several roles in one event loop: start each, and start it again with backoff when it ends or fails.

A role that fails affects no other one. Only a role that hangs when it is stopped ends the process, because a second
instance must not run beside the first. A task of a role that fails is restarted by the role itself
(:mod:`services.common.runtime.tasks`).
Next: :mod:`services.common.runtime.process`, the frame of the process and of each role in it.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from services.common.flowcontrol.backoff import jittered
from services.common.runtime.health import Readiness
from services.common.runtime.process import STARTED, RoleRuntime, make_runtime, start_role, stop_role
from services.common.runtime.settings import CommonSettings
from services.common.telemetry import Telemetry
from services.common.telemetry import configure as configure_telemetry
from services.common.telemetry.logs import logger

FIRST_BACKOFF = 1.0
MAX_BACKOFF = 60.0
STABLE_AFTER = 60.0
"""Seconds. A role that ran this long before it ended starts again with the first backoff."""
STOP_TIMEOUT = 20.0
"""Seconds for stopping all roles at once. The slowest, multus, finishes its calls within 8 of them."""


class RoleEntry(NamedTuple):
    """A role that runs in the process.

    :ivar name: name of the role.
    :ivar settings: the role's settings.
    :ivar start: the role's ``start``.
    """

    name: str
    settings: CommonSettings
    start: Callable[[RoleRuntime[Any]], Awaitable[None]]


class RoleSupervisor:
    """Runs roles in the process of ``runtime``.

    :param runtime: the process; its readiness and its metrics contain those of the roles.
    :param first_backoff: seconds before a role that ended starts again.
    """

    def __init__(
        self,
        runtime: RoleRuntime[Any],
        entries: Sequence[RoleEntry],
        *,
        first_backoff: float = FIRST_BACKOFF,
        rng: random.Random | None = None,
    ) -> None:
        self._runtime = runtime
        self._entries = entries
        self._first_backoff = first_backoff
        self._rng = rng or random.Random()
        self._running: dict[str, RoleRuntime[Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._hanging: list[str] = []

    def start(self) -> None:
        """Start every role in the background."""
        # Before the first role runs, so that the process is not ready without it.
        self._runtime.readiness.parts |= {entry.name: Readiness() for entry in self._entries}
        self._tasks = [asyncio.create_task(self._supervise(entry), name=entry.name) for entry in self._entries]

    async def stop(self) -> None:
        """Stop all roles at once and wait for them.

        :raises TimeoutError: a role hangs.
        """
        self._runtime.stopping.set()
        for running in self._running.values():
            running.stopping.set()
        await asyncio.gather(*self._tasks)
        if self._hanging:
            raise TimeoutError(f"still running: {', '.join(self._hanging)}")

    async def _supervise(self, entry: RoleEntry) -> None:
        """Run a role again and again until the process stops."""
        loop = asyncio.get_running_loop()
        stopping = self._runtime.stopping
        failures = 0
        while not stopping.is_set():
            began = loop.time()
            try:
                code, hung = await self._run(entry)
            except Exception as error:
                code, hung = 1, False
                self._runtime.log.error("role failed", failed=entry.name, exc_info=error)
            if hung:
                self._hanging.append(entry.name)
                self._runtime.log.error("role hangs, the process ends", failed=entry.name)
                stopping.set()
            if stopping.is_set():
                return
            failures = 1 if loop.time() - began >= STABLE_AFTER else failures + 1
            wait = jittered(failures, self._first_backoff, MAX_BACKOFF, self._rng)
            self._runtime.log.error("role ended", failed=entry.name, code=code, restart_in=round(wait, 3))
            self._runtime.readiness.parts[entry.name].set(STARTED, False, f"ended with code {code}, starts again")
            try:
                async with asyncio.timeout(wait):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def _run(self, entry: RoleEntry) -> tuple[int, bool]:
        """Run a role once until it ends; return its exit code and whether it hangs."""
        process = self._runtime
        log = logger(entry.name, entry.settings.log_level, role=entry.name)
        telemetry = configure_telemetry(entry.name, entry.settings.node_name)
        role = make_runtime(entry.name, entry.settings, telemetry, log)
        self._running[entry.name] = role
        process.telemetry.parts[entry.name] = telemetry
        process.readiness.parts[entry.name] = role.readiness
        code = await start_role(role, entry.start)
        if code == 0:
            await role.stopping.wait()
        code, hung = await stop_role(role, code)
        await _close_in_thread(telemetry)
        if count := telemetry.undelivered_spans:
            log.warning("spans not delivered", count=count)
        return code, hung


async def _close_in_thread(telemetry: Telemetry) -> None:
    """Export the remaining spans of a role. It may take a second, in which the other roles run on."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()

    def close() -> None:
        try:
            telemetry.shutdown()
        finally:
            loop.call_soon_threadsafe(closed.set_result, None)

    # No thread of the loop's pool: the end of the process would wait for it.
    threading.Thread(target=close, name="close-telemetry-of-role", daemon=True).start()
    await closed
