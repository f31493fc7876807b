"""The keyed queue and the loop of every reconciler: ``add(key)`` -> ``reconcile(key, attempt)``.

Per key in order and never twice at once, across keys in parallel up to a limit; a burst of adds is one run. An add says
only "look again": what there is to do is read from live truth by the role, so an add may come too often but never
too seldom. Not a work queue that survives a restart: the resync (at start, then every minute) is what makes up for one.
Next: a role's ``role.py``, which feeds it, and its ``observe.py``, ``plan.py`` and ``apply.py``, which it calls.
"""

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from opentelemetry.context import Context
from opentelemetry.metrics import Meter

from services.common.kube.errors import KubeError
from services.common.logs import Log
from services.common.telemetry.propagation import span_context, trace_id_of

K = TypeVar("K", bound=Hashable)
Source: TypeAlias = Literal["bus", "watch", "resync", "retry"]

FIRST_BACKOFF = 0.1
"""Seconds before the second attempt; doubled with each further one."""
MAX_BACKOFF = 30.0
FIRST_BUG_BACKOFF = 5.0
"""Seconds before a run that ended by a bug is tried again: it will rarely go better."""
MAX_BUG_BACKOFF = 300.0
PATIENT_FAILURES = 8
"""After so many failures in a row an add waits until :data:`FAILING_INTERVAL` after the last run's end."""
FAILING_INTERVAL = 1.0
"""Seconds. A failing run that touches what it watches would otherwise start itself again without a pause."""
MAX_CAUSES = 64
RUN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds: from a look that finds nothing to do to one that waits for every deadline."""


class Retry(Exception):
    """The world is not ready yet: try again.

    :ivar reason: CamelCase, for Events and metrics.
    :ivar after: seconds until then; ``None``: exponential backoff with jitter, 0.1 s to 30 s, without a last attempt.
    """

    def __init__(self, reason: str, message: str = "", *, after: float | None = None) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.after = after


class Reject(Exception):
    """It cannot be done as asked: no retry until something about the key changes (the resync looks again, too).

    :ivar reason: CamelCase, for Events and metrics.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a key is looked at, and the trace this belongs to (``None``: to none)."""

    source: Source
    context: Context | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run for a key.

    :ivar number: 1 for the first after a success or a rejection, then counting up.
    :ivar causes: oldest first; those of failed attempts stay until one succeeds, so that a retry finds its trace.
    """

    number: int = 1
    causes: tuple[Cause, ...] = ()


