"""The bus over a server that is down, restarted, emptied or tampered with: nothing hangs, events come again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog
from nats.errors import ConnectionClosedError
from nats.js.api import StreamConfig

from schemas.events import Failed
from services.common.bus import spans
from services.common.bus.connection import BusConnection, Endpoint
from services.common.bus.jetstream import JetStreamBus
from services.common.bus.protocol import BusUnavailable
from tests.support.bus_conformance import CONSUMER, Inbox, annotated, consuming, operation
from tests.support.jetstream import QUICK, Buses, JetStreamHarness, jetstream
from tests.support.nats import NatsServer
from tests.support.spans import recording_telemetry


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    async with jetstream(server) as harness:
        yield harness


async def until_disconnected(bus: JetStreamBus) -> None:
    """Wait until the bus knows that its server is gone."""
    async with asyncio.timeout(5):
        await bus.wait_disconnected()


async def restart(server: NatsServer, *buses: JetStreamBus, wipe: bool = False) -> None:
    """Cut the power, wait until everyone noticed, start again."""
    await server.stop()
    for bus in buses:
        await until_disconnected(bus)
    if wipe:
        server.wipe()
    await server.start()


async def test_without_a_server_nothing_waits_and_all_comes_later(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    telemetry, exporter = recording_telemetry()
    bus = await Buses(server).start("controller", "_", telemetry)
    inbox = Inbox()
    task = asyncio.create_task(bus.consume(consumer=CONSUMER, filters=["hotplug.>"], handler=inbox))
    started = asyncio.get_running_loop().time()
    for number in range(20):
        await bus.publish(annotated(number))
    assert asyncio.get_running_loop().time() - started < QUICK.publish_budget
    assert not bus.connected
    assert b"hotnic_bus_up 0.0" in telemetry.metrics_text()
    with pytest.raises(BusUnavailable):
        await bus.kv("operations").get("a")
    try:
        await server.start()
        async with jetstream(server) as behind, asyncio.timeout(10):
            await bus.wait_connected()
            assert b"hotnic_bus_up 1.0" in telemetry.metrics_text()
            # In order, and none is missed by a consumer that is made only after they were published.
            assert await inbox.wait(20) == [annotated(number) for number in range(20)]
            assert (await behind.js.stream_info("HOTPLUG")).state.messages == 20
        sent = [span for span in exporter.get_finished_spans() if span.name.startswith("send")]
        assert [bool((span.attributes or {}).get(spans.BUFFERED)) for span in sent[:20]] == [True] * 20
    finally:
        task.cancel()
        await bus.close()
        await server.stop()


async def test_a_bus_without_an_address_publishes_nothing_and_fails_nothing(harness: JetStreamHarness) -> None:
    bus = await harness.start("controller", "_", url=None)
    task = asyncio.create_task(bus.consume(consumer=CONSUMER, filters=["hotplug.>"], handler=Inbox()))
    await bus.publish(annotated())
    assert not bus.connected
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await bus.close()


@pytest.mark.parametrize("wipe", [False, True], ids=["data-kept", "data-lost"])
async def test_a_restarted_server_costs_no_event_that_comes_after(harness: JetStreamHarness, wipe: bool) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        await bus.publish(annotated(1))
        await inbox.wait(1)
        await harness.server.stop()
        await until_disconnected(bus)
        await bus.publish(annotated(2))
        if wipe:
            harness.server.wipe()
        await harness.server.start()
        async with asyncio.timeout(10):
            await harness.stands(CONSUMER)
        await bus.publish(annotated(3))
        # The buffered event was published before or after the consumer stood again; it comes in both cases.
        assert await inbox.wait(3) == [annotated(1), annotated(2), annotated(3)]


async def test_a_bucket_survives_a_wiped_server(harness: JetStreamHarness) -> None:
    bus = await harness.bus("controller", "_")
    bucket = bus.kv("operations")
    await bucket.put("a", b"1")
    watch = bucket.watch()
    assert (await anext(watch)) is not None
    assert (await anext(watch)) is None
    await restart(harness.server, bus, wipe=True)
    with pytest.raises(BusUnavailable):
        await anext(watch)
    async with asyncio.timeout(10):
        await bus.wait_connected()
    assert await bucket.get("a") is None
    await bucket.create("a", b"2")


async def test_a_watch_that_ended_leaves_no_consumer(harness: JetStreamHarness) -> None:
    bucket = (await harness.bus("controller", "_")).kv("operations")
    await bucket.put("a", b"1")

    async def consumers() -> int:
        return (await harness.js.stream_info("KV_operations")).state.consumer_count

    for _ in range(3):
        async with contextlib.aclosing(bucket.watch("a")) as watch:
            assert await anext(watch) is not None
            assert await consumers() > 0
    async with asyncio.timeout(10):
        while await consumers():
            pass


async def test_streams_that_vanish_are_made_again(harness: JetStreamHarness) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        await bus.publish(annotated(1))
        await inbox.wait(1)
        await harness.js.delete_stream("HOTPLUG")
        await bus.publish(annotated(2))
        assert await inbox.wait(2) == [annotated(1), annotated(2)]


async def test_a_consumer_that_is_deleted_is_made_again(harness: JetStreamHarness) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        await bus.publish(annotated(1))
        await inbox.wait(1)
        await harness.js.delete_consumer("HOTPLUG", CONSUMER)
        await bus.publish(annotated(2))
        assert await inbox.wait(2) == [annotated(1), annotated(2)]


async def test_streams_are_brought_to_our_settings(harness: JetStreamHarness) -> None:
    await harness.js.add_stream(StreamConfig(name="HOTPLUG", subjects=["hotplug.>"], max_age=60, max_bytes=1024))
    bus = await harness.bus("controller", "_")
    found = (await harness.js.stream_info("HOTPLUG")).config
    assert (found.max_age, found.max_bytes, found.duplicate_window) == (QUICK.max_age, QUICK.max_bytes, 120)
    assert (await harness.js.stream_info("HOTPLUG_DEAD")).config.max_age == QUICK.dead_max_age
    assert bus.connected


async def test_a_new_stream_has_every_limit(harness: JetStreamHarness) -> None:
    await harness.bus("controller", "_")
    found = (await harness.js.stream_info("HOTPLUG")).config
    assert found.max_consumers == QUICK.max_consumers
    assert (found.max_age, found.max_bytes, found.num_replicas) == (QUICK.max_age, QUICK.max_bytes, 1)


async def test_the_consumer_is_small_and_named(harness: JetStreamHarness) -> None:
    bus = await harness.bus("networks", "node-1.example")
    async with consuming(harness, bus, Inbox()):
        found = (await harness.js.consumer_info("HOTPLUG", CONSUMER)).config
    assert (found.durable_name, found.mem_storage, found.num_replicas) == (None, True, 1)
    assert (found.inactive_threshold, found.max_ack_pending) == (3600, QUICK.max_ack_pending)


async def test_a_message_delivered_before_is_told_apart_and_linked(harness: JetStreamHarness) -> None:
    """Another process took the message and died before it acknowledged it."""
    settings = msgspec.structs.replace(QUICK, ack_wait=0.2)
    telemetry, exporter = recording_telemetry()
    bus, inbox = await harness.start("controller", "_", telemetry, settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        pass
    await bus.publish(annotated())
    stolen = await harness.js.pull_subscribe_bind(CONSUMER, "HOTPLUG")
    await stolen.fetch(1)
    async with consuming(harness, bus, inbox):
        await inbox.wait(1)
        async with asyncio.timeout(5):
            while (await harness.js.consumer_info("HOTPLUG", CONSUMER)).num_ack_pending:
                pass
    assert inbox.received[0].redelivered
    (processed,) = [span for span in exporter.get_finished_spans() if span.name.startswith("process")]
    assert (processed.attributes or {})[spans.DELIVERIES] == 2
    assert [link.context.span_id for link in processed.links] == [processed.parent and processed.parent.span_id]
    assert f'hotnic_bus_redeliveries_total{{consumer="{CONSUMER}"}} 1.0'.encode() in telemetry.metrics_text()


async def test_more_messages_than_may_wait_for_their_ack(harness: JetStreamHarness) -> None:
    """Acknowledged at once, a consumer never meets the limit where a server stops delivering."""
    settings = msgspec.structs.replace(QUICK, max_ack_pending=10, pull_batch=4)
    bus, inbox = await harness.start("controller", "_", settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        await asyncio.gather(*(bus.publish(annotated(number)) for number in range(100)))
        await inbox.wait(100)


async def test_a_full_buffer_drops_the_oldest_and_counts_it(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    telemetry, _ = recording_telemetry()
    settings = msgspec.structs.replace(QUICK, buffer_events=3)
    bus = await Buses(server).start("controller", "_", telemetry, settings=settings)
    for number in range(5):
        await bus.publish(annotated(number))
    assert b"hotnic_bus_dropped_total 2.0" in telemetry.metrics_text()
    try:
        await server.start()
        async with jetstream(server) as behind, asyncio.timeout(10):
            await bus.wait_connected()
            await bus.publish(Failed(operation=operation(), node="n", reason="Last", vmi=annotated().vmi))
            while (await behind.js.stream_info("HOTPLUG")).state.messages < 4:
                pass
            first = await behind.js.get_msg("HOTPLUG", seq=1)
            assert b"operation-2" in (first.data or b"")
    finally:
        await bus.close()
        await server.stop()


async def test_a_server_that_hangs_holds_up_nobody(harness: JetStreamHarness) -> None:
    settings = msgspec.structs.replace(QUICK, publish_budget=0.05)
    bus, inbox = await harness.start("controller", "_", settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        loop = asyncio.get_running_loop()
        harness.server.freeze()
        started = loop.time()
        for number in range(10):
            await bus.publish(annotated(number))
        # One publish learns it the hard way, the others queue up behind it.
        assert loop.time() - started < 5
        harness.server.thaw()
        assert await inbox.wait(10) == [annotated(number) for number in range(10)]


async def test_a_connection_that_breaks_while_something_waits_to_be_written_is_lost(server: NatsServer) -> None:
    """nats-py tries to write it first, and tells nobody of the loss when that fails."""
    session = await BusConnection.open(Endpoint((server.url,)), name="test", settings=QUICK, log=structlog.get_logger())

    async def fill() -> None:
        with contextlib.suppress(ConnectionClosedError):
            while True:
                await session.client.publish("filling", bytes(256 * 1024))

    server.freeze()
    filling = asyncio.create_task(fill())
    await asyncio.wait([filling], timeout=0.5)
    assert not filling.done()
    # The sockets are full, and the client's writer waits for them: this waits behind it.
    await session.client.publish("waiting", b"")
    await server.stop()
    async with asyncio.timeout(5):
        await session.lost.wait()
    filling.cancel()
    await asyncio.wait([filling])
    await session.close()
