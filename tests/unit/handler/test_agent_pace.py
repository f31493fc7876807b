"""How long a guest agent is asked for a card that it does not list yet: with patience, and not for ever in vain."""

import asyncio
import itertools

import pytest
import structlog

from services.handler.guest.agent import AgentSilent, GuestNic
from services.handler.guest.watch import GIVE_UP, SERIES, SLOWEST, AgentWatch

pytestmark = pytest.mark.looptime

MAC = "02:00:00:00:00:01"
ETH0, ETH1 = GuestNic("eth0", "02:00:00:00:00:00"), GuestNic("eth1", MAC)
HOUR = 3600.0


class ScriptedAgent:
    """An agent that lists these NICs, or is silent. It takes no time, and remembers when it was asked.

    :ivar answers_each: of so many questions it answers the last.
    """

    def __init__(self, *nics: GuestNic, silent: bool = False) -> None:
        self.nics = nics
        self.silent = silent
        self.answers_each = 1
        self.asked: list[float] = []

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        self.asked.append(asyncio.get_running_loop().time())
        if self.silent or len(self.asked) % self.answers_each:
            raise AgentSilent("nobody")
        return self.nics

    async def close(self) -> None:
        return


class Watched:
    """A watch over such an agent, and when it had news."""

    def __init__(self, agent: ScriptedAgent) -> None:
        self.history: list[float] = []
        self.watch = AgentWatch(agent, self._changed, structlog.get_logger())

    def _changed(self) -> None:
        self.history.append(asyncio.get_running_loop().time())


async def test_a_card_that_a_slow_guest_shows_late_is_confirmed_soon_after() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.ask(SERIES)
    await asyncio.sleep(100)
    later = agent.asked[len(SERIES) - 1 :]
    pauses = [after - before for before, after in itertools.pairwise(later)]
    assert all(2 <= pause <= SLOWEST for pause in pauses)
    assert 100 / SLOWEST - 2 <= len(pauses) <= 15
    assert max(pauses[:2]) < max(pauses)
    agent.nics = (ETH0, ETH1)
    await asyncio.sleep(SLOWEST)
    assert watched.watch.nics == (ETH0, ETH1)
    assert len(watched.history) == 2
    asked = len(agent.asked)
    await asyncio.sleep(HOUR)
    assert len(agent.asked) == asked
    await watched.watch.close()


async def test_guests_without_an_agent_are_left_alone_after_the_series() -> None:
    agents = [ScriptedAgent(silent=True) for _ in range(25)]
    watches = [Watched(agent) for agent in agents]
    for watched in watches:
        watched.watch.expect({MAC})
        watched.watch.ask(SERIES)
    await asyncio.sleep(HOUR)
    assert [len(agent.asked) for agent in agents] == [len(SERIES)] * 25
    for watched in watches:
        # A resync asks once, and that is all.
        watched.watch.ask()
    await asyncio.sleep(HOUR)
    assert [len(agent.asked) for agent in agents] == [len(SERIES) + 1] * 25
    for watched in watches:
        await watched.watch.close()


async def test_an_agent_that_has_fallen_silent_is_given_up_until_it_speaks_again() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.ask()
    await asyncio.sleep(1)
    agent.silent = True
    await asyncio.sleep(HOUR)
    assert len(agent.asked) == 1 + GIVE_UP
    watched.watch.ask()
    await asyncio.sleep(HOUR)
    assert len(agent.asked) == 2 + GIVE_UP
    agent.silent = False
    watched.watch.ask()
    await asyncio.sleep(HOUR)
    assert len(agent.asked) >= 2 + GIVE_UP + HOUR / SLOWEST
    await watched.watch.close()


async def test_silence_now_and_then_is_borne() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.ask()
    await asyncio.sleep(1)
    agent.answers_each = GIVE_UP
    await asyncio.sleep(HOUR)
    assert len(agent.asked) >= HOUR / SLOWEST
    await watched.watch.close()


async def test_an_agent_that_has_just_come_is_waited_for() -> None:
    agent = ScriptedAgent(ETH0, ETH1, silent=True)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.came()
    await asyncio.sleep(0.1)
    assert (len(agent.asked), watched.history) == (1, [])
    agent.silent = False
    await asyncio.sleep(SLOWEST)
    assert len(watched.history) == 1
    await watched.watch.close()


async def test_news_from_the_guest_are_not_kept_waiting_by_a_pause() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.ask()
    await asyncio.sleep(60)
    asked = len(agent.asked)
    agent.nics = (ETH0, ETH1)
    watched.watch.ask()
    await asyncio.sleep(0.01)
    assert (len(agent.asked), len(watched.history)) == (asked + 1, 2)
    await watched.watch.close()


async def test_the_series_after_a_plug_is_not_cut_short_by_the_news_that_follow() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.expect({MAC})
    watched.watch.ask()
    await asyncio.sleep(60)
    asked = len(agent.asked)
    # Before the first of them has begun, too.
    watched.watch.ask(SERIES)
    watched.watch.ask()
    await asyncio.sleep(sum(SERIES) + 0.1)
    assert len(agent.asked) == asked + len(SERIES)
    await watched.watch.close()


async def test_what_is_awaited_after_the_last_answer_is_asked_for_and_what_no_longer_is_is_not() -> None:
    agent = ScriptedAgent(ETH0)
    watched = Watched(agent)
    watched.watch.ask()
    await asyncio.sleep(HOUR)
    assert len(agent.asked) == 1
    watched.watch.expect({MAC})
    await asyncio.sleep(60)
    asked = len(agent.asked)
    assert asked > 4
    watched.watch.expect(())
    await asyncio.sleep(HOUR)
    assert len(agent.asked) == asked
    await watched.watch.close()
