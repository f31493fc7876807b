"""How often and how long a guest agent is polled for a NIC that it does not list yet."""

import asyncio
import itertools

import pytest
import structlog

from services.common.flowcontrol.pacer import BURST, INTERVAL
from services.common.guest.agent import AgentFloods, AgentUnavailable, GuestNic
from services.handler.agent_poller import (
    DELAYS_AFTER_LEASE,
    DELAYS_AFTER_PLUG,
    FLOOD_PAUSE,
    MAX_INTERVAL,
    MAX_NICS,
    MAX_UNANSWERED,
    AgentPoller,
)

pytestmark = pytest.mark.looptime

MAC = "02:00:00:00:00:01"
ETH0, ETH1 = GuestNic("eth0", "02:00:00:00:00:00"), GuestNic("eth1", MAC)
HOUR = 3600.0


class ScriptedAgent:
    """An agent that lists given NICs or does not respond, at once, and records the times of the queries.

    :ivar queries: the times of the queries.
    :ivar floods: whether the guest floods each query.
    :ivar responds_every: it responds to every query of this number, and to no other.
    """

    def __init__(self, *nics: GuestNic, silent: bool = False) -> None:
        self.nics = nics
        self.silent = silent
        self.floods = False
        self.responds_every = 1
        self.queries: list[float] = []

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        self.queries.append(asyncio.get_running_loop().time())
        if self.floods:
            raise AgentFloods("too many responses")
        if self.silent or len(self.queries) % self.responds_every:
            raise AgentUnavailable("no response")
        return self.nics

    async def close(self) -> None:
        return


