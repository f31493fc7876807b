"""The bus on a server that is down, restarted, wiped, frozen or tampered with: nothing hangs, events are delivered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog
from nats.errors import ConnectionClosedError
from nats.js.api import StreamConfig

from schemas.bus.events import Failed
from services.common.bus import spans
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.jetstream import JetStreamBus
from services.common.bus.protocol import BusUnavailable, KeyValueEntry
from tests.support.bus.conformance import CONSUMER, NODE, Inbox, annotated, consuming, operation
from tests.support.bus.jetstream import QUICK, Buses, JetStreamHarness, jetstream
from tests.support.bus.nats import NatsServer
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    async with jetstream(server) as harness:
        yield harness


async def until_disconnected(bus: JetStreamBus) -> None:
    """Wait until the bus has noticed the loss of its connection."""
    async with asyncio.timeout(60):
        await bus.wait_disconnected()


async def restart(server: NatsServer, *buses: JetStreamBus, wipe: bool = False) -> None:
    """Kill the server, wait until all buses have noticed it, start the server again."""
    await server.stop()
    for bus in buses:
        await until_disconnected(bus)
    if wipe:
        server.wipe()
    await server.start()


async def test_events_published_without_a_server_are_delivered_later(tmp_path: Path) -> None:
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
        async with jetstream(server) as inspector, asyncio.timeout(60):
            await bus.wait_connected()
            assert b"hotnic_bus_up 1.0" in telemetry.metrics_text()
            # In order and complete, although the consumer is created after the events were published.
            assert await inbox.wait(20) == [annotated(number) for number in range(20)]
            assert (await inspector.js.stream_info("HOTPLUG")).state.messages == 20
        sent = [span for span in exporter.get_finished_spans() if span.name.startswith("send")]
        assert [bool((span.attributes or {}).get(spans.BUFFERED)) for span in sent[:20]] == [True] * 20
    finally:
        task.cancel()
        await bus.close()
        await server.stop()


async def test_bus_without_a_url_publishes_nothing_and_raises_nothing(harness: JetStreamHarness) -> None:
    bus = await harness.start("controller", "_", url=None)
    task = asyncio.create_task(bus.consume(consumer=CONSUMER, filters=["hotplug.>"], handler=Inbox()))
    await bus.publish(annotated())
    assert not bus.connected
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await bus.close()


@pytest.mark.parametrize("wipe", [False, True], ids=["with-data", "without-data"])
async def test_no_event_is_lost_after_a_server_restart(harness: JetStreamHarness, wipe: bool) -> None:
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
        async with asyncio.timeout(60):
            await harness.wait_consumer(CONSUMER)
        await bus.publish(annotated(3))
        # The event from the outbox is published before or after the consumer is created; it arrives in both cases.
        assert await inbox.wait(3) == [annotated(1), annotated(2), annotated(3)]


@pytest.mark.parametrize("wipe", [False, True], ids=["with-data", "without-data"])
async def test_a_role_of_a_node_gets_its_consumer_again_after_a_server_restart(
    harness: JetStreamHarness, wipe: bool
) -> None:
    """A consumer is in the server's memory, so each restart removes those of all nodes."""
    controller, networks = await harness.bus("controller", "_"), await harness.bus("networks", NODE)
    inbox = Inbox()
    async with consuming(harness, networks, inbox):
        await controller.publish(annotated(1))
        await inbox.wait(1)
        await harness.server.stop()
        await until_disconnected(controller)
        await controller.publish(annotated(2))
        await until_disconnected(networks)
        if wipe:
            harness.server.wipe()
        await harness.server.start()
        # Stored before or after the consumer is created; it arrives in both cases.
        assert await inbox.wait(2) == [annotated(1), annotated(2)]


