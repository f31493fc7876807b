"""Reading a stream against a scripted server, in virtual time: replicas that are behind, and refusals."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from schemas.inputs import REJECTED, Edge, RejectReason
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.stored.messages import BATCH, SECOND_LOOK, follow_stored, read_stored
from services.common.bus.settings import BusSettings

SETTINGS = BusSettings(read_interval=60.0, api_timeout=5.0)
SUBJECTS = "hotplug.>"
NOTICES = "hotnic.stored.hotplug.>"


class Server:
    """The part of nats-py's client that reading uses.

    :ivar stored: the sequences that it has, all on one subject.
    :ivar requests: the sequences from which it was asked to read.
    :ivar refusal: the status with which it answers instead.
    :ivar single: whether it answers as one before 2.11, with one message.
    :ivar silent: whether it does not answer.
    """

    def __init__(self, *stored: int) -> None:
        self.stored = list(stored)
        self.requests: list[int] = []
        self.refusal = ""
        self.single = self.silent = self.is_closed = self.is_missing = False
        self.asked = asyncio.Event()
        self._subscribers: dict[str, Callable[[Msg], Awaitable[None]]] = {}
        self._inboxes = 0

    def connection(self) -> BusConnection:
        return BusConnection(cast("Any", self), cast("Any", self), asyncio.Event(), 1.0)

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self._inboxes}"

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]], **_limits: int) -> Any:
        assert subject not in self._subscribers
        self._subscribers[subject] = cb

        async def unsubscribe() -> None:
            del self._subscribers[subject]

        return SimpleNamespace(unsubscribe=unsubscribe)

    @property
    def subscriptions(self) -> list[str]:
        return list(self._subscribers)

    async def stream_info(self, _stream: str) -> Any:
        if self.is_missing:
            raise NotFoundError
        return SimpleNamespace(state=SimpleNamespace(last_seq=max(self.stored, default=0)))

    async def publish(self, subject: str, payload: bytes, reply: str) -> None:
        assert subject == "$JS.API.DIRECT.GET.HOTPLUG"
        body = json.loads(payload)
        assert body == {"seq": body["seq"], "batch": BATCH, "next_by_subj": SUBJECTS}
        self.requests.append(body["seq"])
        self.asked.set()
        if self.silent:
            return
        found = [sequence for sequence in self.stored if sequence >= body["seq"]][: 1 if self.single else BATCH]
        left = sum(sequence > (found[-1] if found else 0) for sequence in self.stored)
        for sequence in () if self.refusal else found:
            headers = {"Nats-Stream": "HOTPLUG", "Nats-Subject": "hotplug.x", "Nats-Sequence": str(sequence), "A": "b"}
            await self._send(reply, headers if self.single else headers | {"Nats-Num-Pending": "1"}, b"payload")
        if self.refusal or not found:
            await self._send(reply, {"Status": self.refusal or "404", "Description": "why"})
        elif not self.single:
            await self._send(reply, {"Status": "204", "Description": "EOB", "Nats-Num-Pending": str(left)})

    async def notice(self, sequence: int | str, subject: str = "hotplug.x") -> None:
        """Give notice of a message."""
        headers = {"Nats-Sequence": str(sequence)}
        notice = Msg(_client=cast("Any", self), subject=f"hotnic.stored.{subject}", headers=headers)
        await self._subscribers[NOTICES](notice)

    async def reads(self, count: int) -> None:
        """Wait until this many requests have arrived."""
        while len(self.requests) < count:
            self.asked.clear()
            await self.asked.wait()

    async def _send(self, subject: str, headers: dict[str, str], data: bytes = b"") -> None:
        await self._subscribers[subject](Msg(_client=cast("Any", self), subject=subject, headers=headers, data=data))


async def sequences(server: Server, after: int = 0) -> list[int]:
    return [one.sequence async for one in read_stored(server.connection(), "HOTPLUG", SUBJECTS, SETTINGS, after=after)]


@contextlib.asynccontextmanager
async def following(server: Server) -> AsyncIterator[list[int | None]]:
    """Follow in this block; the list gets the sequences, and ``None`` after the stored ones."""
    seen: list[int | None] = []

    async def follow() -> None:
        stored = follow_stored(server.connection(), "HOTPLUG", SUBJECTS, SETTINGS, noticed=SUBJECTS)
        async with contextlib.aclosing(stored) as messages:
            async for one in messages:
                sequence = one.sequence if one is not None else None
                seen.append(sequence)

    task = asyncio.create_task(follow())
    try:
        yield seen
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
    # That of the notices, which is the connection's.
    assert server.subscriptions == [NOTICES]


async def test_one_request_reads_many_messages() -> None:
    server = Server(*range(1, 2 * BATCH + 11))
    assert await sequences(server) == server.stored
    assert server.requests == [1, BATCH + 1, 2 * BATCH + 1]
    assert await sequences(server, after=2 * BATCH + 10) == []
    assert server.subscriptions == []


async def test_a_server_that_sends_one_message_a_request_is_read_to_its_end() -> None:
    server = Server(3, 5, 9)
    server.single = True
    assert await sequences(server) == [3, 5, 9]
    assert server.requests == [1, 4, 6, 10]


async def test_the_headers_of_the_server_are_no_part_of_the_message() -> None:
    (found,) = [one async for one in read_stored(Server(7).connection(), "HOTPLUG", SUBJECTS, SETTINGS)]
    assert (found.sequence, found.message.subject, found.message.headers) == (7, "hotplug.x", {"A": "b"})


@pytest.mark.parametrize(("status", "text"), [("503", "does not exist"), ("408", "408 why"), ("413", "413 why")])
async def test_a_refused_request_raises(status: str, text: str) -> None:
    server = Server(1)
    server.refusal = status
    with pytest.raises(NatsError, match=text):
        await sequences(server)


@pytest.mark.looptime
async def test_a_server_that_does_not_answer_raises_in_time() -> None:
    server, loop = Server(1), asyncio.get_running_loop()
    server.silent = True
    started = loop.time()
    with pytest.raises(TimeoutError, match="stopped sending"):
        await sequences(server)
    assert loop.time() - started == pytest.approx(SETTINGS.api_timeout)


async def test_a_lost_connection_ends_a_read() -> None:
    server = Server(1)
    server.silent = True
    connection = server.connection()
    reading = asyncio.create_task(anext(read_stored(connection, "HOTPLUG", SUBJECTS, SETTINGS)))
    await server.reads(1)
    server.is_closed = True
    connection.lost.set()
    with pytest.raises(ConnectionClosedError):
        await reading


@pytest.mark.looptime
async def test_a_notice_has_the_stream_read_after_the_last_message() -> None:
    server = Server(1, 2)
    async with following(server) as seen:
        await server.reads(1)
        server.stored += [3, 4]
        # One notice for both: the other one is lost.
        await server.notice(3)
        await server.reads(2)
        await asyncio.sleep(0.001)
        assert seen == [1, 2, None, 3, 4]
        assert server.requests == [1, 3]
        # A late one costs nothing.
        await server.notice(4)
        await asyncio.sleep(10)
        assert (seen, server.requests) == ([1, 2, None, 3, 4], [1, 3])


@pytest.mark.looptime
async def test_a_replica_that_is_behind_the_notice_is_read_once_more() -> None:
    server, loop = Server(1), asyncio.get_running_loop()
    async with following(server) as seen:
        await server.reads(1)
        await asyncio.sleep(1)
        started = loop.time()
        await server.notice(2)
        await server.reads(2)
        server.stored.append(2)
        await server.reads(3)
        await asyncio.sleep(0.001)
        assert loop.time() - started == pytest.approx(SECOND_LOOK, abs=0.01)
        assert seen == [1, None, 2]
        # The message of a notice may have been removed: it is looked for once.
        await server.notice(3)
        await asyncio.sleep(SETTINGS.read_interval / 2)
        assert server.requests == [1, 2, 2, 3, 3]


@pytest.mark.looptime
async def test_notices_of_nothing_cost_few_reads() -> None:
    """Without identities anybody can send them."""
    server = Server(1)
    async with following(server) as seen:
        await server.reads(1)
        for number in range(1000):
            await server.notice(10**17 + number % 3)
            await asyncio.sleep(0.01)
        assert len(server.requests) <= 2 + 10 / SECOND_LOOK
        server.stored.append(2)
        await server.notice(2)
        await asyncio.sleep(2 * SECOND_LOOK)
        assert seen == [1, None, 2]


@pytest.mark.looptime
@pytest.mark.parametrize("sequence", ["x", "", "-1", "1.5", "٣", "9" * 5000, "99999999999999999999", " 2"])
async def test_a_malformed_notice_costs_a_count(sequence: str) -> None:
    server = Server(1)
    async with following(server):
        await server.reads(1)
        before = REJECTED.counts().get((Edge.BUS, RejectReason.MALFORMED), 0)
        await server.notice(sequence)
        assert REJECTED.counts()[Edge.BUS, RejectReason.MALFORMED] == before + 1
        await asyncio.sleep(SETTINGS.read_interval / 2)
        assert server.requests == [1]


async def test_readers_of_a_connection_share_a_subscription() -> None:
    server = Server()
    notices = server.connection().notices
    async with (
        notices.following("hotplug.a.>", 0, noticed=SUBJECTS) as one,
        notices.following("hotplug.a.>", 5, noticed=SUBJECTS) as two,
        notices.following("hotplug.a.b", 0, noticed=SUBJECTS) as exact,
        notices.following("hotplug.b.>", 0, noticed=SUBJECTS) as other,
        notices.following("hotplug.>", 0, noticed="") as everything,
    ):
        assert server.subscriptions == [NOTICES]
        for subject, sequence, expected in (
            ("hotplug.a.b", 5, [5, 0, 5, 0, 5]),
            ("hotplug.a.b.c", 6, [6, 6, 6, 0, 6]),
            ("hotplug.aa.b", 7, [0, 0, 0, 0, 7]),
            ("hotplug" + ".x" * 1000, 8, [0, 0, 0, 0, 8]),
        ):
            await server.notice(sequence, subject)
            assert [follower.take() for follower in (one, two, exact, other, everything)] == expected
    await server.notice(9, "hotplug.a.b")
    assert one.take() == 0


@pytest.mark.looptime
async def test_without_any_notice_the_stream_is_read_at_intervals() -> None:
    server = Server()
    async with following(server) as seen:
        await asyncio.sleep(1)
        server.stored.append(1)
        await asyncio.sleep(SETTINGS.read_interval)
        assert seen == [None, 1]
        # Created again, it counts from 1.
        server.stored = [5]
        await asyncio.sleep(SETTINGS.read_interval)
        server.stored = [2]
        await asyncio.sleep(2 * SETTINGS.read_interval)
        assert seen == [None, 1, 5, 2]


@pytest.mark.looptime
async def test_following_a_stream_that_was_deleted_raises() -> None:
    server = Server(1)
    followed = follow_stored(server.connection(), "HOTPLUG", SUBJECTS, SETTINGS, noticed=SUBJECTS)
    async with contextlib.aclosing(followed):
        assert (await anext(followed), await anext(followed))[1] is None
        server.is_missing = True
        with pytest.raises(NatsError, match="stream HOTPLUG does not exist"):
            await anext(followed)
