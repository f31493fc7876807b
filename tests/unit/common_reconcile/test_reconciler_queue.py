"""The keyed queue in virtual time: order, coalescing, backoff, resync, unexpected exceptions."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from opentelemetry.context import Context

from services.common.kube.errors import Invalid, KubeError, PatchTestFailed, Unavailable
from services.common.reconcile import Attempt, Cause, Reconciler, Reject, Retry
from services.common.reconcile.spread import count_steps, due
from services.common.telemetry.logs import logger
from services.common.telemetry.propagation import context_of, trace_id_of
from tests.support.telemetry.spans import recording_telemetry

pytestmark = pytest.mark.looptime

OPERATION = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LATER_HOP = "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01"
OTHER = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-2222222222222222-01"

Outcome = Callable[[str, Attempt], None]


class Runs:
    """A reconcile function that takes ``takes`` seconds, records every run and raises what ``outcome`` raises."""

    def __init__(self, outcome: Outcome = lambda _key, _attempt: None, takes: float = 1.0) -> None:
        self.outcome = outcome
        self.takes = takes
        self.seen: list[tuple[str, float, Attempt]] = []
        self.now: list[str] = []
        self.most = 0

    async def __call__(self, key: str, attempt: Attempt) -> None:
        assert key not in self.now, "a key ran twice at once"
        self.seen.append((key, round(asyncio.get_running_loop().time(), 3), attempt))
        self.now.append(key)
        self.most = max(self.most, len(self.now))
        try:
            await asyncio.sleep(self.takes)
            self.outcome(key, attempt)
        finally:
            self.now.remove(key)

    def times(self, key: str) -> list[float]:
        return [at for name, at, _ in self.seen if name == key]

    def attempts(self, key: str) -> list[int]:
        return [attempt.number for name, _, attempt in self.seen if name == key]


class NoJitter(random.Random):
    """A random source without jitter: every interval is its upper limit."""

    def uniform(self, a: float, b: float) -> float:
        return 1.0


@asynccontextmanager
async def running(
    runs: Callable[[str, Attempt], object],
    *,
    parallel: int = 16,
    keys: Callable[[], Iterable[str]] = tuple,
    rests: Callable[[str], bool] = lambda _key: False,
) -> AsyncIterator[Reconciler[str]]:
    telemetry, _ = recording_telemetry()
    queue: Reconciler[str] = Reconciler(
        "test",
        runs,  # type: ignore[arg-type]
        log=logger("test"),
        meter=telemetry.meter,
        parallel=parallel,
        keys=keys,
        rests=rests,
        rng=NoJitter(),
    )
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def failing(error: Exception, times: int = 10**6) -> Outcome:
    def outcome(_key: str, attempt: Attempt) -> None:
        if attempt.number <= times:
            raise error

    return outcome


async def test_a_burst_of_adds_is_one_run() -> None:
    runs = Runs()
    async with running(runs) as queue:
        for _ in range(50):
            queue.add("a", source="watch")
        await asyncio.sleep(10)
    assert runs.times("a") == [0.0]


async def test_adds_during_a_run_lead_to_one_more_run() -> None:
    runs = Runs()
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(0.5)
        queue.add("a", source="bus")
        queue.add("a", source="watch")
        await asyncio.sleep(10)
    assert runs.times("a") == [0.0, 1.0]
    assert [cause.source for cause in runs.seen[1][2].causes] == ["bus", "watch"]


async def test_keys_run_in_parallel_up_to_the_limit() -> None:
    runs = Runs()
    async with running(runs, parallel=3) as queue:
        for key in "abcdefg":
            queue.add(key, source="watch")
        await asyncio.sleep(0.5)
        assert (queue.in_flight, queue.depth) == (3, 4)
        await asyncio.sleep(10)
        assert (queue.in_flight, queue.depth) == (0, 0)
    assert runs.most == 3
    assert [key for key, _, _ in runs.seen] == list("abcdefg")


async def test_a_key_added_before_the_start_runs_at_the_start() -> None:
    telemetry, _ = recording_telemetry()
    runs = Runs()
    queue: Reconciler[str] = Reconciler("test", runs, log=logger("test"), meter=telemetry.meter)
    queue.add("early", source="watch")
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs.times("early") == [0.0]


async def test_retries_back_off_up_to_30_seconds_and_never_end() -> None:
    runs = Runs(failing(Retry("NotYet")), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(300)
    gaps = [round(b - a, 1) for a, b in zip(runs.times("a"), runs.times("a")[1:], strict=False)]
    assert gaps[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(gaps[9:]) == {30.0}
    assert runs.attempts("a") == list(range(1, len(gaps) + 2))


async def test_jitter_spreads_keys_that_failed_together() -> None:
    telemetry, _ = recording_telemetry()
    runs = Runs(failing(Retry("NotYet"), times=4), takes=0.0)
    queue: Reconciler[str] = Reconciler(
        "test", runs, log=logger("test"), meter=telemetry.meter, rng=random.Random(1), parallel=100
    )
    for n in range(50):
        queue.add(str(n), source="watch")
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    last = [runs.times(str(n))[-1] for n in range(50)]
    assert len(set(last)) > 40
    assert all(0.1 + 0.1 + 0.2 + 0.4 <= at <= 0.1 + 0.2 + 0.4 + 0.8 for at in last)


async def test_a_retry_may_set_its_own_interval() -> None:
    runs = Runs(failing(Retry("NotYet", after=7.0), times=1), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(50)
    assert runs.times("a") == [0.0, 7.0]


async def test_a_success_resets_the_attempt_count() -> None:
    runs = Runs(failing(Retry("NotYet"), times=2), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(20)
        queue.add("a", source="watch")
        await asyncio.sleep(20)
    assert runs.attempts("a") == [1, 2, 3, 1, 2, 3]


async def test_an_add_during_backoff_runs_at_once_without_resetting_the_count() -> None:
    runs = Runs(failing(Retry("NotYet", after=25.0), times=1), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(3)
        queue.add("a", source="bus")
        await asyncio.sleep(50)
    assert runs.times("a") == [0.0, 3.0]
    assert runs.attempts("a") == [1, 2]


async def test_a_resync_does_not_end_a_backoff() -> None:
    runs = Runs(failing(Retry("NotYet", after=25.0), times=1), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(3)
        queue.add("a", source="resync")
        await asyncio.sleep(50)
    assert runs.times("a") == [0.0, 25.0]


async def test_a_failing_run_that_adds_its_own_key_is_paced() -> None:
    async with contextlib.AsyncExitStack() as stack:
        seen: list[float] = []

        async def touching(key: str, _attempt: Attempt) -> None:
            seen.append(asyncio.get_running_loop().time())
            queue.add(key, source="watch")
            raise Retry("NotYet")

        queue = await stack.enter_async_context(running(touching))
        queue.add("a", source="watch")
        await asyncio.sleep(30)
    assert 30 <= len(seen) <= 42


async def test_an_effect_of_a_failing_run_is_observed_at_once() -> None:
    """A VM with one NIC that fails for a long time: the report of another NIC does not wait for the pace."""
    async with contextlib.AsyncExitStack() as stack:
        seen: list[float] = []

        async def attaching(key: str, attempt: Attempt) -> None:
            seen.append(asyncio.get_running_loop().time())
            if attempt.number == 12:
                queue.add(key, source="effect")
            raise Retry("NotYet", after=5.0)

        queue = await stack.enter_async_context(running(attaching))
        queue.add("a", source="watch")
        await asyncio.sleep(70)
    pauses = [after - before for before, after in pairwise(seen)]
    assert pauses[11] == 0.0
    assert set(pauses[:11] + pauses[12:]) == {5.0}


async def test_a_rejection_is_not_retried_until_an_add() -> None:
    runs = Runs(failing(Reject("Impossible", "no such NAD")), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(500)
        assert runs.times("a") == [0.0]
        queue.add("a", source="resync")
        await asyncio.sleep(1)
    assert runs.attempts("a") == [1, 1]


async def test_all_keys_run_at_start_and_each_once_a_minute_but_for_those_that_rest() -> None:
    runs = Runs(takes=0.0)
    async with running(runs, keys=lambda: ["a", "b", "at rest"], rests=lambda key: key == "at rest"):
        await asyncio.sleep(170)
    assert (runs.times("a"), runs.times("b")) == ([0.0, 80.0, 140.0], [0.0, 100.0, 160.0])
    assert runs.times("at rest") == []
    assert [cause.source for cause in runs.seen[0][2].causes] == ["resync"]


@pytest.mark.parametrize(
    ("keys", "period", "steps", "most"), [(0, 60.0, 1, 0), (1, 60.0, 1, 1), (90, 60.0, 60, 2), (10_000, 66.0, 66, 152)]
)
def test_each_key_is_due_once_in_a_period_and_few_at_a_step(keys: int, period: float, steps: int, most: int) -> None:
    assert count_steps(keys, period) == steps
    parts = [due(range(keys), step, steps) for step in range(steps)]
    assert [key for part in parts for key in part] == list(range(keys))
    assert max(map(len, parts)) == most


async def test_an_unexpected_exception_is_logged_with_its_trace_and_retried_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = Runs(failing(ZeroDivisionError("oops"), times=2), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="bus", context=context_of(OPERATION))
        queue.add("b", source="watch")
        await asyncio.sleep(60)
    assert runs.times("a") == [0.0, 5.0, 15.0]
    assert "4bf92f3577b34da6a3ce929d0e0e4736" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (Unavailable("refused"), [0.0, 0.1, 0.3]),
        (Unavailable("busy", retry_after=4.0), [0.0, 4.0, 8.0]),
        (PatchTestFailed("changed meanwhile"), [0.0, 0.1, 0.3]),
        (Invalid("we sent nonsense"), [0.0, 5.0, 15.0]),
    ],
)
async def test_a_transient_kube_error_is_a_retry(error: KubeError, times: list[float]) -> None:
    runs = Runs(failing(error, times=2), takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(60)
    assert runs.times("a") == times


async def test_a_run_that_cancels_itself_is_retried() -> None:
    def outcome(_key: str, attempt: Attempt) -> None:
        if attempt.number == 1:
            raise asyncio.CancelledError

    runs = Runs(outcome, takes=0.0)
    async with running(runs) as queue:
        queue.add("a", source="watch")
        await asyncio.sleep(60)
    assert runs.attempts("a") == [1, 2]


async def test_a_failing_resync_does_not_end_the_loop() -> None:
    def broken() -> list[str]:
        raise RuntimeError("no list")

    runs = Runs(takes=0.0)
    async with running(runs, keys=broken) as queue:
        await asyncio.sleep(100)
        queue.add("a", source="watch")
        await asyncio.sleep(1)
    assert runs.times("a") == [100.0]


async def test_a_retry_has_the_causes_of_the_failed_attempt() -> None:
    runs = Runs(failing(Retry("NotYet"), times=1), takes=0.0)
    async with running(runs) as queue:
        for parent in (OPERATION, OTHER, LATER_HOP):
            queue.add("a", source="bus", context=context_of(parent))
        await asyncio.sleep(10)
    first, second = (attempt for _, _, attempt in runs.seen)
    assert [trace_id_of(cause.context) for cause in first.causes] == [OTHER[3:35], OPERATION[3:35]]
    assert first.causes[-1].context is not None
    assert second.causes[:-1] == first.causes
    assert second.causes[-1] == Cause("retry")


async def test_the_span_of_an_add_is_not_the_parent_of_the_run() -> None:
    telemetry, _ = recording_telemetry()
    current: list[str | None] = []

    async def record(_key: str, _attempt: Attempt) -> None:
        current.append(trace_id_of())

    async with running(record) as queue:
        with telemetry.tracer.start_as_current_span("request"):
            queue.add("a", source="bus", context=Context())
            await asyncio.sleep(1)
    assert current == [None]


async def test_cancelling_the_loop_cancels_its_runs_and_waits_for_them() -> None:
    ended: list[str] = []

    async def slow(key: str, _attempt: Attempt) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)
            ended.append(key)

    async with running(slow) as queue:
        queue.add("a", source="watch")
        queue.add("b", source="watch")
        await asyncio.sleep(1)
    assert sorted(ended) == ["a", "b"]
    assert asyncio.get_running_loop().time() == 3.0


async def test_a_second_run_continues_the_remaining_keys() -> None:
    telemetry, _ = recording_telemetry()
    runs = Runs(failing(Retry("NotYet"), times=1), takes=5.0)
    queue: Reconciler[str] = Reconciler("test", runs, log=logger("test"), meter=telemetry.meter, parallel=1)
    queue.add("cut", source="watch")
    queue.add("waiting", source="watch")
    for seconds in (1, 100):
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert runs.attempts("cut") == [1, 1, 2]
    assert runs.attempts("waiting") == [1, 2]


async def test_metrics_count_outcomes_depth_and_keys_in_flight() -> None:
    telemetry, _ = recording_telemetry()

    async def reconcile(key: str, _attempt: Attempt) -> None:
        if key == "rejected":
            raise Reject("No", "no")
        await asyncio.sleep(100 if key == "slow" else 0)

    queue: Reconciler[str] = Reconciler("role", reconcile, log=logger("test"), meter=telemetry.meter, parallel=2)
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    for key in ("ok", "rejected", "slow"):
        queue.add(key, source="watch")
    await asyncio.sleep(1)
    text = telemetry.metrics_text().decode()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "hotnic_reconcile_seconds_count{" in text
    assert 'outcome="done"' in text
    assert 'le="0.005",outcome="done"' in text, "runs take milliseconds; the default boundaries begin at 5 s"
    assert 'outcome="rejected"' in text
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("hotnic_in_flight{")] == ["1.0"]
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("hotnic_queue_depth{")] == ["0.0"]


async def test_a_namespace_whose_runs_take_long_leaves_slots_to_the_others() -> None:
    started: dict[tuple[str, str], float] = {}

    async def reconcile(key: tuple[str, str], _attempt: Attempt) -> None:
        started[key] = asyncio.get_running_loop().time()
        await asyncio.sleep(60.0 if key[0] == "hostile" else 0.1)

    telemetry, _ = recording_telemetry()
    queue: Reconciler[tuple[str, str]] = Reconciler("test", reconcile, log=logger("test"), meter=telemetry.meter)
    for number in range(100):
        queue.add(("hostile", f"pod{number}"), source="watch")
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(1)
    assert queue.in_flight == 24
    queue.add(("default", "pod"), source="watch")
    await asyncio.sleep(1)
    assert started["default", "pod"] == 1.0
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_change_goes_before_the_keys_of_a_start() -> None:
    runs, keys = Runs(), [f"k{number}" for number in range(40)]
    async with running(runs, parallel=1, keys=lambda: keys) as queue:
        queue.add("k20", source="resync")
        queue.add("k38", source="watch", urgent=False)
        await asyncio.sleep(0.5)
        queue.add("k39", source="watch")
        queue.add("k37", source="bus")
        queue.add("k37", source="watch")
        await asyncio.sleep(45)
    assert [key for key, _, _ in runs.seen] == ["k0", "k39", "k37", *keys[1:37], "k38"]


async def test_a_retry_is_as_urgent_as_what_failed() -> None:
    runs = Runs(lambda key, attempt: failing(Retry("NotYet"), times=1)(key, attempt) if key == "change" else None)
    async with running(runs, parallel=1, keys=lambda: [f"k{number}" for number in range(100)]) as queue:
        queue.add("change", source="watch")
        await asyncio.sleep(100)
    assert [key for key, _, _ in runs.seen][:5] == ["k0", "change", "k1", "change", "k2"]


async def test_keys_of_a_queue_that_runs_again_are_as_urgent_as_before() -> None:
    runs = Runs()
    telemetry, _ = recording_telemetry()
    queue: Reconciler[str] = Reconciler("test", runs, log=logger("test"), meter=telemetry.meter, parallel=1)
    for number in range(3):
        queue.add(f"k{number}", source="watch", urgent=False)
    queue.add("change", source="bus")
    for seconds in (0.5, 10.0):
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(seconds)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert [key for key, _, _ in runs.seen] == ["change", "change", "k0", "k1", "k2"]