async def test_the_bucket_of_an_earlier_version_gives_notice_of_changes(harness: JetStreamHarness) -> None:
    await harness.js.create_key_value(bucket="operations", direct=True)
    controller, api = await harness.bus("controller", "_"), await harness.bus("api", "_")
    bucket = controller.kv("operations")
    first = await bucket.put("a", b"1")
    async with asyncio.timeout(60), contextlib.aclosing(api.kv("operations").watch()) as watch:
        assert await anext(watch) == KeyValueEntry("a", b"1", first)
        assert await anext(watch) is None
        second = await bucket.put("a", b"2")
        assert await anext(watch) == KeyValueEntry("a", b"2", second)
    config = (await harness.js.stream_info("KV_operations")).config
    assert config.republish is not None
    assert (config.republish.dest, config.republish.headers_only) == ("hotnic.stored.$KV.operations.>", True)
    # A new one gives them from the start.
    await controller.kv("new").put("a", b"1")
    found = (await harness.js.stream_info("KV_new")).config
    assert found.republish is not None
    assert found.republish.dest == "hotnic.stored.$KV.new.>"


async def test_bucket_is_created_again_after_the_server_lost_its_data(harness: JetStreamHarness) -> None:
    bus = await harness.bus("controller", "_")
    bucket = bus.kv("operations")
    await bucket.put("a", b"1")
    watch = bucket.watch()
    assert (await anext(watch)) is not None
    assert (await anext(watch)) is None
    await restart(harness.server, bus, wipe=True)
    with pytest.raises(BusUnavailable):
        await anext(watch)
    async with asyncio.timeout(60):
        await bus.wait_connected()
    assert await bucket.get("a") is None
    await bucket.create("a", b"2")


async def test_a_watch_leaves_nothing_on_the_server(harness: JetStreamHarness) -> None:
    bucket = (await harness.bus("controller", "_")).kv("operations")
    await bucket.put("a", b"1")
    async with contextlib.aclosing(bucket.watch("a")) as watch:
        assert await anext(watch) is not None
        assert await anext(watch) is None
        assert (await harness.js.stream_info("KV_operations")).state.consumer_count == 0


async def test_deleted_streams_are_created_again(harness: JetStreamHarness) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        await bus.publish(annotated(1))
        await inbox.wait(1)
        await harness.js.delete_stream("HOTPLUG")
        await bus.publish(annotated(2))
        assert await inbox.wait(2) == [annotated(1), annotated(2)]


async def test_deleted_consumer_is_created_again(harness: JetStreamHarness) -> None:
    bus, inbox = await harness.bus("controller", "_"), Inbox()
    async with consuming(harness, bus, inbox):
        await bus.publish(annotated(1))
        await inbox.wait(1)
        await harness.js.delete_consumer("HOTPLUG", CONSUMER)
        await bus.publish(annotated(2))
        assert await inbox.wait(2) == [annotated(1), annotated(2)]


async def test_settings_of_existing_streams_are_updated(harness: JetStreamHarness) -> None:
    await harness.js.delete_stream("HOTPLUG")
    await harness.js.add_stream(StreamConfig(name="HOTPLUG", subjects=["hotplug.>"], max_age=60, max_bytes=1024))
    bus = await harness.bus("controller", "_")
    found = (await harness.js.stream_info("HOTPLUG")).config
    assert (found.max_age, found.max_bytes, found.duplicate_window) == (QUICK.max_age, QUICK.max_bytes, 5)
    assert (await harness.js.stream_info("HOTPLUG_DEAD")).config.max_age == QUICK.dead_max_age
    assert bus.connected


async def test_new_stream_has_every_limit(harness: JetStreamHarness) -> None:
    await harness.bus("controller", "_")
    found = (await harness.js.stream_info("HOTPLUG")).config
    assert found.max_consumers == QUICK.max_consumers
    assert (found.max_age, found.max_bytes, found.num_replicas) == (QUICK.max_age, QUICK.max_bytes, 1)


async def test_consumer_is_named_and_in_memory(harness: JetStreamHarness) -> None:
    bus = await harness.bus("networks", "node-1.example")
    async with consuming(harness, bus, Inbox()):
        found = (await harness.js.consumer_info("HOTPLUG", CONSUMER)).config
    assert (found.durable_name, found.mem_storage, found.num_replicas) == (None, True, 1)
    assert (found.inactive_threshold, found.max_ack_pending) == (3600, QUICK.max_ack_pending)


