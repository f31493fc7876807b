"""When to ask the guest agents: soon and often after a card was plugged, once at a resync, never in a reconcile's way.

While an agent that is known to be there does not list a card of the domain, it is asked on and on, slowly. A guest
without one is left alone after the series.
One task per guest asks and remembers the last answer; when an answer differs from the one before, the guest's key is
looked at again. Nothing here decides what the answer means (:mod:`services.handler.status`).
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

from services.common.logs import Log
from services.handler.guest.agent import AgentSilent, GuestAgent, GuestNic

SERIES: Sequence[float] = (0.03, 0.02, 0.02, 0.03, 0.03, 0.04, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before each question after a card was plugged: a guest shows a new card within 100 ms, but one that boots
shows it only when it is up."""

AFTER_LEASE: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The same after the guest was given addresses: it may look for their use by others first."""

LATE = 0.4
"""Seconds before a question whose want of an answer is news: a guest that runs would have answered the earlier ones."""

SLOW, SLOWEST = 5.0, 15.0
"""Seconds between two questions after a series, at first and at last; up to half of it less, so that the guests of a
node are not asked in step."""

GIVE_UP = 4
"""So many slow questions in a row without an answer, and the agent counts as gone."""

TIMEOUT = 1.0
"""Seconds for one conversation with an agent."""


class AgentWatch:
    """One guest's agent, asked in the background.

    :param changed: called after an answer that differs from the last one. :param silent: when none came.
    """

    def __init__(
        self,
        agent: GuestAgent,
        changed: Callable[[], None],
        log: Log,
        *,
        silent: Callable[[], None] = lambda: None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._agent = agent
        self._changed = changed
        self._silent = silent
        self._log = log
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._there = False
        self._pausing = False
        self.nics: tuple[GuestNic, ...] | None = None
        """The last answer; ``None`` before the first."""
        self.expected: frozenset[str] = frozenset()
        """MACs that the agent should list."""

    def ask(self, series: Sequence[float] = (0.0,)) -> None:
        """Ask after each of these delays (seconds), beginning now; a series that runs already is replaced by a longer
        one and left alone by a single question."""
        if self._running() and len(series) == 1 and not self._pausing:
            return
        self._begin(series)

    def came(self) -> None:
        """Ask an agent of which it is known that it is there now, whether or not it answers at once."""
        self._there = True
        self.ask()

    def expect(self, macs: Iterable[str]) -> None:
        """Ask on until the agent, if there is one, lists these MACs (lower case); they replace those named before."""
        self.expected = frozenset(macs)
        if not self._running() and self._waiting():
            self._begin(())

    def forget(self, mac: str) -> None:
        """Take what the last answer said of a MAC for unsaid."""
        if self.nics is not None:
            self.nics = tuple(nic for nic in self.nics if nic.mac != mac)

    async def close(self) -> None:
        """Stop asking and disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._agent.close()

    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _begin(self, series: Sequence[float]) -> None:
        if self._task is not None:
            self._task.cancel()
        self._pausing = False
        self._task = asyncio.create_task(self._run(series), name="agent-watch")

    def _waiting(self) -> bool:
        return self._there and not self.expected <= {nic.mac for nic in self.nics or ()}

    async def _run(self, series: Sequence[float]) -> None:
        for delay in series:
            await asyncio.sleep(delay)
            await self._answered(tell=delay >= LATE or len(series) == 1)
        pause, silences = SLOW, 0
        while self._waiting():
            self._pausing = True
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            self._pausing = False
            if not self._waiting():
                return
            silences = 0 if await self._answered(tell=True) else silences + 1
            self._there = silences < GIVE_UP
            pause = min(SLOWEST, 1.5 * pause)

    async def _answered(self, *, tell: bool) -> bool:
        """Ask once. ``tell``: whether silence is news."""
        try:
            nics = await self._agent.interfaces(timeout=self._timeout)
        except AgentSilent as silence:
            self._log.debug("guest agent silent", why=str(silence))
            if tell:
                self._silent()
            return False
        self._there = True
        if nics != self.nics:
            self.nics = nics
            self._changed()
        return True
