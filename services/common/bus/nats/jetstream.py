"""The bus on NATS JetStream: stays connected, publishes within a budget, consumes across lost connections.

Nothing here blocks a role: :func:`connect` returns at once, and a publish returns to its caller within the budget.
The parts: :mod:`services.common.bus.nats.session` (the connection and its successors),
:mod:`services.common.bus.nats.consumers` (one consumer), :mod:`services.common.bus.nats.outbox` (messages to publish
later), :mod:`services.common.bus.delivery` (one message).
"""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from nats.errors import MaxPayloadError
from nats.js.errors import BadRequestError, NoStreamResponseError

from schemas.bus.events import Event
from services.common.bus import spans
from services.common.bus.delivery import build_delivery_handler
from services.common.bus.envelope import MAX_NAME_CHARS, BusMessage, UnsendableEvent, encode_message
from services.common.bus.middleware import Delivery
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.pull import ConsumerBehind, ConsumerLost, PullConsumer
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.limits import describe_bus_error
from services.common.bus.nats.outbox import Outbox
from services.common.bus.nats.session import TRANSIENT, OnState, Session
from services.common.bus.nats.stored.keyvalue import JetStreamKeyValue
from services.common.bus.protocol import EventHandler, KeyValue
from services.common.bus.settings import BusSettings
from services.common.bus.shares import LOG_INTERVAL
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log

MAX_LOSSES = 5
"""Connections in a row that are lost while one event is published, until it is dropped."""


async def connect(
    url: str | None,
    *,
    role: str,
    node: str,
    telemetry: Telemetry,
    log: Log,
    settings: BusSettings | None = None,
    environ: Mapping[str, str] = os.environ,
    on_state: OnState = lambda _state: None,
) -> "JetStreamBus":
    """Return the bus of this process at once and connect in the background.

    :param url: ``NATS_URL``; several URLs are separated by commas. ``None`` returns a bus that never connects.
    :param environ: the variables of :data:`services.common.bus.nats.credentials.FILE_VARIABLES` name files, which are
        read at each connect.
    :param on_state: called when the state of the bus changes.
    """
    endpoint = Endpoint.from_url(url, environ) if url else None
    bus = JetStreamBus(
        endpoint,
        role=role,
        node=node,
        telemetry=telemetry,
        log=log,
        settings=settings or BusSettings(),
        on_state=on_state,
    )
    bus.start()
    return bus


