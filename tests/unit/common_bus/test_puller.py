"""The pull loop against a server that says what the test wants, in virtual time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from services.common.bus.connection import BusConnection
from services.common.bus.consumer import ConsumerLost, PullConsumer
from services.common.bus.envelope import BusMessage
from services.common.bus.settings import BusSettings

SETTINGS = BusSettings(pull_batch=2, pull_heartbeat=5.0)


@dataclass
class Server:
    """As much of nats-py's client as a puller touches."""

    existing: ConsumerConfig | None = None
    made: list[ConsumerConfig] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    pulls: list[str] = field(default_factory=list)
    acked: list[str] = field(default_factory=list)
    is_closed: bool = False
    unsubscribed: bool = False
    pulled: asyncio.Event = field(default_factory=asyncio.Event)
    _deliver: Callable[[Msg], Awaitable[None]] | None = None

    def session(self) -> BusConnection:
        return BusConnection(cast("Any", self), cast("Any", self), asyncio.Event(), 1.0)

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def consumer_info(self, _stream: str, _name: str) -> Any:
        if self.existing is None:
            raise NotFoundError
        return SimpleNamespace(config=self.existing)

    async def delete_consumer(self, _stream: str, name: str) -> None:
        self.deleted.append(name)

    async def add_consumer(self, _stream: str, config: ConsumerConfig) -> Any:
        self.made.append(config)
        return SimpleNamespace(created=datetime(2026, 11, 23, tzinfo=UTC))

    async def subscribe(self, _subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Any:
        self._deliver = cb

        async def unsubscribe() -> None:
            self.unsubscribed = True

        return SimpleNamespace(unsubscribe=unsubscribe)

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        if subject.startswith("$JS.ACK"):
            self.acked.append(subject)
            return
        assert subject == "$JS.API.CONSUMER.MSG.NEXT.HOTPLUG.c"
        assert json.loads(payload) == {"batch": 2, "expires": 30_000_000_000, "idle_heartbeat": 5_000_000_000}
        self.pulls.append(reply)
        self.pulled.set()

    async def pull(self, count: int) -> None:
        """Wait for the so many-th pull."""
        while len(self.pulls) < count:
            self.pulled.clear()
            await self.pulled.wait()

    async def message(self, sequence: int) -> None:
        """Deliver a message."""
        reply = f"$JS.ACK.HOTPLUG.c.1.{sequence}.{sequence}.1795428000000000000.0"
        await self._send(Msg(_client=cast("Any", self), subject="hotplug.a.b.c.d", reply=reply, data=b"x"))

    async def status(self, code: str, why: str = "", *, pull: int = -1) -> None:
        """Say something about a pull, the latest unless told."""
        headers = {"Status": code, "Description": why}
        await self._send(Msg(_client=cast("Any", self), subject=self.pulls[pull], headers=headers))

    async def _send(self, msg: Msg) -> None:
        assert self._deliver is not None
        await self._deliver(msg)


def puller(got: list[int] | None = None, filters: tuple[str, ...] = ("hotplug.>",)) -> PullConsumer:
    def on_message(_message: BusMessage, sequence: int, _deliveries: int) -> None:
        if got is not None:
            got.append(sequence)

    return PullConsumer("c", filters, settings=SETTINGS, log=structlog.get_logger(), on_message=on_message)


@contextlib.asynccontextmanager
async def running(server: Server, one: PullConsumer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run(server.session()))
    try:
        await server.pull(1)
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConsumerLost):
            await task
        assert server.unsubscribed


async def test_a_full_batch_is_followed_by_the_next_pull() -> None:
    server, got = Server(), list[int]()
    async with running(server, puller(got)):
        await server.message(1)
        assert len(server.pulls) == 1
        await server.message(2)
        await server.pull(2)
    assert got == [1, 2]
    assert len(server.acked) == 2


@pytest.mark.parametrize(("code", "why"), [("408", "Request Timeout"), ("404", ""), ("409", "Server Shutdown")])
async def test_a_pull_that_ended_is_followed_by_the_next(code: str, why: str) -> None:
    server = Server()
    async with running(server, puller()):
        await server.status(code, why)
        await server.pull(2)
        assert server.pulls == ["_INBOX.x.1", "_INBOX.x.2"]
        # The end of the first pull, told late, does not end the second.
        await server.status(code, why, pull=0)
        await server.message(1)
        await server.message(2)
        await server.pull(3)
    assert len(server.pulls) == 3


@pytest.mark.parametrize(("code", "why"), [("409", "Consumer Deleted"), ("503", "")])
async def test_a_consumer_that_is_gone_ends_the_loop(code: str, why: str) -> None:
    server = Server()
    async with running(server, puller()) as task:
        await server.status(code, why)
        with pytest.raises(ConsumerLost):
            await task


@pytest.mark.looptime
async def test_two_missing_heartbeats_end_the_loop() -> None:
    server, loop = Server(), asyncio.get_running_loop()
    async with running(server, puller()) as task:
        started = loop.time()
        for _ in range(3):
            await asyncio.sleep(5)
            await server.status("100", "Idle Heartbeat")
            assert not task.done()
        with pytest.raises(ConsumerLost, match="no sign"):
            await task
        assert 10 <= loop.time() - started - 15 <= 11


async def test_a_lost_session_ends_the_loop() -> None:
    server = Server()
    session = server.session()
    task = asyncio.create_task(puller().run(session))
    await server.pull(1)
    server.is_closed = server.unsubscribed = True
    session.lost.set()
    with pytest.raises(ConsumerLost, match="connection"):
        await task


async def test_a_consumer_with_other_filters_is_replaced() -> None:
    server = Server(existing=ConsumerConfig(name="c", filter_subject="hotplug.old.>"))
    async with running(server, puller(filters=("hotplug.a.>", "hotplug.b.>"))):
        pass
    assert server.deleted == ["c"]
    assert server.made[0].filter_subjects == ["hotplug.a.>", "hotplug.b.>"]


async def test_a_consumer_that_fits_is_kept() -> None:
    server = Server(existing=ConsumerConfig(name="c", filter_subject="hotplug.>"))
    async with running(server, puller()):
        pass
    assert server.made == []


async def test_the_first_consumer_starts_new_and_a_later_one_where_the_last_message_was() -> None:
    server, one = Server(), puller()
    async with running(server, one):
        await server.message(1)
    assert server.made[0].deliver_policy is DeliverPolicy.NEW
    again = Server()
    async with running(again, one):
        pass
    config = again.made[0]
    assert config.deliver_policy is DeliverPolicy.BY_START_TIME
    assert config.opt_start_time == datetime.fromtimestamp(1795428000.000001, UTC)
