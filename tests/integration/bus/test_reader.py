"""Reading streams from a real server: complete, in order, with few requests, and in bounded time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog

from services.common.bus.envelope import MSG_ID, BusMessage, encode_message
from services.common.bus.nats.stored.reader import StreamReader, open_reader
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


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Sequence": "900", "Nats-Subject": "hotplug.x", "Nats-Stream": "OTHER", "Nats-Num-Pending": "0"},
        {"Nats-Sequence": "x", "Nats-Last-Sequence": "y", "Nats-Time-Stamp": "z"},
        {"nats-sequence": "900", "nats-stream": "OTHER"},
        {"Status": "404", "Description": "Message Not Found"},
        {"Status": "204", "Description": "EOB"},
    ],
)
async def test_headers_of_a_publisher_hide_no_message(
    harness: JetStreamHarness, reader: StreamReader, headers: dict[str, str]
) -> None:
    await publish(harness, 1)
    await harness.publish_raw(BusMessage(GOOD.subject, b"marked", headers))
    await publish(harness, 1, first=1)
    found = [stored async for stored in reader.list_messages(GOOD.subject)]
    assert [(stored.sequence, stored.message.payload) for stored in found] == [(1, b"0"), (3, b"marked"), (4, b"1")]
    assert {stored.message.subject for stored in found} == {GOOD.subject}


async def test_following_gets_each_message_once_and_in_order(harness: JetStreamHarness, reader: StreamReader) -> None:
    await publish(harness, 10)
    subscribed: list[int] = []
    history = reader.follow_messages(GOOD.subject, 7, lambda: subscribed.append(len(subscribed)))
    async with asyncio.timeout(60), contextlib.aclosing(history), asyncio.TaskGroup() as group:
        found = [await anext(history) for _ in range(6)]
        group.create_task(publish(harness, 200, first=10))
        found += [await anext(history) for _ in range(200)]
        group.create_task(publish(harness, 200, first=210))
        found += [await anext(history) for _ in range(200)]
    assert [stored.message.payload for stored in found] == [b"%d" % number for number in range(4, 410)]
    assert subscribed == [0]


async def test_following_a_stream_that_is_created_again_goes_on(harness: JetStreamHarness) -> None:
    """It counts from 1."""
    settings = msgspec.structs.replace(QUICK, follow_interval=0.1)
    async with open_reader(harness.server.url, {}, log=structlog.get_logger(), settings=settings) as reader:
        await publish(harness, 5)
        config = (await harness.js.stream_info(QUICK.stream)).config
        history = reader.follow_messages(GOOD.subject, 0)
        async with asyncio.timeout(60), contextlib.aclosing(history):
            assert [(await anext(history)).message.payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
            await harness.js.delete_stream(QUICK.stream)
            await harness.js.add_stream(config)
            await publish(harness, 1, first=5)
            assert (await anext(history)).message.payload == b"5"


async def test_following_a_deleted_stream_ends(harness: JetStreamHarness) -> None:
    settings = msgspec.structs.replace(QUICK, follow_interval=0.1)
    async with open_reader(harness.server.url, {}, log=structlog.get_logger(), settings=settings) as reader:
        await publish(harness, 1)
        history = reader.follow_messages(GOOD.subject, 0)
        await anext(history)
        await harness.js.delete_stream(QUICK.stream)
        with pytest.raises(BusUnavailable, match="stream HOTPLUG does not exist"):
            await anext(history)


async def test_reading_leaves_no_consumer(harness: JetStreamHarness, reader: StreamReader) -> None:
    await publish(harness, 1)
    assert await payloads(reader) == [b"0"]
    async with contextlib.aclosing(reader.follow_messages(GOOD.subject, 0)) as history:
        await anext(history)
        assert (await harness.js.stream_info(QUICK.stream)).state.consumer_count == 0
