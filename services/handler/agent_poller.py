"""When to query the guest agents: often after a device was plugged, then slowly, and never within a reconcile.

An agent that is known to run is polled until it lists every expected MAC. A guest without an agent is not polled after
the first series of queries. One task per guest polls and stores the last response; a response that differs from the one
before requeues the guest's key. What a response means is decided in
:mod:`services.handler.plan.report`.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

from services.common.flowcontrol.pacer import Pacer
from services.common.guest.agent import AgentFloods, AgentUnavailable, GuestAgent, GuestNic
from services.common.telemetry.logs import Log

DELAYS_AFTER_PLUG: Sequence[float] = (0.03, 0.02, 0.02, 0.03, 0.03, 0.04, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before each query after a device was plugged. A running guest shows the NIC within 100 ms, a booting guest
only when it is up."""

DELAYS_AFTER_LEASE: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Seconds before each query after the guest got addresses. The guest may run duplicate address detection first."""

REPORT_FROM = 0.4
"""Seconds of delay from which an unanswered query is reported. A running agent answers one of the earlier queries."""

FIRST_INTERVAL, MAX_INTERVAL = 5.0, 15.0
"""Seconds between two slow queries: the first interval, and the longest. Each is shortened at random by up to a half,
so that the agents of a node are not all queried at once."""

MAX_UNANSWERED = 4
"""The number of consecutive slow queries without a response after which the agent counts as absent."""

TIMEOUT = 1.0
"""Seconds for one query, connecting included."""

FLOOD_PAUSE = 60.0
"""Seconds without a query after the guest has flooded one, whatever the guest causes meanwhile."""

MAX_NICS = 64
"""NICs that are kept of a response, the expected ones first."""


class AgentPoller:
    """Polls one guest's agent in the background.

    :ivar nics: the NICs of the last response; ``None`` before the first response.
    :ivar expected: the MACs that the agent should list.
    """

    def __init__(
        self,
        agent: GuestAgent,
        on_change: Callable[[], None],
        log: Log,
        *,
        on_silence: Callable[[], None] = lambda: None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Create the poller; it queries nothing yet.

        :param on_change: called after a response that differs from the one before: at once if it lists a device for
            the first time since it was attached, otherwise paced.
        :param on_silence: called after a query without a response, from :data:`REPORT_FROM` on.
        :param timeout: seconds for one query.
        """
        self._agent = agent
        self._on_change = on_change
        self._paced_change = Pacer(on_change)
        self._new: set[str] = set()
        self._on_silence = on_silence
        self._log = log
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._present = False
        self._pausing = False
        self._flooded_until = 0.0
        self.nics: tuple[GuestNic, ...] | None = None
        self.expected: frozenset[str] = frozenset()

    def poll(self, delays: Sequence[float] = (0.0,)) -> None:
        """Start a series of queries.

        A series replaces the one under way. A single query does not: the series makes it superfluous.

        :param delays: seconds before each query.
        """
        # Not in a pause: the next slow query may be 15 s away.
        if self._running() and len(delays) == 1 and not self._pausing:
            return
        self._start(delays)

    def record_connected(self) -> None:
        """Record that the agent runs, whether or not it responds at once, and query it."""
        self._present = True
        self.poll()

    def expect(self, macs: Iterable[str]) -> None:
        """Poll until the agent, if there is one, lists these MACs.

        :param macs: lower case; they replace those of the call before.
        """
        self.expected = frozenset(macs)
        if not self._running() and self._incomplete():
            self._start(())

    def forget(self, mac: str) -> None:
        """Remove a MAC from the last response: it is another device from now on, which was attached just now."""
        if len(self._new) == MAX_NICS:
            # A guest without an agent lists none of them.
            self._new.clear()
        self._new.add(mac)
        if self.nics is not None:
            self.nics = tuple(nic for nic in self.nics if nic.mac != mac)

    async def close(self) -> None:
        """Stop polling and disconnect."""
        self._paced_change.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._agent.close()

    def _running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _start(self, delays: Sequence[float]) -> None:
        if self._task is not None:
            self._task.cancel()
        self._pausing = False
        self._task = asyncio.create_task(self._run(delays), name="poll guest agent")

    def _incomplete(self) -> bool:
        return self._present and not self.expected <= {nic.mac for nic in self.nics or ()}

    async def _run(self, delays: Sequence[float]) -> None:
        for delay in delays:
            await asyncio.sleep(delay)
            await self._query(report=delay >= REPORT_FROM or len(delays) == 1)
        interval, unanswered = FIRST_INTERVAL, 0
        while self._incomplete():
            self._pausing = True
            await asyncio.sleep(interval * random.uniform(0.5, 1.0))
            self._pausing = False
            # The expected MACs may have changed during the pause.
            if not self._incomplete():
                return
            unanswered = 0 if await self._query(report=True) else unanswered + 1
            self._present = unanswered < MAX_UNANSWERED
            interval = min(MAX_INTERVAL, 1.5 * interval)

    async def _query(self, *, report: bool) -> bool:
        """Query the agent once, unless it has flooded a query lately; return whether it responded.

        :param report: whether to call ``on_silence`` when it did not.
        """
        loop = asyncio.get_running_loop()
        try:
            if loop.time() < self._flooded_until:
                raise AgentUnavailable("not queried, because it has flooded a query")
            nics = await self._agent.interfaces(timeout=self._timeout)
        except AgentUnavailable as error:
            if isinstance(error, AgentFloods):
                self._flooded_until = loop.time() + FLOOD_PAUSE
            self._log.debug("guest agent unavailable", error=str(error))
            if report:
                self._on_silence()
            return False
        self._present = True
        nics = self._bounded(nics)
        if nics != self.nics:
            self.nics = nics
            seen = self._new & {nic.mac for nic in nics}
            self._new -= seen
            if seen:
                self._on_change()
            else:
                # Whatever a guest lists, the VMI is written every few seconds at most.
                self._paced_change.request()
        return True

    def _bounded(self, nics: tuple[GuestNic, ...]) -> tuple[GuestNic, ...]:
        if len(nics) <= MAX_NICS:
            return nics
        wanted = self.expected | self._new
        # The sort is stable: a bond is listed after the NIC below it.
        chosen = sorted(range(len(nics)), key=lambda at: nics[at].mac not in wanted)[:MAX_NICS]
        return tuple(nics[at] for at in sorted(chosen))
