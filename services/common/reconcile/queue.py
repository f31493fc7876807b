"""Keyed queue and loop of every reconciler: ``add(key)`` leads to ``reconcile(key, attempt)``.

Runs of one key never overlap; runs of different keys are parallel up to a limit. Several adds before a run lead to one
run. An add carries no work: the role reads the actual state, so an add too many is harmless and one too few is not. The
queue does not survive a restart; the resync makes up for that: of all keys at start, and of each once in every later
period, spread over it. What has changed goes before what a resync or a start looks at.
Next: :mod:`services.common.reconcile.spread`, when a resync adds which keys; then a role's ``role.py``.
"""

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

import msgspec
from opentelemetry.context import Context
from opentelemetry.metrics import Meter

from services.common.flowcontrol.backoff import jittered
from services.common.kube.denials import describe_error
from services.common.kube.errors import KubeError
from services.common.reconcile.attempt import FIRST_BACKOFF, Attempt, Cause, Reject, Retry, Source
from services.common.reconcile.spread import spread
from services.common.runtime.fair_queue import FairQueue
from services.common.telemetry.logs import Log
from services.common.telemetry.propagation import span_context, trace_id_of

K = TypeVar("K", bound=Hashable)
RESYNC_INTERVAL = 60.0  # seconds
MAX_BACKOFF = 30.0
FIRST_BUG_BACKOFF = 5.0
"""Seconds before the retry after an unexpected exception, which a retry rarely cures."""
MAX_BUG_BACKOFF = 300.0
MAX_FAST_FAILURES = 8
"""After more failures in a row than this, an add waits until :data:`FAILING_INTERVAL` after the end of the last run."""
FAILING_INTERVAL = 1.0
"""Seconds. Without it, a failing run that changes an object it watches would trigger itself without a pause."""
MAX_CAUSES = 64  # of one key, while its attempts fail; then the oldest is dropped
RUN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a run with nothing to do to one that waits for every deadline."""


class _QueueEntry(msgspec.Struct, eq=False):
    """The state of one key from its first add until a run is done or rejected. Times are those of the event loop.

    :ivar queued: whether the key waits for a free slot; a key in backoff has a timer instead.
    :ivar requeue: whether the key was added during the run.
    :ivar urgent: whether the key was added since the current run began, and is urgent.
    :ivar runs_urgent: whether the current run, or the failed one before, was urgent.
    :ivar effect: whether an effect is to be observed, which ends the pause between failing runs.
    """

    causes: dict[tuple[str, int], Cause] = msgspec.field(default_factory=dict)
    failures: int = 0
    running: bool = False
    queued: bool = False
    requeue: bool = False
    urgent: bool = False
    runs_urgent: bool = False
    effect: bool = False
    attempt: Attempt = Attempt()
    started: float = 0.0
    ended: float = float("-inf")
    timer: asyncio.TimerHandle | None = None
    timer_due: float = 0.0

    def add_cause(self, cause: Cause) -> None:
        # One cause per source and trace is enough to find the trace, and bounds the memory of a burst.
        identity = (cause.source, span_context(cause.context).trace_id if cause.context is not None else 0)
        self.causes.pop(identity, None)
        self.causes[identity] = cause
        while len(self.causes) > MAX_CAUSES:
            del self.causes[next(iter(self.causes))]

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Reconciler(Generic[K]):
    """Queue that runs ``reconcile(key, attempt)`` for the added keys.

    The exception of a run is its outcome: none (done), :class:`Retry` or :class:`Reject`. A transient
    :class:`KubeError` counts as a retry. Any other exception is a bug, logged with its traceback and retried slowly.
    Metrics: ``hotnic_reconcile_seconds{role,outcome}``, ``hotnic_queue_depth{role}``, ``hotnic_in_flight{role}``.

    :param name: name of the role, for logs and metrics.
    :param parallel: maximum number of concurrent runs; while others wait, those of one namespace get half of them.
    :param resync: seconds over which a resync of all keys is spread, plus or minus 10 %.
    :param keys: returns all keys for a resync.
    :param rests: returns whether a resync leaves a key out; it must not raise.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[K, Attempt], Awaitable[None]],
        *,
        log: Log,
        meter: Meter,
        parallel: int = 32,
        resync: float = RESYNC_INTERVAL,
        keys: Callable[[], Iterable[K]] = tuple,
        rests: Callable[[K], bool] = lambda _key: False,
        rng: random.Random | None = None,
    ) -> None:
        if parallel < 1:
            raise ValueError("parallel must be at least 1")
        self._name = name
        self._reconcile = reconcile
        self._log = log
        self._parallel = parallel
        self._resync = resync
        self._keys = keys
        self._rests = rests
        self._rng = rng or random.Random()
        self._entries: dict[K, _QueueEntry] = {}
        self._ready: FairQueue[K] = FairQueue(parallel)
        self._tasks: dict[asyncio.Task[None], K] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()
        self._labels = {"role": name}
        self._seconds = meter.create_histogram(
            "hotnic_reconcile",
            unit="s",
            description="Time of one run for a key",
            explicit_bucket_boundaries_advisory=RUN_BUCKETS,
        )
        self._depth = meter.create_up_down_counter("hotnic_queue_depth", description="Keys waiting for their run")
        self._in_flight = meter.create_up_down_counter("hotnic_in_flight", description="Keys running now")

    @property
    def depth(self) -> int:
        """Number of keys that wait for a free slot, without those in backoff."""
        return len(self._ready)

    @property
    def in_flight(self) -> int:
        """Number of keys that run now."""
        return len(self._tasks)

    def add(self, key: K, *, source: Source, context: Context | None = None, urgent: bool = True) -> None:
        """Queue a key for a run, or for one more run after the current one; cheap, and allowed before :meth:`run`.

        An add ends a backoff early, without resetting the attempt count. A resync does not end a backoff.

        :param urgent: whether the key goes before those that are not: one of many that are added at once is not. Nor is
            one that a resync adds.
        """
        entry = self._entries.setdefault(key, _QueueEntry())
        entry.add_cause(Cause(source, context))
        hastened = urgent and source != "resync" and not entry.urgent
        entry.urgent = entry.urgent or hastened
        entry.effect = entry.effect or source == "effect"
        if entry.running:
            entry.requeue = entry.requeue or source != "resync"
            return
        if entry.queued:
            if hastened:
                self._ready.hasten(key)
            return
        if entry.timer is not None and source == "resync":
            return
        self._queue_paced(key, entry)

    async def run(self) -> None:
        """Run until cancelled. Then cancel the current runs, too, and wait for them."""
        if self._loop is not None:
            raise RuntimeError(f"reconciler {self._name} is running already")
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        try:
            self._start_runs()
            self._add_due(self._list_keys())
            await asyncio.sleep(self._period())
            while True:
                async for keys in spread(self._list_keys(), self._period()):
                    self._add_due(keys)
        finally:
            await self._stop()

    def _period(self) -> float:
        # Jitter, so that replicas and roles that started together do not resync together.
        return self._resync * self._rng.uniform(0.9, 1.1)

    def _list_keys(self) -> list[K]:
        try:
            return list(self._keys())
        except Exception:
            self._log.exception("resync failed", role=self._name)
            return []

    def _add_due(self, keys: Iterable[K]) -> None:
        for key in keys:
            if not self._rests(key):
                self.add(key, source="resync")

    async def _stop(self) -> None:
        self._loop = None
        for entry in self._entries.values():
            entry.cancel_timer()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # Queue all keys again, so that nothing is lost if run() is called again, as by a controller that leads again.
        self._depth.add(len(self._entries) - len(self._ready), self._labels)
        self._ready = FairQueue(self._parallel)
        for key, entry in self._entries.items():
            entry.queued, entry.running, entry.urgent = True, False, entry.urgent or entry.runs_urgent
            self._ready.append(key, urgent=entry.urgent)

    def _queue_paced(self, key: K, entry: _QueueEntry) -> None:
        wait = 0.0
        # A run that failed for one NIC may have attached another, whose report must not wait.
        if self._loop is not None and entry.failures > MAX_FAST_FAILURES and not entry.effect:
            wait = entry.ended + FAILING_INTERVAL - self._loop.time()
        if wait <= 0:
            self._enqueue(key, entry)
        # Bring a longer backoff forward, but never postpone the run by repeated adds.
        elif entry.timer is None or entry.timer_due > entry.ended + FAILING_INTERVAL:
            self._start_timer(key, entry, wait)

    def _enqueue(self, key: K, entry: _QueueEntry) -> None:
        entry.cancel_timer()
        entry.queued = True
        self._ready.append(key, urgent=entry.urgent)
        self._depth.add(1, self._labels)
        self._start_runs()

    def _start_timer(self, key: K, entry: _QueueEntry, wait: float) -> None:
        entry.cancel_timer()
        if self._loop is not None:
            entry.timer_due = self._loop.time() + wait
            entry.timer = self._loop.call_later(wait, self._on_timer, key, context=self._context)

    def _on_timer(self, key: K) -> None:
        entry = self._entries[key]
        entry.timer = None
        self._enqueue(key, entry)

    def _start_runs(self) -> None:
        while self._loop is not None and (key := self._ready.take()) is not None:
            self._depth.add(-1, self._labels)
            # In run()'s context: otherwise the current span of an add() would become the parent of the run's spans.
            task = self._loop.create_task(
                self._run_key(key, self._entries[key]), name=f"{self._name} {key!r}", context=self._context.copy()
            )
            self._tasks[task] = key
            self._in_flight.add(1, self._labels)
            task.add_done_callback(self._on_done)

    async def _run_key(self, key: K, entry: _QueueEntry) -> None:
        # An add before this line belongs to the same burst. From here on it leads to another run.
        entry.queued, entry.running, entry.requeue, entry.effect = False, True, False, False
        entry.urgent, entry.runs_urgent = False, entry.urgent
        number = entry.failures + 1
        backoff = round(jittered(number, FIRST_BACKOFF, MAX_BACKOFF, self._rng), 3)
        entry.attempt = Attempt(number, tuple(entry.causes.values()), backoff)
        entry.started = asyncio.get_running_loop().time()
        await self._reconcile(key, entry.attempt)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        key = self._tasks.pop(task)
        self._ready.release(key)
        self._in_flight.add(-1, self._labels)
        entry = self._entries[key]
        entry.running = False
        if self._loop is None:
            if not task.cancelled():
                # Retrieve it: asyncio logs an exception that nobody retrieves.
                task.exception()
            return
        entry.ended = self._loop.time()
        outcome, wait = self._classify(key, task, entry)
        self._seconds.record(entry.ended - entry.started, {**self._labels, "outcome": outcome})
        if entry.failures == 0:
            # Causes that were added during the run belong to the next run. The others are done.
            seen = set(map(id, entry.attempt.causes))
            entry.causes = {name: cause for name, cause in entry.causes.items() if id(cause) not in seen}
        if entry.requeue:
            self._queue_paced(key, entry)
        elif wait is not None:
            entry.add_cause(Cause("retry"))
            self._start_timer(key, entry, wait)
        else:
            del self._entries[key]
        self._start_runs()

    def _classify(self, key: K, task: asyncio.Task[None], entry: _QueueEntry) -> tuple[str, float | None]:
        """Return the outcome and the seconds until the retry (``None``: no retry), and count the failure."""
        error = asyncio.CancelledError("the run cancelled itself") if task.cancelled() else task.exception()
        entry.failures = 0 if error is None or isinstance(error, Reject) else entry.failures + 1
        # A retry is as urgent as what failed.
        entry.urgent = entry.urgent or (entry.failures > 0 and entry.runs_urgent)
        if error is None:
            return "done", None
        fields = {"key": str(key), "attempt": entry.attempt.number, "trace_id": _trace_id(entry.attempt)}
        if isinstance(error, Reject):
            self._log.warning("reconcile rejected", reason=error.reason, detail=error.message, **fields)
            return "rejected", None
        if isinstance(error, KubeError) and error.transient:
            error = Retry(error.reason, describe_error(error), after=error.retry_after)
        if isinstance(error, Retry):
            wait = error.after if error.after is not None else entry.attempt.backoff
            fields |= {"reason": error.reason, "detail": error.message}
            self._log.info("reconcile requeued", after=round(wait, 3), **fields)
            return "retry", max(0.0, wait)
        wait = jittered(entry.failures, FIRST_BUG_BACKOFF, MAX_BUG_BACKOFF, self._rng)
        self._log.error("unexpected reconcile error", after=round(wait, 3), exc_info=error, **fields)
        return "bug", wait


def _trace_id(attempt: Attempt) -> str | None:
    found = (trace_id_of(cause.context) for cause in reversed(attempt.causes) if cause.context is not None)
    return next((trace_id for trace_id in found if trace_id), None)
