"""The pull loop against a scripted server, in virtual time."""

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
from structlog.testing import capture_logs

from services.common.bus.envelope import BusMessage
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.creation import ensure_consumer
from services.common.bus.nats.consumers.pull import ConsumerBehind, ConsumerLost, PullConsumer
from services.common.bus.settings import BusSettings

SETTINGS = BusSettings(pull_batch=2, pull_heartbeat=5.0)


@dataclass
class Server:
    """The part of nats-py's client that a pull consumer uses, scripted by the test."""

    existing: ConsumerConfig | None = None
    created: list[ConsumerConfig] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    pulls: list[str] = field(default_factory=list)
    acked: list[str] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)
    is_closed: bool = False
    unsubscribed: bool = False
    pulled: asyncio.Event = field(default_factory=asyncio.Event)
    _deliver: Callable[[Msg], Awaitable[None]] | None = None

    def connection(self) -> BusConnection:
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
        self.created.append(config)
        return SimpleNamespace(created=datetime(2026, 11, 23, tzinfo=UTC))

    async def subscribe(self, _subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Any:
        self._deliver = cb

        async def unsubscribe() -> None:
            self.unsubscribed = True

        return SimpleNamespace(unsubscribe=unsubscribe)

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        if subject.startswith("$JS.ACK"):
            (self.terminated if payload == b"+TERM" else self.acked).append(subject)
            return
        assert subject == "$JS.API.CONSUMER.MSG.NEXT.HOTPLUG.c"
        assert json.loads(payload) == {"batch": 2, "expires": 30_000_000_000, "idle_heartbeat": 5_000_000_000}
        self.pulls.append(reply)
        self.pulled.set()

    async def pull(self, count: int) -> None:
        """Wait until this many pull requests have arrived."""
        while len(self.pulls) < count:
            self.pulled.clear()
            await self.pulled.wait()

    async def message(self, sequence: int, waiting: int = 0) -> None:
        """Deliver a message behind which others wait."""
        reply = f"$JS.ACK.HOTPLUG.c.1.{sequence}.{sequence}.1795428000000000000.{waiting}"
        await self._send(Msg(_client=cast("Any", self), subject="hotplug.a.b.c.d", reply=reply, data=b"x"))

    async def status(self, code: str, description: str = "", *, pull: int = -1) -> None:
        """Send a status for a pull request, by default the latest."""
        headers = {"Status": code, "Description": description}
        await self._send(Msg(_client=cast("Any", self), subject=self.pulls[pull], headers=headers))

    async def _send(self, msg: Msg) -> None:
        assert self._deliver is not None
        await self._deliver(msg)


def pull_consumer(
    received: list[int] | None = None, filters: tuple[str, ...] = ("hotplug.>",), *, discards: bool = False
) -> PullConsumer:
    def on_message(_message: BusMessage, sequence: int, _deliveries: int) -> None:
        if received is not None:
            received.append(sequence)

    async def provide(connection: BusConnection, desired: ConsumerConfig) -> datetime | None:
        return await ensure_consumer(connection.js, SETTINGS.stream, desired)

    async def discard(connection: BusConnection, name: str) -> None:
        await connection.js.delete_consumer(SETTINGS.stream, name)

    return PullConsumer(
        "c",
        filters,
        settings=SETTINGS,
        log=structlog.get_logger(),
        on_message=on_message,
        provide=provide,
        discard=discard if discards else None,
    )


@contextlib.asynccontextmanager
async def running(server: Server, consumer: PullConsumer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(consumer.run(server.connection()))
    try:
        await server.pull(1)
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConsumerLost):
            await task
        assert server.unsubscribed


async def test_full_batch_is_followed_by_the_next_pull_request() -> None:
    server, received = Server(), list[int]()
    async with running(server, pull_consumer(received)):
        await server.message(1)
        assert len(server.pulls) == 1
        await server.message(2)
        await server.pull(2)
    assert received == [1, 2]
    assert len(server.acked) == 2


async def test_a_consumer_for_which_too_many_messages_wait_is_replaced() -> None:
    server, received = Server(), list[int]()
    consumer = pull_consumer(received, discards=True)
    async with running(server, consumer) as task:
        await server.message(1, SETTINGS.max_behind)
        assert server.deleted == []
        await server.message(2, SETTINGS.max_behind + 1)
        with pytest.raises(ConsumerBehind) as behind:
            await task
    assert (behind.value.waiting, received, server.deleted) == (SETTINGS.max_behind + 1, [1, 2], ["c"])
    async with running(server, consumer):
        assert server.created[-1].deliver_policy is DeliverPolicy.NEW
        await server.message(3)
    assert received == [1, 2, 3]


async def test_a_role_that_may_delete_no_consumer_lets_messages_wait() -> None:
    server, received = Server(), list[int]()
    async with running(server, pull_consumer(received)):
        await server.message(1, SETTINGS.max_behind + 1)
        await server.message(2)
        await server.pull(2)
    assert (received, server.deleted) == ([1, 2], [])


@pytest.mark.parametrize(("code", "description"), [("408", "Request Timeout"), ("404", ""), ("409", "Server Shutdown")])
async def test_pull_request_that_ended_is_followed_by_the_next(code: str, description: str) -> None:
    server = Server()
    async with running(server, pull_consumer()):
        await server.status(code, description)
        await server.pull(2)
        assert server.pulls == ["_INBOX.x.1", "_INBOX.x.2"]
        # A late status of the first pull request does not end the second.
        await server.status(code, description, pull=0)
        await server.message(1)
        await server.message(2)
        await server.pull(3)
    assert len(server.pulls) == 3


@pytest.mark.parametrize(("code", "description"), [("409", "Consumer Deleted"), ("503", "")])
async def test_deleted_consumer_ends_the_loop(code: str, description: str) -> None:
    server = Server()
    async with running(server, pull_consumer()) as task:
        await server.status(code, description)
        with pytest.raises(ConsumerLost):
            await task


@pytest.mark.looptime
async def test_two_missing_heartbeats_end_the_loop() -> None:
    server, loop = Server(), asyncio.get_running_loop()
    async with running(server, pull_consumer()) as task:
        started = loop.time()
        for _ in range(3):
            await asyncio.sleep(5)
            await server.status("100", "Idle Heartbeat")
            assert not task.done()
        with pytest.raises(ConsumerLost, match="heartbeats of the consumer are missing"):
            await task
        assert 10 <= loop.time() - started - 15 <= 11


async def test_lost_connection_ends_the_loop() -> None:
    server = Server()
    connection = server.connection()
    task = asyncio.create_task(pull_consumer().run(connection))
    await server.pull(1)
    server.is_closed = server.unsubscribed = True
    connection.lost.set()
    with pytest.raises(ConsumerLost, match="connection"):
        await task


async def test_consumer_with_other_filters_is_replaced() -> None:
    server = Server(existing=ConsumerConfig(name="c", filter_subject="hotplug.old.>"))
    async with running(server, pull_consumer(filters=("hotplug.a.>", "hotplug.b.>"))):
        pass
    assert server.deleted == ["c"]
    assert server.created[0].filter_subjects == ["hotplug.a.>", "hotplug.b.>"]


async def test_consumer_with_the_same_filters_is_reused() -> None:
    server = Server(existing=ConsumerConfig(name="c", filter_subject="hotplug.>", max_deliver=SETTINGS.max_deliver))
    async with running(server, pull_consumer()):
        pass
    assert server.created == []


async def test_consumer_that_would_deliver_a_message_for_ever_is_replaced() -> None:
    server = Server(existing=ConsumerConfig(name="c", filter_subject="hotplug.>", max_deliver=-1))
    async with running(server, pull_consumer()):
        pass
    assert server.deleted == ["c"]
    assert server.created[0].max_deliver == SETTINGS.max_deliver


async def test_message_that_raises_is_not_delivered_again_and_the_next_one_is_received() -> None:
    server, received = Server(), list[int]()

    def on_message(_message: BusMessage, sequence: int, _deliveries: int) -> None:
        if sequence == 1:
            raise KeyError("bug")
        received.append(sequence)

    consumer = pull_consumer()
    consumer._on_message = on_message
    async with running(server, consumer):
        with capture_logs() as lines:
            await server.message(1)
        await server.message(2)
        await server.pull(2)
    assert (received, len(server.terminated), len(server.acked)) == ([2], 1, 1)
    assert [(line["event"], line["sequence"], line["exc_info"]) for line in lines] == [("message not handled", 1, True)]


async def test_first_consumer_starts_with_new_messages_and_a_later_one_after_the_last_message() -> None:
    server, consumer = Server(), pull_consumer()
    async with running(server, consumer):
        await server.message(1)
    assert server.created[0].deliver_policy is DeliverPolicy.NEW
    next_server = Server()
    async with running(next_server, consumer):
        pass
    config = next_server.created[0]
    assert config.deliver_policy is DeliverPolicy.BY_START_TIME
    assert config.opt_start_time == datetime.fromtimestamp(1795428000.000001, UTC)
