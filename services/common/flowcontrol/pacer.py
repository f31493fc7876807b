"""The pace of what a foreign process causes: some at once, then one every few seconds. It has the event loop's clock.

Next: :mod:`services.common.flowcontrol.allowance`, which counts.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from services.common.flowcontrol.allowance import Allowance

BURST, INTERVAL = 10, 3.0
"""How often a process may cause the same thing at once, and seconds between two in the long run."""
MAX_GRANTED = 256
"""Limit of what is granted and not used."""


class Pacer:
    """Calls a function as often as a process causes it, but not more often than :data:`BURST` and :data:`INTERVAL` say.

    The last cause is never lost: a call that is too early is made later, once. A pacer has either :meth:`request` or
    :meth:`admit` called, not both.
    """

    def __init__(self, call: Callable[..., None], *, burst: int = BURST, interval: float = INTERVAL) -> None:
        self._call = call
        self._burst = burst
        self._interval = interval
        self._allowance = Allowance(interval)
        self._granted = 0
        self._arguments: tuple[Any, ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    def request(self, *arguments: Any) -> None:
        """Call the function now, or as soon as it may be called, with the arguments of the last request."""
        self._arguments = arguments
        if self._timer is None and self._admit(self._request_again):
            self._call(*arguments)

    def admit(self) -> bool:
        """Return whether the caller may do it now; if not, call the function when it may, so that it asks again."""
        return self._timer is None and self._admit(self._ask_again)

    def grant(self, count: int) -> None:
        """Allow this many more, whenever they come: somebody else than the process has caused them.

        What waits for its time is then called now.
        """
        self._granted = min(MAX_GRANTED, self._granted + count)
        if self._granted and self._timer is not None:
            self.close()
            self._call(*self._arguments)

    def close(self) -> None:
        """Drop a call that is due later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _admit(self, later: Callable[[], None]) -> bool:
        loop = asyncio.get_running_loop()
        if self._granted:
            self._granted -= 1
            return True
        used = self._allowance.used(loop.time())
        if used <= self._burst - 1:
            self._allowance.use(loop.time())
            return True
        self._timer = loop.call_later((used - self._burst + 1) * self._interval, later)
        return False

    def _request_again(self) -> None:
        self._timer = None
        self.request(*self._arguments)

    def _ask_again(self) -> None:
        self._timer = None
        self._call()