class PolledAgent:
    """A poller of a scripted agent, and the times of the changes it reported."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self.changes: list[float] = []
        self.poller = AgentPoller(agent, self._changed, structlog.get_logger())

    def _changed(self) -> None:
        self.changes.append(asyncio.get_running_loop().time())


async def test_a_nic_that_a_slow_guest_lists_late_is_reported_soon_after() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.poll(DELAYS_AFTER_PLUG)
    await asyncio.sleep(100)
    later = agent.queries[len(DELAYS_AFTER_PLUG) - 1 :]
    pauses = [after - before for before, after in itertools.pairwise(later)]
    assert all(2 <= pause <= MAX_INTERVAL for pause in pauses)
    assert 100 / MAX_INTERVAL - 2 <= len(pauses) <= 15
    assert max(pauses[:2]) < max(pauses)
    agent.nics = (ETH0, ETH1)
    await asyncio.sleep(MAX_INTERVAL)
    assert polled.poller.nics == (ETH0, ETH1)
    assert len(polled.changes) == 2
    queries = len(agent.queries)
    await asyncio.sleep(HOUR)
    assert len(agent.queries) == queries
    await polled.poller.close()


async def test_guests_without_an_agent_are_not_polled_after_the_series() -> None:
    agents = [ScriptedAgent(silent=True) for _ in range(25)]
    polled_agents = [PolledAgent(agent) for agent in agents]
    for polled in polled_agents:
        polled.poller.expect({MAC})
        polled.poller.poll(DELAYS_AFTER_PLUG)
    await asyncio.sleep(HOUR)
    assert [len(agent.queries) for agent in agents] == [len(DELAYS_AFTER_PLUG)] * 25
    for polled in polled_agents:
        # A resync queries once.
        polled.poller.poll()
    await asyncio.sleep(HOUR)
    assert [len(agent.queries) for agent in agents] == [len(DELAYS_AFTER_PLUG) + 1] * 25
    for polled in polled_agents:
        await polled.poller.close()


async def test_an_agent_that_stops_responding_is_not_polled_until_it_responds_again() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.poll()
    await asyncio.sleep(1)
    agent.silent = True
    await asyncio.sleep(HOUR)
    assert len(agent.queries) == 1 + MAX_UNANSWERED
    polled.poller.poll()
    await asyncio.sleep(HOUR)
    assert len(agent.queries) == 2 + MAX_UNANSWERED
    agent.silent = False
    polled.poller.poll()
    await asyncio.sleep(HOUR)
    assert len(agent.queries) >= 2 + MAX_UNANSWERED + HOUR / MAX_INTERVAL
    await polled.poller.close()


async def test_an_agent_that_sometimes_does_not_respond_is_polled_on() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.poll()
    await asyncio.sleep(1)
    agent.responds_every = MAX_UNANSWERED
    await asyncio.sleep(HOUR)
    assert len(agent.queries) >= HOUR / MAX_INTERVAL
    await polled.poller.close()


async def test_an_agent_that_has_just_connected_is_polled_on() -> None:
    agent = ScriptedAgent(ETH0, ETH1, silent=True)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.record_connected()
    await asyncio.sleep(0.1)
    assert (len(agent.queries), polled.changes) == (1, [])
    agent.silent = False
    await asyncio.sleep(MAX_INTERVAL)
    assert len(polled.changes) == 1
    await polled.poller.close()


async def test_a_single_query_does_not_wait_for_the_slow_interval() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.poll()
    await asyncio.sleep(60)
    queries = len(agent.queries)
    agent.nics = (ETH0, ETH1)
    polled.poller.poll()
    await asyncio.sleep(0.01)
    assert (len(agent.queries), len(polled.changes)) == (queries + 1, 2)
    await polled.poller.close()


async def test_the_series_after_a_plug_is_not_replaced_by_a_single_query() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    polled.poller.poll()
    await asyncio.sleep(60)
    queries = len(agent.queries)
    # Also before the series has started.
    polled.poller.poll(DELAYS_AFTER_PLUG)
    polled.poller.poll()
    await asyncio.sleep(sum(DELAYS_AFTER_PLUG) + 0.1)
    assert len(agent.queries) == queries + len(DELAYS_AFTER_PLUG)
    await polled.poller.close()


async def test_a_newly_expected_nic_is_polled_for_until_it_is_no_longer_expected() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    polled.poller.poll()
    await asyncio.sleep(HOUR)
    assert len(agent.queries) == 1
    polled.poller.expect({MAC})
    await asyncio.sleep(60)
    queries = len(agent.queries)
    assert queries > 4
    polled.poller.expect(())
    await asyncio.sleep(HOUR)
    assert len(agent.queries) == queries
    await polled.poller.close()


async def test_a_guest_that_lists_something_else_each_time_is_reported_every_few_seconds() -> None:
    agent = ScriptedAgent(ETH0)
    polled = PolledAgent(agent)
    for number in range(1200):
        agent.nics = (GuestNic(f"eth{number}", ETH0.mac),)
        polled.poller.poll()
        await asyncio.sleep(0.1)
    assert len(polled.changes) <= BURST + 1 + 120 / INTERVAL
    # A device that was attached meanwhile is reported at once.
    polled.poller.forget(MAC)
    agent.nics = (ETH0, ETH1)
    polled.poller.poll()
    before = len(polled.changes)
    await asyncio.sleep(0.001)
    assert len(polled.changes) == before + 1
    # The last change is not lost.
    agent.nics = (ETH0,)
    polled.poller.poll()
    await asyncio.sleep(INTERVAL + 0.1)
    assert len(polled.changes) == before + 2
    await polled.poller.close()


async def test_the_expected_nics_are_kept_of_a_guest_with_many() -> None:
    many = tuple(GuestNic(f"veth{n}", f"02:00:00:00:01:{n:02x}") for n in range(200))
    polled = PolledAgent(ScriptedAgent(*many, ETH1))
    polled.poller.expect({MAC})
    polled.poller.poll()
    await asyncio.sleep(1)
    assert polled.poller.nics == (*many[: MAX_NICS - 1], ETH1)
    await polled.poller.close()


async def test_a_bounded_number_of_new_devices_is_remembered_of_a_guest_without_an_agent() -> None:
    polled = PolledAgent(ScriptedAgent(silent=True))
    for number in range(3 * MAX_NICS):
        polled.poller.forget(f"02:00:00:00:01:{number:02x}")
    assert len(polled.poller._new) <= MAX_NICS
    await polled.poller.close()


async def test_a_guest_that_floods_a_query_is_not_queried_for_a_while_whatever_it_causes() -> None:
    agent = ScriptedAgent(ETH0, ETH1)
    agent.floods = True
    polled = PolledAgent(agent)
    polled.poller.expect({MAC})
    for _ in range(int(FLOOD_PAUSE) - 1):
        polled.poller.record_connected()
        await asyncio.sleep(0.5)
        polled.poller.poll(DELAYS_AFTER_LEASE)
        await asyncio.sleep(0.5)
    assert len(agent.queries) == 1
    agent.floods = False
    await asyncio.sleep(2)
    polled.poller.record_connected()
    await asyncio.sleep(0.1)
    assert polled.poller.nics == (ETH0, ETH1)
    await polled.poller.close()
