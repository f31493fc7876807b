"""Messages that a hostile client of the bus publishes with bytes of its choice: every receiver goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import ConsumerConfig
from structlog.testing import capture_logs

from services.common.bus.envelope import DEAD_REASON, encode_message
from services.common.bus.nats.stored.reader import open_reader
from tests.support.bus.conformance import CONSUMER, Inbox, annotated, consuming
from tests.support.bus.jetstream import QUICK, JetStreamHarness, jetstream
from tests.support.bus.nats import NatsServer
from tests.support.bus.raw import RawClient, raw_client
from tests.support.telemetry.spans import recording_telemetry

SUBJECT = str(annotated().subject).encode()
"""Of an event that the consumer gets."""
GOOD = encode_message(annotated(), role="controller", node="_", start_id="start")


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    async with jetstream(server) as harness:
        yield harness


@pytest.fixture
async def hostile(server: NatsServer) -> AsyncIterator[RawClient]:
    async with raw_client(server.port) as client:
        yield client


def headers(*lines: bytes) -> bytes:
    return b"\r\n".join((b"NATS/1.0", *lines, b"", b""))


@pytest.mark.parametrize(
    ("subject", "block", "reason"),
    [
        (SUBJECT + b"\xff", None, "SubjectMismatch"),
        (SUBJECT + b"\x0b", None, "SubjectMismatch"),
        (SUBJECT + b"\x0c1", None, "SubjectMismatch"),
        (SUBJECT + b"\r1", None, "SubjectMismatch"),
        (SUBJECT + b"\x00", None, "SubjectMismatch"),
        (SUBJECT + b"." + b"\x0b" * 3900, None, "SubjectMismatch"),
        (SUBJECT, b"N", "BadHeaders"),
        (SUBJECT, b"NATS/1.0", "BadHeaders"),
        (SUBJECT, b"NATS/1.0 \xff\xff\xff\r\n\r\n", "BadHeaders"),
        (SUBJECT, b"NATS/1.0 100 \xff\r\na: b\r\n\r\n", "BadHeaders"),
        (SUBJECT, headers(b"\xff: \xff", b"\x00", b": x", b"ce-id: \xff"), "BadHeaders"),
        (SUBJECT, headers(b"Status: 100", b"Description: Idle Heartbeat"), "BadHeaders"),
        (SUBJECT, b"hostile! \xff\xff\xff \xff\r\n\r\n", "BadHeaders"),
    ],
)
async def test_a_message_that_nobody_expects_is_dead_lettered_and_the_next_one_arrives(
    harness: JetStreamHarness, hostile: RawClient, subject: bytes, block: bytes | None, reason: str
) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        connection = bus._session.connection
        await hostile.publish(subject, GOOD.payload, block)
        await bus.publish(annotated(2))
        assert await inbox.wait(1) == [annotated(2)]
        (letter,) = await harness.dead_letters(1)
        assert letter.headers[DEAD_REASON] in (reason, "BadSubject")
        async with asyncio.timeout(60):
            while (await harness.js.consumer_info("HOTPLUG", CONSUMER)).num_ack_pending:
                pass
        assert bus._session.connection is connection


CONTROL = [
    headers(b"Status: 100", b"Description: Idle Heartbeat"),
    headers(b"Status: 100", b"Description: Idle Heartbeat", b"Nats-Last-Consumer: x"),
    headers(b"Status: 100", b"Description: Idle Heartbeat", b"Nats-Consumer-Stalled: hotplug.x.y.z.v"),
    headers(b"Status: 100", b"Description: Idle Heartbeat", b"Nats-Consumer-Stalled: a subject with blanks"),
    headers(b"Status: 100", b"Description: FlowControl Request"),
    headers(b"Status: 404"),
    headers(b"Status: 503"),
    headers(b"Status: 404", b"Nats-Stream: x", b"Nats-Sequence: 99", b"Nats-Num-Pending: 0"),
    headers(b"ce-id: \xff\xe9", b"\xff: x", b" ce-type: a\r\n b"),
    b"NATS/1.0",
    b"N",
    b"NATS/1.0 \xff",
    b"hostile! 404 Message Not Found\r\n\r\n",
    b"hostile! 100 Idle Heartbeat\r\n\r\n",
    b"\xff" * 20,
]


@pytest.mark.parametrize("block", CONTROL)
async def test_headers_of_the_server_s_own_messages_hide_no_dead_letter(
    harness: JetStreamHarness, hostile: RawClient, block: bytes
) -> None:
    await hostile.publish(b"hotplug-dead.failed.n.default.vm", b"", block)
    await hostile.publish(b"hotplug-dead.failed.n.default.\xff\x0b", b"", block)
    await harness.js.publish("hotplug-dead.failed.n.default.last", b"")
    async with open_reader(harness.server.url, {}, log=structlog.get_logger(), settings=QUICK) as reader:
        found = [letter async for letter in reader.list_dead_letters()]
        assert [letter.sequence for letter in found] == [1, 2, 3]
        assert all(msgspec.json.encode(letter.document()) for letter in found)
        letter = await reader.get_dead_letter(1)
        assert letter is not None
        assert msgspec.json.encode(letter.document())
    # What the header names gets nothing from the reader.
    assert (await harness.js.stream_info("HOTPLUG")).state.messages == 0


@pytest.mark.parametrize("block", CONTROL)
async def test_headers_of_the_server_s_own_messages_hide_no_event(
    harness: JetStreamHarness, hostile: RawClient, block: bytes
) -> None:
    async with open_reader(harness.server.url, {}, log=structlog.get_logger(), settings=QUICK) as reader:
        subscribed = asyncio.Event()
        following = reader.follow_messages("hotplug.*.*.default.vm", 0, subscribed.set)
        async with asyncio.timeout(60), contextlib.aclosing(following):
            first = asyncio.ensure_future(anext(following))
            await subscribed.wait()
            await hostile.publish(b"hotplug.failed.n.default.vm", b"", block)
            await harness.js.publish("hotplug.failed.n.default.vm", b"last")
            assert (await first).sequence == 1
            assert (await anext(following)).message.payload == b"last"


async def test_a_message_that_nobody_acks_is_given_up_counted_and_logged(harness: JetStreamHarness) -> None:
    telemetry, _ = recording_telemetry()
    with capture_logs() as lines:
        bus = await harness.bus("controller", "_", telemetry)
        limits = ConsumerConfig(name="networks_0123", ack_wait=0.1, max_deliver=2, filter_subject="hotplug.>")
        await harness.js.add_consumer("HOTPLUG", limits)
        await bus.publish(annotated())
        subscription = await harness.js.pull_subscribe_bind("networks_0123", "HOTPLUG")
        for number in (1, 2):
            (msg,) = await subscription.fetch(1, timeout=60)
            assert msg.metadata.num_delivered == number
        async with asyncio.timeout(60):
            while b'hotnic_bus_undelivered_total{consumer="networks"} 1.0' not in telemetry.metrics_text():
                with contextlib.suppress(NatsTimeout):
                    await subscription.fetch(1, timeout=0.1)
    (line,) = (line for line in lines if line["event"] == "message not delivered")
    assert (line["log_level"], line["consumer"], line["sequence"]) == ("warning", "networks_0123", 1)
    # A message behind it is delivered.
    await bus.publish(annotated(2))
    assert [msg.metadata.sequence.stream for msg in await subscription.fetch(1, timeout=60)] == [2]


async def test_a_header_of_one_byte_ends_no_server(harness: JetStreamHarness, hostile: RawClient) -> None:
    """nats-server 2.15.1 panics when a stream with notices (republish) gets one, so only the bucket gives notices."""
    for subject in (b"hotplug.failed.n.default.vm", b"hotplug-dead.failed.n.default.vm"):
        for block in (b"", b"N", b"NA"):
            await hostile.publish(subject, b"", block)
    assert (await harness.js.stream_info("HOTPLUG")).state.messages == 3
    assert (await harness.js.stream_info("HOTPLUG")).config.republish is None
