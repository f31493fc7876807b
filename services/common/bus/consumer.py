"""One pull consumer on one session: made when missing, one long pull outstanding, every message acked at once.

Not the decision what a message means (:mod:`services.common.bus.delivery`). A puller lives as long as its session
and its consumer; whoever runs it makes another: :meth:`services.common.bus.jetstream.JetStreamBus.consume`.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from structlog.typing import FilteringBoundLogger

from services.common.bus.connection import BusConnection
from services.common.bus.envelope import BusMessage
from services.common.bus.settings import BusSettings

OnMessage = Callable[[BusMessage, int, int], None]
"""Gets a message, its sequence in the stream and how often it was delivered."""

_ACK_PREFIX = "$JS.ACK."
_encode = msgspec.json.Encoder().encode


class ConsumerLost(Exception):
    """The consumer is gone from the server, or no sign of it comes any more."""


class PullConsumer:
    """Pulls for one consumer, over as many sessions as it takes, one at a time.

    :ivar resume: the server's time of the last message seen; a consumer that has to be made anew starts there
        (``None``: with new messages).
    """

    def __init__(
        self,
        consumer: str,
        filters: Sequence[str],
        *,
        settings: BusSettings,
        log: FilteringBoundLogger,
        on_message: OnMessage,
    ) -> None:
        self._consumer = consumer
        self._filters = list(filters)
        self._settings = settings
        self._log = log.bind(consumer=consumer)
        self._on_message = on_message
        self.resume: datetime | None = None
        self._outstanding = 0
        self._pull = 0
        self._gone: str | None = None
        self._last_seen = 0.0
        self._wake = asyncio.Event()

    def config(self) -> ConsumerConfig:
        """The consumer as it should be: in memory, named, kept by the server for a while after we are gone.

        The first one gets new messages only; one made after a loss gets what came since.
        """
        return ConsumerConfig(
            name=self._consumer,
            filter_subject=self._filters[0] if len(self._filters) == 1 else None,
            filter_subjects=self._filters if len(self._filters) > 1 else None,
            deliver_policy=DeliverPolicy.BY_START_TIME if self.resume else DeliverPolicy.NEW,
            opt_start_time=self.resume,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._settings.ack_wait,
            max_ack_pending=self._settings.max_ack_pending,
            inactive_threshold=self._settings.inactive_threshold,
            mem_storage=True,
            num_replicas=1,
        )

    async def run(self, session: BusConnection) -> None:
        """Pull until cancelled.

        :raises ConsumerLost: begin again, on this or the next session.
        :raises nats.errors.Error: the server refused; begin again later.
        """
        await self._ensure(session)
        self._gone, self._outstanding = None, 0
        inbox = session.client.new_inbox()

        async def received(msg: Msg) -> None:
            await self._receive(msg)

        subscription = await session.client.subscribe(f"{inbox}.*", cb=received)
        lost = asyncio.ensure_future(session.lost.wait())
        lost.add_done_callback(lambda _: self._wake.set())
        self._last_seen = asyncio.get_running_loop().time()
        try:
            while not session.lost.is_set():
                if self._gone is not None:
                    raise ConsumerLost(self._gone)
                if self._outstanding <= 0:
                    await self._request(session, inbox)
                await self._wait()
            raise ConsumerLost("the connection is gone")
        finally:
            lost.cancel()
            if not session.client.is_closed:
                await subscription.unsubscribe()

    async def _ensure(self, session: BusConnection) -> None:
        stream = self._settings.stream
        try:
            found = (await session.js.consumer_info(stream, self._consumer)).config
        except NotFoundError:
            found = None
        if found is not None:
            theirs = found.filter_subjects or ([found.filter_subject] if found.filter_subject else [])
            if sorted(theirs) == sorted(self._filters):
                return
            await session.js.delete_consumer(stream, self._consumer)
        info = await session.js.add_consumer(stream, self.config())
        if self.resume is None and isinstance(info.created, datetime):
            self.resume = info.created
        self._log.info("a consumer is made", filters=self._filters)

    async def _request(self, session: BusConnection, inbox: str) -> None:
        """Ask for the next batch, to be sent message by message as they come."""
        self._pull += 1
        self._outstanding = self._settings.pull_batch
        body = {
            "batch": self._outstanding,
            "expires": int(self._settings.pull_expires * 1e9),
            "idle_heartbeat": int(self._settings.pull_heartbeat * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.stream}.{self._consumer}"
        await session.client.publish(subject, _encode(body), reply=f"{inbox}.{self._pull}")

    async def _wait(self) -> None:
        """Wait until something changed; two heartbeats missing mean that the pull is forgotten."""
        loop = asyncio.get_running_loop()
        deadline = self._last_seen + 2 * self._settings.pull_heartbeat + 0.5
        try:
            async with asyncio.timeout_at(deadline):
                await self._wake.wait()
        except TimeoutError:
            if loop.time() >= self._last_seen + 2 * self._settings.pull_heartbeat:
                raise ConsumerLost("no sign of the consumer") from None
        self._wake.clear()

    async def _receive(self, msg: Msg) -> None:
        self._last_seen = asyncio.get_running_loop().time()
        if not msg.reply.startswith(_ACK_PREFIX):
            self._status(msg)
            return
        metadata = msg.metadata
        self._outstanding -= 1
        if self._outstanding <= 0:
            self._wake.set()
        # Times are kept to the microsecond: one more, or the last message would come again.
        self.resume = metadata.timestamp + timedelta(microseconds=1)
        self._on_message(
            BusMessage(msg.subject, msg.data, dict(msg.headers or {})), metadata.sequence.stream, metadata.num_delivered
        )
        # Acked whatever became of it: the key stands in the queue, or the message among the dead letters.
        try:
            await msg.ack()
        except NatsError as error:
            self._log.debug("a message could not be acked and will come again", error=repr(error))

    def _status(self, msg: Msg) -> None:
        """A word of the server about a pull (ADR-37 of NATS); one about an older pull says nothing."""
        headers = msg.headers or {}
        code, why = headers.get("Status", ""), headers.get("Description", "")
        if code == "100" or not msg.subject.endswith(f".{self._pull}"):
            return
        if code == "503" or (code == "409" and "consumer" in why.lower()):
            self._gone = why or "no answer from the server"
        # Anything else ends this pull: it ran out (404, 408) or met a limit (409).
        self._outstanding = 0
        self._wake.set()
