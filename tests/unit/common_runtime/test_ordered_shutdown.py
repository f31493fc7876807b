"""Shutdown closes everything in order, even if something hangs or fails."""

import asyncio
import contextlib

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.runtime.health import Readiness
from services.common.runtime.process import RoleRuntime, shutdown
from services.common.runtime.settings import CommonSettings
from services.common.runtime.tasks import Tasks
from services.common.telemetry.logs import logger
from tests.support.telemetry.spans import recording_telemetry


def make_runtime() -> tuple[RoleRuntime[CommonSettings], InMemorySpanExporter]:
    telemetry, spans = recording_telemetry()
    log = logger("test")
    return RoleRuntime("test", CommonSettings(), telemetry, log, Readiness(), Tasks(log)), spans


async def test_the_order_is_tasks_then_the_stack_then_telemetry() -> None:
    runtime, spans = make_runtime()
    order: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("task")

    async def closed(name: str) -> None:
        with runtime.telemetry.tracer.start_as_current_span(name):
            order.append(name)

    runtime.stack.push_async_callback(closed, "opened first")
    runtime.stack.push_async_callback(closed, "opened last")
    runtime.spawn("work", work)
    await asyncio.sleep(0)
    health = contextlib.AsyncExitStack()
    health.callback(order.append, "health")
    assert await shutdown(runtime, health, 0) == (0, False)
    assert order == ["task", "opened last", "opened first", "health"]
    assert [span.name for span in spans.get_finished_spans()] == ["opened last", "opened first"]
    assert not runtime.readiness.ready


@pytest.mark.looptime
async def test_a_hanging_step_times_out(caplog: pytest.LogCaptureFixture) -> None:
    runtime, _ = make_runtime()
    closed: list[str] = []
    runtime.stack.callback(closed.append, "below")
    runtime.stack.push_async_callback(asyncio.Event().wait)
    health = contextlib.AsyncExitStack()
    health.callback(closed.append, "health")
    started = asyncio.get_running_loop().time()
    assert await shutdown(runtime, health, 0) == (1, True)
    assert asyncio.get_running_loop().time() - started < 10
    assert closed == ["below", "health"]
    assert "shutdown step timed out" in caplog.text


async def test_a_failing_step_is_exit_1(caplog: pytest.LogCaptureFixture) -> None:
    runtime, _ = make_runtime()
    closed: list[str] = []

    async def fails() -> None:
        raise OSError("device busy")

    runtime.stack.callback(closed.append, "below")
    runtime.stack.push_async_callback(fails)
    assert await shutdown(runtime, contextlib.AsyncExitStack(), 0) == (1, False)
    assert closed == ["below"]
    assert "device busy" in caplog.text


def test_ready_means_that_every_condition_is_met() -> None:
    changes: list[tuple[str, bool, str]] = []
    readiness = Readiness(lambda name, ok, why: changes.append((name, ok, why)))
    assert not readiness.ready
    readiness.set("kube", True)
    readiness.set("cri", False, "no socket")
    readiness.set("cri", False, "still no socket")
    assert not readiness.ready
    assert readiness.text() == "[+]kube ok\n[-]cri failed: still no socket\nreadyz check failed\n"
    readiness.set("cri", True)
    assert readiness.ready
    assert changes == [("kube", True, ""), ("cri", False, "no socket"), ("cri", True, "")]
