"""One pull consumer: provided when missing, one long pull request outstanding, every message acked at once.

This module does not interpret messages; :mod:`services.common.bus.delivery` does. A consumer pulls on one connection at
a time; :meth:`services.common.bus.nats.jetstream.JetStreamBus.consume` runs it again on the next connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import ConsumerConfig

from services.common.bus.envelope import BusMessage
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.creation import consumer_config
from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import Log

OnMessage = Callable[[BusMessage, int, int], None]
"""Callback for a message, its sequence in the stream and the number of its deliveries."""
Provide = Callable[[BusConnection, ConsumerConfig], Awaitable[datetime | None]]
"""Creates a consumer, unless it exists as desired; returns the time of its creation, ``None`` if it existed."""

Discard = Callable[[BusConnection, str], Awaitable[None]]
"""Deletes a consumer by its name."""

_ACK_PREFIX = "$JS.ACK."
_encode = msgspec.json.Encoder().encode


class ConsumerLost(Exception):
    """The consumer does not exist on the server any more, or its heartbeats are missing."""


class ConsumerBehind(ConsumerLost):
    """So many messages waited that the consumer was deleted with them; the next one starts with new messages.

    :ivar waiting: how many.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} messages wait")
        self.waiting = waiting


class PullConsumer:
    """Pulls for one named consumer, on one connection after the other.

    :param discard: deletes the consumer when too many messages wait for it; ``None``: they all wait.
    :param provide: creates the consumer, or has it created.
    :param on_ready: called whenever the consumer exists.
    :ivar resume: server time after the last message; a consumer that must be created again starts there.
        ``None`` means that it starts with new messages.
    """

    def __init__(
        self,
        consumer: str,
        filters: Sequence[str],
        *,
        settings: BusSettings,
        log: Log,
        on_message: OnMessage,
        provide: Provide,
        discard: Discard | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._consumer = consumer
        self._filters = list(filters)
        self._settings = settings
        self._log = log.bind(consumer=consumer)
        self._on_message = on_message
        self._provide = provide
        self._discard = discard
        self._on_ready = on_ready
        self.resume: datetime | None = None
        self._outstanding = 0
        self._pull_number = 0
        self._waiting = 0
        self._lost_reason: str | None = None
        self._last_seen = 0.0
        self._wake = asyncio.Event()

    async def run(self, connection: BusConnection) -> None:
        """Pull on a connection until cancelled.

        On a connection that is retired it ends with the outstanding pull request, so that no message is on its way.

        :raises ConsumerLost: the caller runs it again, on this or the next connection.
        :raises nats.errors.Error: the server rejected a request; the caller runs it again later.
        """
        await self._ensure_consumer(connection)
        self._lost_reason, self._outstanding, self._waiting = None, 0, 0
        inbox = connection.client.new_inbox()

        async def on_received(msg: Msg) -> None:
            await self._receive(msg)

        subscription = await connection.client.subscribe(f"{inbox}.*", cb=on_received)
        ends = [asyncio.ensure_future(event.wait()) for event in (connection.lost, connection.retired)]
        for end in ends:
            end.add_done_callback(lambda _: self._wake.set())
        self._last_seen = asyncio.get_running_loop().time()
        try:
            while not connection.lost.is_set():
                if self._lost_reason is not None:
                    raise ConsumerLost(self._lost_reason)
                if self._discard is not None and self._waiting > self._settings.max_behind:
                    await self._discard(connection, self._consumer)
                    self.resume = None
                    raise ConsumerBehind(self._waiting)
                if self._outstanding <= 0:
                    if connection.retired.is_set():
                        raise ConsumerLost("connection replaced")
                    await self._request(connection, inbox)
                await self._wait_change()
            raise ConsumerLost("connection lost")
        finally:
            for end in ends:
                end.cancel()
            if not connection.client.is_closed:
                await subscription.unsubscribe()

    async def _ensure_consumer(self, connection: BusConnection) -> None:
        """Create the consumer, or have it created; one that is lost starts where this one stopped."""
        desired = consumer_config(self._consumer, self._filters, self._settings, self.resume)
        created = await self._provide(connection, desired)
        if created is not None:
            # A consumer that is lost before its first message is created again from this time.
            self.resume = self.resume or created
            self._log.info("consumer created", filters=self._filters)
        self._on_ready()

    async def _request(self, connection: BusConnection, inbox: str) -> None:
        """Request the next batch; the server sends each message as soon as it arrives."""
        self._pull_number += 1
        self._outstanding = self._settings.pull_batch
        body = {
            "batch": self._outstanding,
            "expires": int(self._settings.pull_expires * 1e9),
            "idle_heartbeat": int(self._settings.pull_heartbeat * 1e9),
        }
        subject = f"{connection.api}.CONSUMER.MSG.NEXT.{self._settings.stream}.{self._consumer}"
        # One reply subject per request: `_handle_status` ignores the status of an earlier one.
        await connection.client.publish(subject, _encode(body), reply=f"{inbox}.{self._pull_number}")

    async def _wait_change(self) -> None:
        """Wait for a status, the end of a batch or the loss of the connection.

        :raises ConsumerLost: two heartbeats are missing, so the server has dropped the pull request.
        """
        loop = asyncio.get_running_loop()
        deadline = self._last_seen + 2 * self._settings.pull_heartbeat + 0.5
        try:
            async with asyncio.timeout_at(deadline):
                await self._wake.wait()
        except TimeoutError:
            if loop.time() >= self._last_seen + 2 * self._settings.pull_heartbeat:
                raise ConsumerLost("heartbeats of the consumer are missing") from None
        self._wake.clear()

    async def _receive(self, msg: Msg) -> None:
        self._last_seen = asyncio.get_running_loop().time()
        if not msg.reply.startswith(_ACK_PREFIX):
            self._handle_status(msg)
            return
        metadata = msg.metadata
        self._outstanding -= 1
        self._waiting = metadata.num_pending
        if self._outstanding <= 0 or self._waiting > self._settings.max_behind:
            self._wake.set()
        # A datetime drops the server's nanoseconds: without one more microsecond the last message would be redelivered.
        self.resume = metadata.timestamp + timedelta(microseconds=1)
        acknowledge = msg.ack
        try:
            self._on_message(
                BusMessage(msg.subject, msg.data, dict(msg.headers or {})),
                metadata.sequence.stream,
                metadata.num_delivered,
            )
        except Exception:
            # A bug, which the next delivery would meet again.
            self._log.exception("message not handled", subject=msg.subject, sequence=metadata.sequence.stream)
            acknowledge = msg.term
        # In any case: by now its key is in the queue, or the message is dead-lettered, or of no use.
        try:
            await acknowledge()
        except NatsError as error:
            self._log.debug("ack failed, message will be redelivered", error=repr(error))

    def _handle_status(self, msg: Msg) -> None:
        """Handle the status of a pull request (NATS ADR-37); the status of an older request is ignored."""
        headers = msg.headers or {}
        code, description = headers.get("Status", ""), headers.get("Description", "")
        if code == "100" or not msg.subject.endswith(f".{self._pull_number}"):
            return
        if code == "503" or (code == "409" and "consumer" in description.lower()):
            self._lost_reason = description or "no responders"
        # Any other status ends this pull request: it expired (404, 408) or exceeded a limit (409).
        self._outstanding = 0
        self._wake.set()
