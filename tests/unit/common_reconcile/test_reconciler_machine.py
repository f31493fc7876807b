"""The keyed queue against a model: adds, outcomes and time in any order."""

import asyncio
import random
from collections import Counter

import looptime
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.reconcile import Attempt, Reconciler, Reject, Retry, Source
from services.common.telemetry.logs import logger
from tests.support.telemetry.spans import recording_telemetry

PARALLEL = 2
KEYS = ("a", "b", "c", "d")
OUTCOMES: dict[str, Exception | None] = {
    "done": None,
    "retry": Retry("NotYet"),
    "retry-later": Retry("NotYet", after=45.0),
    "reject": Reject("Impossible", "never"),
    "bug": ValueError("bug"),
}
QUIET = "critical"


class QueueMachine(RuleBasedStateMachine):
    """State machine in which only a rule ends a run, and the model knows the keys that still need a run."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop(start=0)
        telemetry, _ = recording_telemetry()
        self.queue: Reconciler[str] = Reconciler(
            "model",
            self.reconcile,
            log=logger("model", QUIET),
            meter=telemetry.meter,
            parallel=PARALLEL,
            resync=3600.0,
            rng=random.Random(0),
        )
        self.running: dict[str, asyncio.Future[None]] = {}
        self.pending: set[str] = set()
        self.failures: Counter[str] = Counter()
        self.has_overlapped = False
        self.wrong_numbers: list[tuple[str, int, int]] = []
        self.finish_all = False
        self.task = self.loop.create_task(self.queue.run())
        self.run_loop()

    async def reconcile(self, key: str, attempt: Attempt) -> None:
        if key in self.running:
            self.has_overlapped = True
        if attempt.number != self.failures[key] + 1:
            self.wrong_numbers.append((key, attempt.number, self.failures[key] + 1))
        self.pending.discard(key)
        if self.finish_all:
            self.failures[key] = 0
            return
        self.running[key] = ended = self.loop.create_future()
        try:
            await ended
        except (Retry, ValueError):
            self.failures[key] += 1
            raise
        except Reject:
            self.failures[key] = 0
            raise
        else:
            self.failures[key] = 0
        finally:
            del self.running[key]

    def run_loop(self, seconds: float = 0.0) -> None:
        async def pass_time() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_time())

    @rule(key=st.sampled_from(KEYS), source=st.sampled_from(["bus", "watch"]), burst=st.integers(1, 3))
    def add(self, key: str, source: Source, burst: int) -> None:
        self.pending.add(key)
        for _ in range(burst):
            self.queue.add(key, source=source)
        self.run_loop()

    @rule(key=st.sampled_from(KEYS))
    def resync(self, key: str) -> None:
        self.queue.add(key, source="resync")
        self.run_loop()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(sorted(OUTCOMES)))
    def finish_run(self, data: st.DataObject, outcome: str) -> None:
        future = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        error = OUTCOMES[outcome]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        self.run_loop()

    @rule(seconds=st.sampled_from([0.05, 1.0, 31.0]))
    def pass_seconds(self, seconds: float) -> None:
        self.run_loop(seconds)

    @invariant()
    def one_key_never_runs_twice_at_once(self) -> None:
        assert not self.has_overlapped

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert len(self.running) <= PARALLEL
        assert self.queue.in_flight == len(self.running)

    @invariant()
    def attempt_numbers_are_right(self) -> None:
        assert not self.wrong_numbers

    @invariant()
    def no_slot_is_free_while_a_key_waits(self) -> None:
        assert self.queue.depth == 0 or len(self.running) == PARALLEL

    def teardown(self) -> None:
        try:
            self.finish_all = True
            for future in list(self.running.values()):
                future.set_result(None)
            self.run_loop(400.0)
            assert not self.pending, "an add was lost"
            assert not self.running
            assert self.queue.depth == 0
            assert all(count == 0 for count in self.failures.values()), "a retry was lost"
        finally:
            self.task.cancel()
            self.loop.run_until_complete(asyncio.wait([self.task]))
            self.loop.close()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
