"""When to ask the guest agents: soon and often after a card was plugged, once at a resync, never in a reconcile's way.

One task per guest asks and remembers the last answer; when an answer differs from the one before, the guest's key is
looked at again. Nothing here decides what the answer means (:mod:`services.handler.status`).
"""

import asyncio
from collections.abc import Callable, Sequence

from services.common.logs import Log
from services.handler.guest.agent import AgentSilent, GuestAgent, GuestNic

SERIES: Sequence[float] = (0.03, 0.02, 0.02, 0.03, 0.03, 0.04, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before each question after a card was plugged: a guest shows a new card within 100 ms, but one that boots
shows it only when it is up."""

AFTER_LEASE: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The same after the guest was given addresses: it may look for their use by others first."""

LATE = 0.4
"""Seconds before a question whose want of an answer is news: a guest that runs would have answered the earlier ones."""

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
        self.nics: tuple[GuestNic, ...] | None = None
        """The last answer; ``None`` before the first."""

    def ask(self, series: Sequence[float] = (0.0,)) -> None:
        """Ask after each of these delays (seconds), beginning now; a series that runs already is replaced by a longer
        one and left alone by a single question."""
        if self._task is not None and not self._task.done():
            if len(series) == 1:
                return
            self._task.cancel()
        self._task = asyncio.create_task(self._run(series), name="agent-watch")

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

    async def _run(self, series: Sequence[float]) -> None:
        for delay in series:
            await asyncio.sleep(delay)
            try:
                nics = await self._agent.interfaces(timeout=self._timeout)
            except AgentSilent as silence:
                self._log.debug("guest agent silent", why=str(silence))
                if delay >= LATE or len(series) == 1:
                    self._silent()
                continue
            if nics != self.nics:
                self.nics = nics
                self._changed()
