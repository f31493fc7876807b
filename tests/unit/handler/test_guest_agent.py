"""The conversation with the guest agent, and when it is held."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services.handler.guest.agent import Agent, AgentSilent, GuestNic, nics_of
from services.handler.guest.watch import AgentWatch
from tests.support.guest_agent import FakeAgent, fake_agent

MAC = "02:00:00:00:00:01"


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[FakeAgent, Agent]]:
    async with fake_agent(tmp_path / "agent.sock") as scripted:
        agent = Agent(str(tmp_path / "agent.sock"))
        yield scripted, agent
        await agent.close()


async def test_the_guests_nics_are_listed_without_loopback(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    scripted.shows("lo", "00:00:00:00:00:00", "127.0.0.1")
    scripted.shows("eth1", "02:00:00:AA:00:01", "10.0.0.9", "fe80::1")
    assert await agent.interfaces(timeout=1) == (GuestNic("eth1", "02:00:00:aa:00:01", ("10.0.0.9", "fe80::1")),)


async def test_the_connection_is_kept_while_the_agent_answers(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    await agent.interfaces(timeout=1)
    await agent.interfaces(timeout=1)
    assert scripted.connections == 1


async def test_answers_to_an_earlier_client_are_not_believed(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    scripted.noise = b'{"return": [{"name": "old"}]}\n\xff{"return": 999999}\n'
    scripted.shows("eth1", MAC)
    assert [nic.name for nic in await agent.interfaces(timeout=1)] == ["eth1"]


async def test_a_silent_agent_is_given_up_and_asked_anew(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    scripted.silent = True
    with pytest.raises(AgentSilent, match="no answer"):
        await agent.interfaces(timeout=0.02)
    scripted.silent = False
    await agent.interfaces(timeout=1)
    assert scripted.connections == 2


async def test_an_agent_that_refuses_is_silent_to_us(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    scripted.error = {"class": "CommandNotFound", "desc": "disabled"}
    with pytest.raises(AgentSilent, match="disabled"):
        await agent.interfaces(timeout=1)


async def test_a_guest_without_an_agent_has_a_silent_one(tmp_path: Path) -> None:
    with pytest.raises(AgentSilent):
        await Agent(str(tmp_path / "nothing.sock")).interfaces(timeout=1)


@given(st.binary(max_size=60))
def test_what_is_no_answer_is_a_value_error(raw: bytes) -> None:
    try:
        assert isinstance(nics_of(raw), tuple)
    except ValueError:
        return


class Watched:
    """A watch over a scripted agent that tells how often its news came."""

    def __init__(self, agent: Agent) -> None:
        self.history = 0
        self.came = asyncio.Event()
        self.watch = AgentWatch(agent, self._changed, structlog.get_logger(), timeout=0.05)

    def _changed(self) -> None:
        self.history += 1
        self.came.set()

    async def finished(self, series: Sequence[float]) -> None:
        self.watch.ask(series)
        task = self.watch._task
        assert task is not None
        await task


async def test_news_come_once_for_each_different_answer(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    watched = Watched(agent)
    await watched.finished((0.0, 0.0, 0.0))
    assert (watched.history, watched.watch.nics) == (1, ())
    scripted.shows("eth1", MAC)
    await watched.finished((0.0, 0.0))
    assert (watched.history, watched.watch.nics) == (2, (GuestNic("eth1", MAC),))


async def test_silence_is_no_news_and_ends_no_series(fake: tuple[FakeAgent, Agent]) -> None:
    scripted, agent = fake
    scripted.silent = True
    watched = Watched(agent)
    watched.watch.ask((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    await scripted.asked.wait()
    scripted.silent = False
    await asyncio.wait_for(watched.came.wait(), 2)
    assert watched.watch.nics == ()
    await watched.watch.close()


async def test_one_question_does_not_cut_a_series_short(fake: tuple[FakeAgent, Agent]) -> None:
    _, agent = fake
    watched = Watched(agent)
    watched.watch.ask((30.0, 30.0))
    running = watched.watch._task
    watched.watch.ask()
    assert watched.watch._task is running
    watched.watch.ask((0.0, 0.0))
    assert watched.watch._task is not running
    await asyncio.wait_for(watched.came.wait(), 2)
    await watched.watch.close()
