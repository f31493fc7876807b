"""Tasks that belong to a process: named, logged when they fail, restarted with backoff, reported when they hang.

A bug in one of them never ends the process. Which tasks there are is the role's business
(:meth:`services.common.runtime.RoleRuntime.spawn`).
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from services.common.logs import Log

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 30.0
STEADY = 60.0
"""Seconds: a task that lived this long starts its backoff anew."""


class Tasks:
    """The tasks of a process."""

    def __init__(self, log: Log, rng: random.Random | None = None) -> None:
        self._log = log
        self._rng = rng or random.Random()
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, name: str, work: Work | Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside everything else.

        :param work: a function that makes a coroutine (``reflector.run``, not called): restarted with backoff whenever
            it raises. Or a coroutine: it can only be run once, a failure of it is logged. Either may end by returning.
        """
        made = self._once(name, work) if asyncio.iscoroutine(work) else self._again(name, work)
        task = asyncio.create_task(made, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)
        return task

    async def stop(self, timeout: float) -> list[str]:
        """Cancel all, the last one first, and wait; gives the names of those that hang."""
        tasks = list(reversed(self._tasks))
        for task in tasks:
            task.cancel()
        if not tasks:
            return []
        _, hanging = await asyncio.wait(tasks, timeout=timeout)
        names = [task.get_name() for task in tasks if task in hanging]
        if names:
            self._log.error("tasks hang although they were cancelled", tasks=names, waited=timeout)
        return names

    async def _once(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._log.error("task failed", task=name, exc_info=error)

    async def _again(self, name: str, work: Work) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                await work()
            except Exception as error:
                failures = 1 if loop.time() - started >= STEADY else failures + 1
                step = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 30))
                wait = max(FIRST_BACKOFF, step * self._rng.uniform(0.5, 1.0))
                self._log.error("task failed", task=name, restart_in=round(wait, 3), exc_info=error)
                await asyncio.sleep(wait)
            else:
                return
