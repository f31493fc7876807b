"""What the supervisor reports to `hotnic lab up` while the lab starts: steps and their times, the end, a failure.

The reader is `lab.namespaces.holder.launch`; `lifecycle.py` reports.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable


class StartError(Exception):
    """The lab cannot be started; the message names what failed."""


class StartProgress:
    """Reports progress to the process that called `lab up`; discards it once that process has ended.

    :param fd: write end of the pipe.
    :param started_at: CLOCK_MONOTONIC at the start of `lab up`.
    """

    def __init__(self, fd: int, started_at: float) -> None:
        self._fd = fd
        self._started_at = started_at

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start of `lab up`."""
        return time.monotonic() - self._started_at

    def report(self, **message: object) -> None:
        """Write one message: a JSON object on a line of its own."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, json.dumps({"at": round(self.elapsed, 3), **message}).encode() + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the pipe."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def run_step(self, name: str, work: Awaitable[object]) -> None:
        """Await `work` and report how long it took, under `name`."""
        before = time.monotonic()
        await work
        self.report(step=name, ms=round((time.monotonic() - before) * 1000))
