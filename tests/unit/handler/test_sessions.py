"""What a session makes of the news from a guest, which is scripted here and speaks the port."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog
from opentelemetry.context import Context

from services.handler.guest.agent import AgentSilent, GuestNic
from services.handler.guest.port import Change, GuestEvent, GuestNotReachable, GuestView, NewCard
from services.handler.guest.watch import GIVE_UP
from services.handler.pending_unplug import Asked
from services.handler.sessions import Key, Leaving, Plugged, Session

KEY = ("default", "vm1")


class ScriptedGuest:
    """A guest that says what the test puts in; ``None`` ends the connection."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[GuestEvent | None] = asyncio.Queue()

    async def events(self) -> AsyncIterator[GuestEvent]:
        while (event := await self.says.get()) is not None:
            yield event

    async def list(self) -> GuestView:
        raise GuestNotReachable("not in this test")

    async def attach(self, card: NewCard, slot: str) -> None:
        raise GuestNotReachable("not in this test")

    async def detach(self, interface: str) -> None:
        raise GuestNotReachable("not in this test")

    async def remove_backend(self, interface: str) -> None:
        raise GuestNotReachable("not in this test")

    async def set_link(self, interface: str, up: bool) -> None:
        raise GuestNotReachable("not in this test")

    async def close(self) -> None:
        self.says.put_nowait(None)


class SilentAgent:
    """An agent that never answers, and counts the questions."""

    def __init__(self) -> None:
        self.asked = 0

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        self.asked += 1
        raise AgentSilent("nobody")

    async def close(self) -> None:
        return


class Listened:
    """A session that listens, and the looks that it asked for."""

    def __init__(self) -> None:
        self.guest, self.agent = ScriptedGuest(), SilentAgent()
        self.looks: asyncio.Queue[Context | None] = asyncio.Queue()
        self.session = Session(KEY, self.guest, self.agent, self._look, structlog.get_logger())
        self.session.listen()

    def _look(self, key: Key, context: Context | None) -> None:
        assert key == KEY
        self.looks.put_nowait(context)


async def test_a_guest_that_says_it_keeps_its_card_is_remembered_so_and_looked_at() -> None:
    listened = Listened()
    context = Context()
    leaving = listened.session.leaving["blue"] = Leaving(Asked(1, 0.0, 1.0), context)
    listened.guest.says.put_nowait(GuestEvent(Change.CARD_STAYS, "ua-blue"))
    assert await listened.looks.get() is context
    assert leaving.asked.refused
    await listened.session.close()


async def test_a_guest_that_is_up_again_is_asked_again_at_once() -> None:
    listened = Listened()
    now = asyncio.get_running_loop().time()
    leaving = listened.session.leaving["blue"] = Leaving(Asked(5, now - 60, now + 30), Context())
    for change in (Change.AGENT_CAME, Change.CARD_IN_USE):
        leaving.asked = Asked(5, now - 60, now + 30)
        listened.guest.says.put_nowait(GuestEvent(change))
        await listened.looks.get()
        assert leaving.asked.due <= asyncio.get_running_loop().time()
    await listened.session.close()


@pytest.mark.looptime
@pytest.mark.parametrize(("change", "asked"), [(Change.AGENT_CAME, 1 + GIVE_UP), (Change.CARD_IN_USE, 1)])
async def test_an_agent_is_waited_for_only_where_there_is_one(change: Change, asked: int) -> None:
    listened = Listened()
    listened.session.agent.expect({"02:00:00:00:00:01"})
    listened.guest.says.put_nowait(GuestEvent(change))
    await asyncio.sleep(600)
    assert listened.agent.asked == asked
    await listened.session.close()


async def test_the_end_of_a_connection_is_a_reason_to_look() -> None:
    listened = Listened()
    listened.guest.says.put_nowait(None)
    assert await listened.looks.get() is None
    await listened.session.close()


async def test_a_card_is_looked_at_when_no_agent_speaks_for_it() -> None:
    listened = Listened()
    listened.session.plugged["blue"] = Plugged(Context())
    assert listened.session.unconfirmed() == {"blue"}
    listened.session.agent.ask()
    await listened.looks.get()
    listened.session.plugged["blue"].driven = True
    assert listened.session.unconfirmed() == frozenset()
    await listened.session.close()
    assert (listened.agent.asked, listened.looks.qsize()) == (1, 0)
