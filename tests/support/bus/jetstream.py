"""Buses on a real nats-server, and a client to inspect the server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import nats
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from services.common.bus.envelope import BusMessage
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.requests import ConsumerRequests
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.nats.streams import ensure_streams
from services.common.bus.settings import BusSettings
from services.common.telemetry import Telemetry
from tests.support.bus.nats import NatsServer
from tests.support.telemetry.spans import recording_telemetry

QUICK = BusSettings(
    publish_budget=0.5,
    pull_heartbeat=0.5,
    pull_expires=5.0,
    reconnect_delay=0.1,
    connect_timeout=1.0,
    api_timeout=2.0,
    publish_timeout=1.0,
    close_timeout=0.3,
    # So that no test gets by this what the server gives notice of.
    read_interval=300.0,
    max_bytes=16 * 1024 * 1024,
    dead_max_bytes=4 * 1024 * 1024,
    bucket_max_bytes=1024 * 1024,
)
"""Settings for tests on loopback: short times, but a publish budget long enough for slow machines."""


class Buses:
    """Starts buses on one server, which need not run."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self._buses: list[JetStreamBus] = []

    async def start(
        self,
        role: str,
        node: str,
        telemetry: Telemetry | None = None,
        *,
        url: str | None = "",
        settings: BusSettings = QUICK,
    ) -> JetStreamBus:
        """Return a bus, connected or not."""
        bus = await connect(
            self.server.url if url == "" else url,
            role=role,
            node=node,
            telemetry=telemetry or recording_telemetry()[0],
            log=structlog.get_logger(),
            settings=settings,
            environ={},
        )
        self._buses.append(bus)
        return bus

    async def close(self) -> None:
        """Close every bus."""
        for bus in self._buses:
            await bus.close()


class JetStreamHarness(Buses):
    """Buses on one running server, and a client of its own."""

    def __init__(self, server: NatsServer, client: Client) -> None:
        super().__init__(server)
        self.client = client
        self.js: JetStreamContext = client.jetstream()

    async def bus(self, role: str, node: str, telemetry: Telemetry | None = None) -> JetStreamBus:
        """Return a connected bus."""
        bus = await self.start(role, node, telemetry)
        async with asyncio.timeout(60):
            await bus.wait_connected()
        return bus

    async def wait_consumer(self, consumer: str) -> None:
        """Wait until the consumer exists and has a pull request."""
        while True:
            with contextlib.suppress(NotFoundError):
                if (await self.js.consumer_info("HOTPLUG", consumer)).num_waiting:
                    return

    async def publish_raw(self, message: BusMessage) -> None:
        """Publish a message unchecked."""
        await self.js.publish(message.subject, message.payload, headers=dict(message.headers) or None)

    async def dead_letters(self, count: int) -> Sequence[BusMessage]:
        """Return the dead letters as soon as there are ``count`` of them."""
        async with asyncio.timeout(60):
            while (state := (await self.js.stream_info("HOTPLUG_DEAD")).state).messages < count:
                pass
        found = [
            await self.js.get_msg("HOTPLUG_DEAD", seq=sequence)
            for sequence in range(state.first_seq, state.last_seq + 1)
        ]
        return [BusMessage(letter.subject or "", letter.data or b"", dict(letter.headers or {})) for letter in found]


@contextlib.asynccontextmanager
async def jetstream(server: NatsServer, settings: BusSettings = QUICK) -> AsyncIterator[JetStreamHarness]:
    """Provide a harness on a running server."""
    client = await nats.connect(server.url, reconnect_time_wait=0)
    js, log = client.jetstream(), structlog.get_logger()
    # As a controller does: no other role creates streams and consumers.
    await ensure_streams(js, settings, log)
    connection = BusConnection(client, js, asyncio.Event(), settings.close_timeout)
    requests = ConsumerRequests(settings, log)
    await requests.serve(connection)
    harness = JetStreamHarness(server, client)
    try:
        yield harness
    finally:
        await harness.close()
        requests.close()
        await connection.close()
