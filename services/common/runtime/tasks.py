"""Background tasks of a process: named, logged when they fail, restarted with backoff, reported when they hang.

An exception in a task never ends the process. Roles spawn tasks by
:meth:`services.common.runtime.process.RoleRuntime.spawn`.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from services.common.flowcontrol.backoff import jittered
from services.common.telemetry.logs import Log

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 30.0
STABLE_AFTER = 60.0
"""Seconds. A task that ran this long before it failed restarts with the first backoff."""


class Tasks:
    """The background tasks of a process."""

    def __init__(self, log: Log, rng: random.Random | None = None) -> None:
        self._log = log
        self._rng = rng or random.Random()
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, name: str, work: Work | Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task in the background until it returns.

        :param work: a coroutine function such as ``reflector.run``, which is restarted with backoff when it raises; or
            a coroutine, which can run only once, so its failure is only logged.
        """
        coroutine = self._run_once(name, work) if asyncio.iscoroutine(work) else self._run_restarting(name, work)
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)
        return task

    async def stop(self, timeout: float) -> list[str]:
        """Cancel all tasks, the last one first, and wait for them.

        :param timeout: seconds.
        :return: names of the tasks that have not ended in time.
        """
        tasks = list(reversed(self._tasks))
        for task in tasks:
            task.cancel()
        if not tasks:
            return []
        _, hanging = await asyncio.wait(tasks, timeout=timeout)
        names = [task.get_name() for task in tasks if task in hanging]
        if names:
            self._log.error("cancelled tasks still running", tasks=names, waited=timeout)
        return names

    async def _run_once(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._log.error("task failed", task=name, exc_info=error)

    async def _run_restarting(self, name: str, work: Work) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            started = loop.time()
            try:
                await work()
            except Exception as error:
                failures = 1 if loop.time() - started >= STABLE_AFTER else failures + 1
                wait = jittered(failures, FIRST_BACKOFF, MAX_BACKOFF, self._rng)
                self._log.error("task failed", task=name, restart_in=round(wait, 3), exc_info=error)
                await asyncio.sleep(wait)
            else:
                return