@dataclass(slots=True)
class _Entry:
    causes: dict[tuple[str, int], Cause] = field(default_factory=dict)
    failures: int = 0
    running: bool = False
    queued: bool = False
    again: bool = False
    attempt: Attempt = Attempt()
    started: float = 0.0
    ended: float = float("-inf")
    timer: asyncio.TimerHandle | None = None
    timer_due: float = 0.0

    def note(self, cause: Cause) -> None:
        # One per source and trace is enough to find the trace again, and keeps a burst small.
        identity = (cause.source, span_context(cause.context).trace_id if cause.context is not None else 0)
        self.causes.pop(identity, None)
        self.causes[identity] = cause
        while len(self.causes) > MAX_CAUSES:
            del self.causes[next(iter(self.causes))]

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Reconciler(Generic[K]):
    """Runs ``reconcile(key, attempt)`` for the keys that were added.

    The outcome is the exception: none (done), :class:`Retry`, :class:`Reject`; a transient :class:`KubeError` that the
    role lets through is a retry; any other is a bug, which is logged with its trace and retried slowly.
    Metrics: ``hotnic_reconcile_seconds{role,outcome}``, ``hotnic_queue_depth{role}``, ``hotnic_in_flight{role}``.

    :param name: of the role, for logs and metrics.
    :param parallel: how many keys run at once.
    :param resync: seconds between two looks at all ``keys()``.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[K, Attempt], Awaitable[None]],
        *,
        log: Log,
        meter: Meter,
        parallel: int = 16,
        resync: float = 60.0,
        keys: Callable[[], Iterable[K]] = tuple,
        rng: random.Random | None = None,
    ) -> None:
        if parallel < 1:
            raise ValueError("at least one key must be able to run")
        self._name = name
        self._reconcile = reconcile
        self._log = log
        self._parallel = parallel
        self._resync = resync
        self._keys = keys
        self._rng = rng or random.Random()
        self._entries: dict[K, _Entry] = {}
        self._ready: deque[K] = deque()
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
        self._in_flight = meter.create_up_down_counter("hotnic_in_flight", description="Keys being worked on")

    @property
    def depth(self) -> int:
        """Keys that wait for a free place; those in backoff are not among them."""
        return len(self._ready)

    @property
    def in_flight(self) -> int:
        """Keys that run now."""
        return len(self._tasks)

    def add(self, key: K, *, source: Source, context: Context | None = None) -> None:
        """Have a key looked at: now, or, if it runs now, once more afterwards. Cheap; callable before :meth:`run`.

        It cuts a backoff short (the attempts go on counting), except for a resync, which only waits along.
        """
        entry = self._entries.setdefault(key, _Entry())
        entry.note(Cause(source, context))
        if entry.running:
            entry.again = entry.again or source != "resync"
            return
        if entry.queued or (entry.timer is not None and source == "resync"):
            return
        self._start_soon(key, entry)

    async def run(self) -> None:
        """Work until cancelled; then the runs under way are cancelled, too, and waited for."""
        if self._loop is not None:
            raise RuntimeError(f"{self._name} runs already")
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        try:
            self._pump()
            while True:
                self._add_all()
                # Not in step with the other replicas and roles that were started together.
                await asyncio.sleep(self._resync * self._rng.uniform(0.9, 1.1))
        finally:
            await self._stop()

    def _add_all(self) -> None:
        try:
            for key in list(self._keys()):
                self.add(key, source="resync")
        except Exception:
            self._log.exception("resync failed", role=self._name)

    async def _stop(self) -> None:
        self._loop = None
        for entry in self._entries.values():
            entry.disarm()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # Should it be run again, nothing is lost.
        self._depth.add(len(self._entries) - len(self._ready), self._labels)
        self._ready = deque(self._entries)
        for entry in self._entries.values():
            entry.queued, entry.running = True, False

    def _start_soon(self, key: K, entry: _Entry) -> None:
        wait = 0.0
        if self._loop is not None and entry.failures > PATIENT_FAILURES:
            wait = entry.ended + FAILING_INTERVAL - self._loop.time()
        if wait <= 0:
            self._enqueue(key, entry)
        elif entry.timer is None or entry.timer_due > entry.ended + FAILING_INTERVAL:
            self._arm(key, entry, wait)

    def _enqueue(self, key: K, entry: _Entry) -> None:
        entry.disarm()
        entry.queued = True
        self._ready.append(key)
        self._depth.add(1, self._labels)
        self._pump()

    def _arm(self, key: K, entry: _Entry, wait: float) -> None:
        entry.disarm()
        if self._loop is not None:
            entry.timer_due = self._loop.time() + wait
            entry.timer = self._loop.call_later(wait, self._due, key, context=self._context)

    def _due(self, key: K) -> None:
        entry = self._entries[key]
        entry.timer = None
        self._enqueue(key, entry)

    def _pump(self) -> None:
        while self._loop is not None and self._ready and len(self._tasks) < self._parallel:
            key = self._ready.popleft()
            self._depth.add(-1, self._labels)
            # In the loop's own context: whoever added the key must not become the parent of its spans by accident.
            task = self._loop.create_task(
                self._attempt(key, self._entries[key]), name=f"{self._name} {key!r}", context=self._context.copy()
            )
            self._tasks[task] = key
            self._in_flight.add(1, self._labels)
            task.add_done_callback(self._finished)

    async def _attempt(self, key: K, entry: _Entry) -> None:
        # Only from here on an add means one more run: until now it belongs to the same burst.
        entry.queued, entry.running, entry.again = False, True, False
        entry.attempt = Attempt(entry.failures + 1, tuple(entry.causes.values()))
        entry.started = asyncio.get_running_loop().time()
        await self._reconcile(key, entry.attempt)

    def _finished(self, task: asyncio.Task[None]) -> None:
        key = self._tasks.pop(task)
        self._in_flight.add(-1, self._labels)
        entry = self._entries[key]
        entry.running = False
        if self._loop is None:
            if not task.cancelled():
                task.exception()
            return
        entry.ended = self._loop.time()
        outcome, wait = self._judge(key, task, entry)
        self._seconds.record(entry.ended - entry.started, {**self._labels, "outcome": outcome})
        if entry.failures == 0:
            # What was added while it ran has not been looked at; only that goes on.
            seen = set(map(id, entry.attempt.causes))
            entry.causes = {name: cause for name, cause in entry.causes.items() if id(cause) not in seen}
        if entry.again:
            self._start_soon(key, entry)
        elif wait is not None:
            entry.note(Cause("retry"))
            self._arm(key, entry, wait)
        else:
            del self._entries[key]
        self._pump()

    def _judge(self, key: K, task: asyncio.Task[None], entry: _Entry) -> tuple[str, float | None]:
        """Name the outcome, count the failure, and say in how many seconds to retry (``None``: not at all)."""
        error = asyncio.CancelledError("cancelled from inside") if task.cancelled() else task.exception()
        if error is None:
            entry.failures = 0
            return "done", None
        about = {"key": str(key), "attempt": entry.attempt.number, "trace_id": _trace_id(entry.attempt)}
        if isinstance(error, Reject):
            entry.failures = 0
            self._log.warning("rejected", reason=error.reason, detail=error.message, **about)
            return "rejected", None
        entry.failures += 1
        if isinstance(error, KubeError) and error.transient:
            error = Retry(error.reason, error.message, after=error.retry_after)
        if isinstance(error, Retry):
            wait = error.after if error.after is not None else self._backoff(entry.failures, FIRST_BACKOFF, MAX_BACKOFF)
            self._log.info("retry", reason=error.reason, detail=error.message, after=round(wait, 3), **about)
            return "retry", max(0.0, wait)
        wait = self._backoff(entry.failures, FIRST_BUG_BACKOFF, MAX_BUG_BACKOFF)
        self._log.error("bug in a reconcile", after=round(wait, 3), exc_info=error, **about)
        return "bug", wait

    def _backoff(self, failures: int, first: float, limit: float) -> float:
        # Between half and all of the step: keys that failed together do not come back together.
        step: float = min(limit, first * 2 ** min(failures - 1, 30))
        return max(first, step * self._rng.uniform(0.5, 1.0))


def _trace_id(attempt: Attempt) -> str | None:
    found = (trace_id_of(cause.context) for cause in reversed(attempt.causes) if cause.context is not None)
    return next((trace_id for trace_id in found if trace_id), None)
