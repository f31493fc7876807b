"""The bus on NATS JetStream: keeps connected, publishes within a budget, consumes over lost connections.

Nothing here may hold up a role: :func:`connect` returns at once, a publish gives up its caller after the budget.
The pieces: :mod:`services.common.bus.connection` (one connection), :mod:`services.common.bus.consumer` (one consumer),
:mod:`services.common.bus.outbox` (what waits), :mod:`services.common.bus.delivery` (one message).
"""

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import BadRequestError, NoStreamResponseError
from structlog.typing import FilteringBoundLogger

from schemas.events import Event
from services.common import faults
from services.common.bus import spans, streams
from services.common.bus.connection import BusConnection, Endpoint
from services.common.bus.consumer import ConsumerLost, PullConsumer
from services.common.bus.delivery import deliver
from services.common.bus.envelope import BusMessage, outgoing
from services.common.bus.keyvalue import JetStreamKeyValue
from services.common.bus.outbox import Outbox
from services.common.bus.protocol import EventHandler, KeyValue
from services.common.bus.settings import BusSettings
from services.common.telemetry import Telemetry

_TRANSIENT = (NatsError, OSError)
"""What a call to NATS may fail with; ``TimeoutError`` is an ``OSError``."""


async def connect(
    url: str | None,
    *,
    role: str,
    node: str,
    telemetry: Telemetry,
    log: FilteringBoundLogger,
    settings: BusSettings | None = None,
    environ: Mapping[str, str] = os.environ,
) -> "JetStreamBus":
    """The bus of one process; returns at once and connects in the background.

    :param url: ``NATS_URL``: one or several, parted by commas; ``None`` for a bus that is never connected.
    :param environ: for ``NATS_CREDS``, ``NATS_CA``, ``NATS_CERT`` and ``NATS_KEY`` (paths of files).
    """
    endpoint = Endpoint.of(url, environ) if url else None
    bus = JetStreamBus(endpoint, role=role, node=node, telemetry=telemetry, log=log, settings=settings or BusSettings())
    bus.start()
    return bus


