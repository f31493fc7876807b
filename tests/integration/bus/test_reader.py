"""Reading streams from a real server: complete, in order, with few requests, and in bounded time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import structlog

from services.common.bus.envelope import MSG_ID, BusMessage, encode_message
from services.common.bus.nats.reader import StreamReader, open_reader
from services.common.bus.protocol import BusUnavailable
from tests.support.bus.conformance import annotated
from tests.support.bus.jetstream import QUICK, JetStreamHarness, jetstream
from tests.support.bus.nats import NatsServer

GOOD = encode_message(annotated(), role="controller", node="_", start_id="start")
OTHER_SUBJECT = f"{GOOD.subject}-2"
COUNT = 1000


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    """A server with the streams that a role creates."""
    async with jetstream(server) as jetstream_harness:
        await jetstream_harness.bus("controller", "_")
        yield jetstream_harness


@pytest.fixture
async def reader(harness: JetStreamHarness) -> AsyncIterator[StreamReader]:
    async with open_reader(harness.server.url, {}, log=structlog.get_logger(), settings=QUICK) as found:
        yield found


async def publish(harness: JetStreamHarness, count: int, first: int = 0) -> None:
    """Publish this many messages for one VM, each followed by a message for another VM."""
    for number in range(first, first + count):
        await harness.publish_raw(BusMessage(GOOD.subject, b"%d" % number, {MSG_ID: f"mine {number}"}))
        await harness.publish_raw(BusMessage(OTHER_SUBJECT, b"other", {MSG_ID: f"other {number}"}))


async def payloads(reader: StreamReader) -> list[bytes]:
    return [stored.message.payload async for stored in reader.list_messages(GOOD.subject)]


async def test_many_messages_are_read_in_order_with_few_requests(
    harness: JetStreamHarness, reader: StreamReader
) -> None:
    await publish(harness, COUNT)
    before = reader._connection.client.stats["out_msgs"]
    found = [stored async for stored in reader.list_messages(GOOD.subject)]
    assert [stored.message.payload for stored in found] == [b"%d" % number for number in range(COUNT)]
    assert [stored.sequence for stored in found] == list(range(1, 2 * COUNT, 2))
    assert (found[7].message.subject, found[7].message.headers) == (GOOD.subject, {MSG_ID: "mine 7"})
    assert reader._connection.client.stats["out_msgs"] - before < COUNT / 10


async def test_listing_ends_with_the_messages_stored_at_its_start(
    harness: JetStreamHarness, reader: StreamReader
) -> None:
    await publish(harness, 3)
    history = reader.list_messages(GOOD.subject)
    found = [await anext(history)]
    await publish(harness, 2, first=3)
    found += [stored async for stored in history]
    assert [stored.message.payload for stored in found] == [b"0", b"1", b"2"]
    history = reader.follow_messages(GOOD.subject, found[-1].sequence)
    async with asyncio.timeout(60), contextlib.aclosing(history):
        assert [(await anext(history)).message.payload for _ in range(2)] == [b"3", b"4"]


async def test_unknown_subject_or_stream_has_no_messages(harness: JetStreamHarness, reader: StreamReader) -> None:
    assert await payloads(reader) == []
    await publish(harness, 1)
    assert [stored async for stored in reader.list_messages("hotplug.*.*.unknown.*")] == []
    await harness.js.delete_stream(QUICK.stream)
    assert await payloads(reader) == []


async def test_purged_stream_is_read_from_its_first_message(harness: JetStreamHarness, reader: StreamReader) -> None:
    await publish(harness, 5)
    await harness.js.purge_stream(QUICK.stream, seq=5)
    assert await payloads(reader) == [b"2", b"3", b"4"]


@pytest.mark.parametrize("failure", ["hangs", "ends"])
async def test_loss_of_the_server_raises_bus_unavailable(
    harness: JetStreamHarness, reader: StreamReader, failure: str
) -> None:
    await publish(harness, 2)
    assert len(await payloads(reader)) == 2
    if failure == "hangs":
        harness.server.freeze()
    else:
        await harness.server.stop()
    try:
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(payloads(reader), 20)
    finally:
        if failure == "hangs":
            harness.server.thaw()
