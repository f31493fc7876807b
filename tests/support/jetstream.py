"""Buses on a real nats-server, and a look behind them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import nats
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from services.common.bus.envelope import BusMessage
from services.common.bus.jetstream import JetStreamBus, connect
from services.common.bus.settings import BusSettings
from services.common.telemetry import Telemetry
from tests.support.nats import NatsServer
from tests.support.spans import recording_telemetry

QUICK = BusSettings(
    publish_budget=0.5,
    pull_heartbeat=0.5,
    pull_expires=5.0,
    reconnect_delay=0.1,
    connect_timeout=1.0,
    api_timeout=2.0,
    publish_timeout=1.0,
    close_timeout=0.3,
    watch_threshold=0.2,
    max_bytes=16 * 1024 * 1024,
    dead_max_bytes=4 * 1024 * 1024,
    bucket_max_bytes=1024 * 1024,
)
"""Settings for tests on loopback: short times; a budget so long that a slow machine does not change an order."""


class Buses:
    """Buses on one server, which may be down."""

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
        """A bus, whether it is connected or not."""
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
    """Buses on one running server, and a client of our own behind them."""

    def __init__(self, server: NatsServer, client: Client) -> None:
        super().__init__(server)
        self.client = client
        self.js: JetStreamContext = client.jetstream()

    async def bus(self, role: str, node: str, telemetry: Telemetry | None = None) -> JetStreamBus:
        """A bus, once it is connected."""
        bus = await self.start(role, node, telemetry)
        async with asyncio.timeout(10):
            await bus.wait_connected()
        return bus

    async def stands(self, consumer: str) -> None:
        """Wait until the server knows the consumer and it is pulled from."""
        while True:
            with contextlib.suppress(NotFoundError):
                if (await self.js.consumer_info("HOTPLUG", consumer)).num_waiting:
                    return

    async def raw(self, message: BusMessage) -> None:
        """Publish whatever bytes."""
        await self.js.publish(message.subject, message.payload, headers=dict(message.headers) or None)

    async def dead(self, count: int) -> Sequence[BusMessage]:
        """The dead letters, once there are this many."""
        async with asyncio.timeout(10):
            while (state := (await self.js.stream_info("HOTPLUG_DEAD")).state).messages < count:
                pass
        found = [
            await self.js.get_msg("HOTPLUG_DEAD", seq=sequence)
            for sequence in range(state.first_seq, state.last_seq + 1)
        ]
        return [BusMessage(letter.subject or "", letter.data or b"", dict(letter.headers or {})) for letter in found]


@contextlib.asynccontextmanager
async def jetstream(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    """A harness on a running server."""
    client = await nats.connect(server.url, reconnect_time_wait=0)
    harness = JetStreamHarness(server, client)
    try:
        yield harness
    finally:
        await harness.close()
        await client.close()