async def test_redelivered_message_is_marked_and_linked(harness: JetStreamHarness) -> None:
    """Another process gets the message and dies before it acks it."""
    settings = msgspec.structs.replace(QUICK, ack_wait=0.2)
    telemetry, exporter = recording_telemetry()
    bus, inbox = await harness.start("controller", "_", telemetry, settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        pass
    await bus.publish(annotated())
    other_subscription = await harness.js.pull_subscribe_bind(CONSUMER, "HOTPLUG")
    await other_subscription.fetch(1)
    async with consuming(harness, bus, inbox):
        await inbox.wait(1)
        async with asyncio.timeout(60):
            while (await harness.js.consumer_info("HOTPLUG", CONSUMER)).num_ack_pending:
                pass
    assert inbox.received[0].redelivered
    (processed,) = [span for span in exporter.get_finished_spans() if span.name.startswith("process")]
    assert (processed.attributes or {})[spans.DELIVERIES] == 2
    assert [link.context.span_id for link in processed.links] == [processed.parent and processed.parent.span_id]
    assert f'hotnic_bus_redeliveries_total{{consumer="{CONSUMER}"}} 1.0'.encode() in telemetry.metrics_text()


async def test_more_messages_than_max_ack_pending_are_delivered(harness: JetStreamHarness) -> None:
    """A consumer that acks at once never reaches the limit at which the server stops delivering."""
    settings = msgspec.structs.replace(QUICK, max_ack_pending=10, pull_batch=4)
    bus, inbox = await harness.start("controller", "_", settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        await asyncio.gather(*(bus.publish(annotated(number)) for number in range(100)))
        await inbox.wait(100)


async def test_full_outbox_drops_the_oldest_event_and_counts_it(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    telemetry, _ = recording_telemetry()
    settings = msgspec.structs.replace(QUICK, buffer_events=3)
    bus = await Buses(server).start("controller", "_", telemetry, settings=settings)
    for number in range(5):
        await bus.publish(annotated(number))
    assert b"hotnic_bus_dropped_total 2.0" in telemetry.metrics_text()
    try:
        await server.start()
        async with jetstream(server) as inspector, asyncio.timeout(60):
            await bus.wait_connected()
            await bus.publish(Failed(operation=operation(), node="n", reason="Last", vmi=annotated().vmi))
            while (await inspector.js.stream_info("HOTPLUG")).state.messages < 4:
                pass
            first = await inspector.js.get_msg("HOTPLUG", seq=1)
            assert b"operation-2" in (first.data or b"")
    finally:
        await bus.close()
        await server.stop()


async def test_frozen_server_does_not_block_publishers(harness: JetStreamHarness) -> None:
    settings = msgspec.structs.replace(QUICK, publish_budget=0.05)
    bus, inbox = await harness.start("controller", "_", settings=settings), Inbox()
    await bus.wait_connected()
    async with consuming(harness, bus, inbox):
        loop = asyncio.get_running_loop()
        harness.server.freeze()
        started = loop.time()
        for number in range(10):
            await bus.publish(annotated(number))
        # The first publish uses up its budget, the others go to the outbox behind it.
        assert loop.time() - started < 5
        harness.server.thaw()
        assert await inbox.wait(10) == [annotated(number) for number in range(10)]


async def test_loss_of_a_connection_with_pending_writes_is_noticed(server: NatsServer) -> None:
    """nats-py first tries to write them, and runs no callback when that fails."""
    connection = await BusConnection.open(
        Endpoint((server.url,)), name="test", settings=QUICK, log=structlog.get_logger()
    )

    async def fill() -> None:
        with contextlib.suppress(ConnectionClosedError):
            while True:
                await connection.client.publish("filling", bytes(256 * 1024))

    server.freeze()
    filling = asyncio.create_task(fill())
    await asyncio.wait([filling], timeout=0.5)
    assert not filling.done()
    # The socket buffers are full, so this message stays in the client's write buffer.
    await connection.client.publish("waiting", b"")
    await server.stop()
    async with asyncio.timeout(60):
        await connection.lost.wait()
    filling.cancel()
    await asyncio.wait([filling])
    await connection.close()
