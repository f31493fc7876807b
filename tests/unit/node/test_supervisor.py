"""Several roles in one process: a role that fails starts again alone, and the endpoints say which one it is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.common.runtime.process import STARTED, RoleRuntime, make_runtime, stop_role
from services.common.runtime.settings import CommonSettings
from services.common.telemetry import configure
from services.common.telemetry.logs import logger
from services.node.supervisor import RoleEntry, RoleSupervisor

DEADLINE = 20.0


@asynccontextmanager
async def process(**starts: Callable[[RoleRuntime[Any]], Awaitable[None]]) -> AsyncIterator[RoleRuntime[Any]]:
    """Run roles in one process, and stop them at the end."""
    runtime = make_runtime("node", CommonSettings(), configure("node", environ={}), logger("node"))
    entries = [RoleEntry(name, CommonSettings(), start) for name, start in starts.items()]
    supervisor = RoleSupervisor(runtime, entries, first_backoff=0.01)
    runtime.readiness.set(STARTED, True)
    runtime.stack.push_async_callback(supervisor.stop)
    supervisor.start()
    async with asyncio.timeout(DEADLINE):
        try:
            yield runtime
        finally:
            runtime.stopping.set()
            assert await stop_role(runtime, 0) == (0, False)
            runtime.telemetry.shutdown()


async def test_a_role_that_fails_starts_again_and_no_other_role_notices() -> None:
    steady, broken = list[RoleRuntime[Any]](), list[RoleRuntime[Any]]()
    third, repair, closed = asyncio.Event(), asyncio.Event(), list[str]()

    async def run_steadily(runtime: RoleRuntime[Any]) -> None:
        runtime.stack.callback(closed.append, "steady")
        runtime.telemetry.metrics.set_bus_up(True)
        steady.append(runtime)

    async def fail_twice(runtime: RoleRuntime[Any]) -> None:
        runtime.stack.callback(closed.append, "broken")
        broken.append(runtime)
        if len(broken) == 1:
            raise RuntimeError("cannot start")
        if len(broken) == 2:
            # As a library does whose own timeout ended.
            raise asyncio.CancelledError
        third.set()
        await repair.wait()
        runtime.telemetry.metrics.set_bus_up(False)

    async with process(steady=run_steadily, broken=fail_twice) as runtime:
        await third.wait()
        assert closed == ["broken", "broken"], "what a failed start had opened is closed"
        assert not runtime.readiness.ready
        assert "[+]steady/started ok\n[-]broken/started failed: starting\n" in runtime.readiness.text()
        met = asyncio.Event()
        runtime.readiness.parts["broken"]._on_change = lambda *_: met.set()
        repair.set()
        await met.wait()
        assert runtime.readiness.ready
        samples = [line for line in runtime.telemetry.metrics_text().decode().splitlines() if "hotnic_bus_up" in line]
        assert samples == [
            "# HELP hotnic_bus_up 1 while the bus is connected",
            "# TYPE hotnic_bus_up gauge",
            'hotnic_bus_up{role="steady"} 1.0',
            'hotnic_bus_up{role="broken"} 0.0',
        ]
        assert (len(steady), len(broken)) == (1, 3)
    assert sorted(closed[2:]) == ["broken", "steady"]


async def test_a_role_that_ends_by_itself_starts_again() -> None:
    runs = asyncio.Queue[RoleRuntime[Any]]()

    async with process(one=runs.put):
        (await runs.get()).stopping.set()
        assert not (await runs.get()).stopping.is_set()


async def test_a_role_that_hangs_when_it_stops_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.runtime.process.TASKS_TIMEOUT", 0.01)
    release, started = asyncio.Event(), asyncio.Event()

    async def ignore_cancellation() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def start(role: RoleRuntime[Any]) -> None:
        role.spawn("stubborn", ignore_cancellation)
        started.set()

    runtime = make_runtime("node", CommonSettings(), configure("node", environ={}), logger("node"))
    supervisor = RoleSupervisor(runtime, [RoleEntry("stubborn", CommonSettings(), start)])
    supervisor.start()
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        with pytest.raises(TimeoutError, match="still running: stubborn"):
            await supervisor.stop()
    release.set()
    runtime.telemetry.shutdown()
