"""A stream as a person's tool reads it, on a real server: all of it, in order, in few questions, and not for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import structlog

from services.common.bus.envelope import MSG_ID, BusMessage, outgoing
from services.common.bus.protocol import BusUnavailable
from services.common.bus.reader import Reader, reading
from tests.support.bus_conformance import annotated
from tests.support.jetstream import QUICK, JetStreamHarness, jetstream
from tests.support.nats import NatsServer

GOOD = outgoing(annotated(), role="controller", node="_", start_id="start")
OTHERS = f"{GOOD.subject}-2"
MANY = 1000


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    """A server with the streams that a role makes."""
    async with jetstream(server) as made:
        await made.bus("controller", "_")
        yield made


@pytest.fixture
async def reader(harness: JetStreamHarness) -> AsyncIterator[Reader]:
    async with reading(harness.server.url, {}, log=structlog.get_logger(), settings=QUICK) as found:
        yield found


async def publish(harness: JetStreamHarness, count: int, first: int = 0) -> None:
    """That many of one VM's, each followed by one of another VM's."""
    for number in range(first, first + count):
        await harness.raw(BusMessage(GOOD.subject, b"%d" % number, {MSG_ID: f"mine {number}"}))
        await harness.raw(BusMessage(OTHERS, b"not mine", {MSG_ID: f"other {number}"}))


async def payloads(reader: Reader) -> list[bytes]:
    return [stored.message.payload async for stored in reader.events(GOOD.subject)]


async def test_a_long_history_is_read_in_order_and_in_few_questions(harness: JetStreamHarness, reader: Reader) -> None:
    await publish(harness, MANY)
    before = reader._session.client.stats["out_msgs"]
    found = [stored async for stored in reader.events(GOOD.subject)]
    assert [stored.message.payload for stored in found] == [b"%d" % number for number in range(MANY)]
    assert [stored.sequence for stored in found] == list(range(1, 2 * MANY, 2))
    assert (found[7].message.subject, found[7].message.headers) == (GOOD.subject, {MSG_ID: "mine 7"})
    assert reader._session.client.stats["out_msgs"] - before < MANY / 10


async def test_the_history_ends_where_it_ended_when_it_was_asked_for(harness: JetStreamHarness, reader: Reader) -> None:
    await publish(harness, 3)
    history = reader.events(GOOD.subject)
    found = [await anext(history)]
    await publish(harness, 2, first=3)
    found += [stored async for stored in history]
    assert [stored.message.payload for stored in found] == [b"0", b"1", b"2"]
    history = reader.follow(GOOD.subject, found[-1].sequence)
    async with asyncio.timeout(10), contextlib.aclosing(history):
        assert [(await anext(history)).message.payload for _ in range(2)] == [b"3", b"4"]


async def test_what_is_not_there_is_an_empty_history(harness: JetStreamHarness, reader: Reader) -> None:
    assert await payloads(reader) == []
    await publish(harness, 1)
    assert [stored async for stored in reader.events("hotplug.*.*.nobody.*")] == []
    await harness.js.delete_stream(QUICK.stream)
    assert await payloads(reader) == []


async def test_a_history_that_was_cut_off_in_the_middle_is_read_from_what_is_left(
    harness: JetStreamHarness, reader: Reader
) -> None:
    await publish(harness, 5)
    await harness.js.purge_stream(QUICK.stream, seq=5)
    assert await payloads(reader) == [b"2", b"3", b"4"]


@pytest.mark.parametrize("way", ["hangs", "ends"])
async def test_a_server_that_goes_away_while_it_is_read_is_said(
    harness: JetStreamHarness, reader: Reader, way: str
) -> None:
    await publish(harness, 2)
    assert len(await payloads(reader)) == 2
    if way == "hangs":
        harness.server.freeze()
    else:
        await harness.server.stop()
    try:
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(payloads(reader), 20)
    finally:
        if way == "hangs":
            harness.server.thaw()