class JetStreamBus:
    """Implements :class:`services.common.bus.protocol.Bus`; :func:`connect` creates it."""

    def __init__(
        self,
        endpoint: Endpoint | None,
        *,
        role: str,
        node: str,
        telemetry: Telemetry,
        log: Log,
        settings: BusSettings,
        on_state: OnState,
    ) -> None:
        self._endpoint = endpoint
        self._role = role
        self._node = node
        self._telemetry = telemetry
        self._log = log
        self._settings = settings
        self._start_id = uuid4().hex
        self._session = Session(role, node, settings=settings, metrics=telemetry.metrics, log=log, on_state=on_state)
        self._outbox = Outbox(settings.buffer_events)
        self._tasks: list[asyncio.Task[None]] = []
        self._buckets: dict[str, JetStreamKeyValue] = {}

    def start(self) -> None:
        """Start to connect and to publish what is in the outbox."""
        if self._endpoint is None:
            self._log.warning("NATS_URL is not set: no events are published, work is found by watch and resync only")
            return
        self._telemetry.metrics.set_bus_up(False)
        self._tasks = [
            asyncio.create_task(self._session.run(self._endpoint), name="bus-connection"),
            asyncio.create_task(self._drain_outbox(), name="bus-outbox"),
        ]

    @property
    def connected(self) -> bool:
        """See :attr:`services.common.bus.protocol.Bus.connected`."""
        return self._session.connection is not None

    async def wait_connected(self) -> None:
        """Wait until the bus is connected. For tests and tools; roles must not wait for the bus."""
        await self._session.up.wait()

    async def wait_disconnected(self) -> None:
        """Wait until the loss of the connection is noticed."""
        await self._session.down.wait()

    async def publish(self, event: Event) -> None:
        """See :meth:`services.common.bus.protocol.Bus.publish`.

        :raises ValueError: the role may not publish the event, which is a bug of the caller.
        """
        try:
            message = encode_message(event, role=self._role, node=self._node, start_id=self._start_id)
        except UnsendableEvent as error:
            # What makes it large is in an object that others write. An event is a hint, and the next resync needs none.
            vmi = f"{event.vmi.namespace}/{event.vmi.name}"[:MAX_NAME_CHARS] if event.vmi is not None else ""
            self._log.warning("event not published", stage=str(event.stage), vmi=vmi, error=str(error))
            return
        with spans.send_span(
            self._telemetry.tracer, message, stage=str(event.stage), operation=event.operation.id
        ) as span:
            # While older events are in the outbox, a new one goes there too: order is preserved.
            connection = self._session.connection
            if connection is None or self._outbox or not await self._publish_now(connection, message):
                span.set_attribute(spans.BUFFERED, True)
                self._enqueue(message)
        # ADR 2: counted whether or not the bus is available.
        self._telemetry.metrics.record_published(event)

    async def consume(self, *, consumer: str, filters: Sequence[str], handler: EventHandler) -> None:
        """See :meth:`services.common.bus.protocol.Bus.consume`."""

        handle = build_delivery_handler(
            handler,
            consumer=consumer,
            start_id=self._start_id,
            telemetry=self._telemetry,
            log=self._log,
            publish_dead_letter=self._enqueue,
        )

        def on_message(message: BusMessage, sequence: int, deliveries: int) -> None:
            handle(Delivery(message, consumer, self._settings.stream, sequence, deliveries))

        pull_consumer = PullConsumer(
            consumer,
            filters,
            settings=self._settings,
            log=self._log,
            on_message=on_message,
            provide=self._session.provide_consumer,
            # For the roles of a node only events of that node wait.
            discard=self._session.discard_consumer if self._session.creates else None,
            on_ready=lambda: self._session.set_interrupted(consumer, ""),
        )
        if not self.connected:
            # Other processes may reconnect and publish first; this includes their events (docs/adr/0003).
            pull_consumer.resume = datetime.now(UTC)
        failures, seen, logged = 0, "", -math.inf
        while True:
            await self._session.up.wait()
            connection = self._session.connection
            if connection is None:
                continue
            try:
                with connection.use():
                    await pull_consumer.run(connection)
            except ConsumerBehind as behind:
                self._telemetry.metrics.record_excess(consumer, behind.waiting)
                now = asyncio.get_running_loop().time()
                if now >= logged + LOG_INTERVAL:
                    logged = now
                    self._log.warning("events left out, too many wait", consumer=consumer, events=behind.waiting)
            except (ConsumerLost, *TRANSIENT) as error:
                if connection.lost.is_set() or connection.retired.is_set():
                    # The session reconnects with a backoff of its own, or has another connection already.
                    failures, seen = 0, ""
                    await asyncio.sleep(0)
                    continue
                text = describe_bus_error(error, self._settings.stream, self._settings)
                # Once, if it does not change: the cause may last until somebody removes it.
                log_failure = self._log.debug if failures and text == seen else self._log.warning
                log_failure("consumer interrupted", consumer=consumer, error=text)
                seen = text
                if not isinstance(error, ConsumerLost):
                    self._session.set_interrupted(consumer, f"consumer {consumer}: {text}")
                await self._session.restore_streams(connection)
                await asyncio.sleep(self._session.backoff(failures))
                failures += 1

    def kv(self, bucket: str) -> KeyValue:
        """See :meth:`services.common.bus.protocol.Bus.kv`."""
        if bucket not in self._buckets:
            self._buckets[bucket] = JetStreamKeyValue(
                bucket, lambda: self._session.connection, self._settings, create=self._session.creates
            )
        return self._buckets[bucket]

    async def close(self) -> None:
        """See :meth:`services.common.bus.protocol.Bus.close`."""
        if self.connected:
            try:
                async with asyncio.timeout(self._settings.close_timeout):
                    # The outbox is in memory only. The resync of the next process makes up for what is lost here.
                    await self._outbox.wait_empty()
            except TimeoutError:
                self._log.warning("events not published at shutdown", events=len(self._outbox))
        self._session.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _publish_now(self, connection: BusConnection, message: BusMessage) -> bool:
        """Publish within the budget; return ``False`` if the outbox has to publish the message.

        The message may have arrived after all: the server drops the second one by its id.
        """
        try:
            async with asyncio.timeout(self._settings.publish_budget):
                await connection.js.publish(message.subject, message.payload, headers=message.headers)
        except TRANSIENT as error:
            self._log.debug("publish deferred to outbox", subject=message.subject, error=repr(error))
            return False
        return True

    def _enqueue(self, message: BusMessage) -> None:
        dropped = self._outbox.put(message)
        if dropped is not None:
            self._telemetry.metrics.record_dropped()
            self._log.warning("event dropped, outbox is full", subject=dropped.subject)

    async def _drain_outbox(self) -> None:
        failures = losses = 0
        while True:
            message = await self._outbox.wait_head()
            await self._session.up.wait()
            connection = self._session.connection
            if connection is None:
                continue
            if connection.is_denied(message.subject):
                # The session has logged the missing permission. Events behind this one may be permitted.
                self._telemetry.metrics.record_dropped()
                self._outbox.remove(message)
                continue
            try:
                await connection.js.publish(
                    message.subject,
                    message.payload,
                    timeout=self._settings.publish_timeout,
                    headers=message.headers,
                )
            except (BadRequestError, MaxPayloadError) as error:
                # The server will never accept it; the next reconcile makes up for it.
                self._log.error("event rejected by NATS", subject=message.subject, error=repr(error))
            except TRANSIENT as error:
                if connection.is_denied(message.subject):
                    continue
                self._log.debug("publish failed, will retry", subject=message.subject, error=repr(error))
                losses = losses + 1 if connection.lost.is_set() else 0
                if losses >= MAX_LOSSES:
                    # The server ends the connection because of this message; those behind it must not wait for it.
                    self._telemetry.metrics.record_dropped()
                    self._log.error("event dropped, NATS ends each connection that publishes it", error=repr(error))
                    self._outbox.remove(message)
                    losses = 0
                    continue
                # No stream on the subject: the server lost its data, or a user deleted the stream.
                if isinstance(error, NoStreamResponseError):
                    await self._session.restore_streams(connection)
                await asyncio.sleep(self._session.backoff(failures))
                failures += 1
                continue
            failures = losses = 0
            self._outbox.remove(message)
