"""Background tasks are restarted and reported, and never end the process."""

import asyncio
import itertools
import random

import pytest

from services.common.runtime.tasks import Tasks
from services.common.telemetry.logs import logger

pytestmark = pytest.mark.looptime


async def test_a_failing_task_is_restarted_with_backoff(caplog: pytest.LogCaptureFixture) -> None:
    starts: list[float] = []

    async def fail() -> None:
        starts.append(asyncio.get_running_loop().time())
        raise RuntimeError("broken pipe")

    tasks = Tasks(logger("test"), random.Random(0))
    tasks.spawn("reflector pods", fail)
    await asyncio.sleep(100)
    assert await tasks.stop(1) == []
    assert 9 <= len(starts) <= 16
    assert "reflector pods" in caplog.text
    assert "broken pipe" in caplog.text


async def test_a_task_that_ran_for_long_restarts_with_the_first_backoff() -> None:
    starts: list[float] = []

    async def run_for_long() -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(120)
        raise RuntimeError("now and then")

    tasks = Tasks(logger("test"), random.Random(0))
    tasks.spawn("slow", run_for_long)
    await asyncio.sleep(1000)
    await tasks.stop(1)
    assert all(later - earlier < 120.2 for earlier, later in itertools.pairwise(starts))


async def test_a_task_may_end_and_a_coroutine_runs_once(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[str] = []

    async def once(name: str, error: Exception | None = None) -> None:
        runs.append(name)
        if error is not None:
            raise error

    tasks = Tasks(logger("test"))
    ended = tasks.spawn("a", lambda: once("a"))
    tasks.spawn("b", once("b"))
    tasks.spawn("c", once("c", ValueError("no second time")))
    await asyncio.sleep(100)
    assert runs == ["a", "b", "c"]
    assert ended.done()
    assert "no second time" in caplog.text
    assert await tasks.stop(1) == []


async def test_stop_cancels_all_tasks_and_returns_those_that_hang(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []
    release = asyncio.Event()

    async def good(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(name)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await release.wait()

    tasks = Tasks(logger("test"))
    tasks.spawn("first", lambda: good("first"))
    hanging = tasks.spawn("stubborn", stubborn)
    tasks.spawn("last", lambda: good("last"))
    await asyncio.sleep(1)
    assert await tasks.stop(3) == ["stubborn"]
    assert ended == ["last", "first"]
    assert "stubborn" in caplog.text
    release.set()
    await hanging