class JetStreamBus:
    """See :class:`services.common.bus.protocol.Bus`; made by :func:`connect`."""

    def __init__(
        self,
        endpoint: Endpoint | None,
        *,
        role: str,
        node: str,
        telemetry: Telemetry,
        log: FilteringBoundLogger,
        settings: BusSettings,
    ) -> None:
        self._endpoint = endpoint
        self._role = role
        self._node = node
        self._telemetry = telemetry
        self._log = log
        self._settings = settings
        self._start_id = uuid4().hex
        self._session: BusConnection | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._outbox = Outbox(settings.buffer_events)
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._buckets: dict[str, JetStreamKeyValue] = {}

    def start(self) -> None:
        """Begin to connect and to send what waits."""
        if self._endpoint is None:
            self._log.warning("no NATS_URL: events are not published, work is found by watch and resync")
            return
        self._tasks = [
            asyncio.create_task(self._keep_connected(self._endpoint), name="bus-connection"),
            asyncio.create_task(self._send_waiting(), name="bus-outbox"),
        ]

    @property
    def connected(self) -> bool:
        """See :attr:`services.common.bus.protocol.Bus.connected`."""
        return self._session is not None

    async def wait_connected(self) -> None:
        """Wait for the bus; for tests and tools only, no role may need it."""
        await self._up.wait()

    async def wait_disconnected(self) -> None:
        """Wait until the loss of the connection is known."""
        await self._down.wait()

    async def publish(self, event: Event) -> None:
        """See :meth:`services.common.bus.protocol.Bus.publish`.

        :raises ValueError: the event is one that no role may publish, or too large: a bug of the caller.
        """
        message = outgoing(event, role=self._role, node=self._node, start_id=self._start_id)
        sending = spans.send(self._telemetry.tracer, message, stage=str(event.stage), operation=event.operation.id)
        with sending as span, faults.step(f"{self._role}.publish-{event.stage}"):
            # Not past events that still wait: they keep their order.
            if self._session is None or self._outbox or not await self._try(self._session, message):
                span.set_attribute(spans.BUFFERED, True)
                self._put(message)
        self._telemetry.metrics.published(event)

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """See :meth:`services.common.bus.protocol.Bus.consume`."""

        def on_message(message: BusMessage, sequence: int, deliveries: int) -> None:
            for _ in range(faults.deliveries()):
                dead = deliver(
                    message,
                    handler,
                    telemetry=self._telemetry,
                    log=self._log,
                    consumer=consumer,
                    stream=self._settings.stream,
                    sequence=sequence,
                    deliveries=deliveries,
                )
                if dead is not None:
                    self._put(dead)

        puller = PullConsumer(consumer, filters, settings=self._settings, log=self._log, on_message=on_message)
        if self._session is None:
            # Publishers may be quicker to come back to the server than we are.
            puller.resume = datetime.now(UTC)
        failures = 0
        while True:
            await self._up.wait()
            session = self._session
            if session is None:
                continue
            try:
                await puller.run(session)
            except (ConsumerLost, *_TRANSIENT) as error:
                if session.lost.is_set():
                    # A new connection follows, at its own pace; the old one's flag is lowered by its keeper.
                    failures = 0
                    await asyncio.sleep(0)
                    continue
                self._log.warning("a consumer is interrupted", consumer=consumer, error=str(error) or repr(error))
                await self._restore_streams(session)
                await asyncio.sleep(self._delay(failures))
                failures += 1

    def kv(self, bucket: str) -> KeyValue:
        """See :meth:`services.common.bus.protocol.Bus.kv`."""
        if bucket not in self._buckets:
            self._buckets[bucket] = JetStreamKeyValue(bucket, lambda: self._session, self._settings)
        return self._buckets[bucket]

    async def close(self) -> None:
        """See :meth:`services.common.bus.protocol.Bus.close`."""
        if self._session is not None:
            try:
                async with asyncio.timeout(self._settings.close_timeout):
                    await self._outbox.drained()
            except TimeoutError:
                self._log.warning("events are left unpublished", events=len(self._outbox))
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _keep_connected(self, endpoint: Endpoint) -> None:
        failures = 0
        while True:
            try:
                session = await BusConnection.open(
                    endpoint, name=f"hotnic-{self._role}-{self._node}", settings=self._settings, log=self._log
                )
            except Exception as error:
                # Whatever it is (a broken credentials file, too): the bus stays away, the role goes on.
                report = self._log.warning if failures == 0 else self._log.debug
                report("NATS is not reached", error=repr(error), failures=failures + 1)
            else:
                try:
                    if await self._ready(session):
                        failures = 0
                        await self._hold(session)
                finally:
                    await session.close()
            if self._closing:
                # The NATS client swallows a cancellation that meets it while it gives up a connection.
                return
            await asyncio.sleep(self._delay(failures))
            failures += 1

    async def _ready(self, session: BusConnection) -> bool:
        """Whether the streams stand; a server whose JetStream is not up yet is left and tried again."""
        try:
            await streams.ensure(session.js, self._settings, self._log)
        except _TRANSIENT as error:
            self._log.warning("JetStream is not ready", error=repr(error))
            return False
        return not session.lost.is_set()

    async def _hold(self, session: BusConnection) -> None:
        """Offer the session to everyone until it is lost."""
        self._session = session
        self._up.set()
        self._down.clear()
        self._telemetry.metrics.bus_up(True)
        self._log.info(
            "NATS is connected", server=str(session.client.connected_url and session.client.connected_url.hostname)
        )
        try:
            await session.lost.wait()
            self._log.warning("NATS is lost; work goes on by watch and resync")
        finally:
            self._session = None
            self._up.clear()
            self._down.set()
            self._telemetry.metrics.bus_up(False)

    async def _restore_streams(self, session: BusConnection) -> None:
        try:
            await streams.ensure(session.js, self._settings, self._log)
        except _TRANSIENT as error:
            self._log.debug("the streams could not be restored", error=repr(error))

    async def _try(self, session: BusConnection, message: BusMessage) -> bool:
        """Publish within the budget; ``False`` leaves it to the background (the id absorbs a second arrival)."""
        try:
            async with asyncio.timeout(self._settings.publish_budget):
                await session.js.publish(message.subject, message.payload, headers=message.headers)
        except _TRANSIENT as error:
            self._log.debug("a publish goes on in the background", subject=message.subject, error=repr(error))
            return False
        return True

    def _put(self, message: BusMessage) -> None:
        dropped = self._outbox.put(message)
        if dropped is not None:
            self._telemetry.metrics.dropped()
            self._log.warning("an event is dropped: NATS is away for too long", subject=dropped.subject)

    async def _send_waiting(self) -> None:
        failures = 0
        while True:
            message = await self._outbox.head()
            await self._up.wait()
            session = self._session
            if session is None:
                continue
            try:
                await session.js.publish(
                    message.subject,
                    message.payload,
                    timeout=self._settings.publish_timeout,
                    headers=message.headers,
                )
            except (BadRequestError, MaxPayloadError) as error:
                # It will never be taken; the next reconcile tells what it would have told.
                self._log.error("NATS refuses an event", subject=message.subject, error=repr(error))
            except _TRANSIENT as error:
                self._log.debug("an event waits on", subject=message.subject, error=repr(error))
                if isinstance(error, NoStreamResponseError):
                    await self._restore_streams(session)
                await asyncio.sleep(self._delay(failures))
                failures += 1
                continue
            failures = 0
            self._outbox.done(message)

    def _delay(self, failures: int) -> float:
        """Seconds until the next try: doubling from 50 ms, at most the configured delay, with jitter."""
        longest = min(self._settings.reconnect_delay, 0.05 * 2 ** min(failures, 10))
        return random.uniform(longest / 2, longest)
