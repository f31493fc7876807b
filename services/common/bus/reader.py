"""The streams as a person's tool sees them: dead letters to read and replay, one VM's events to read and follow.

One connection for one command; no role uses this. A history is sent by the server in one go, as fast as it is taken:
one question for each message would cost a round trip each, and people read from afar.
What a letter is: :mod:`services.common.bus.dead_letters`.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from uuid import uuid4

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, RawStreamMsg
from nats.js.errors import NotFoundError

from schemas.encoding import DEAD_ROOT
from services.common.bus.connection import BusConnection, Endpoint
from services.common.bus.dead_letters import DeadLetter, again, dead_letter_of
from services.common.bus.envelope import BusMessage
from services.common.bus.protocol import BusUnavailable
from services.common.bus.settings import BusSettings
from services.common.logs import Log


class StoredMessage(msgspec.Struct, frozen=True):
    """A message of a stream."""

    sequence: int
    message: BusMessage


class Reader:
    """See the module; made by :func:`reading`. Every call raises :class:`BusUnavailable` when NATS does not answer."""

    def __init__(self, session: BusConnection, settings: BusSettings) -> None:
        self._session = session
        self._settings = settings

    async def letters(self) -> AsyncIterator[DeadLetter]:
        """All dead letters, the oldest first."""
        async for stored in self._stored(self._settings.dead_stream, f"{DEAD_ROOT}.>"):
            yield dead_letter_of(stored.sequence, stored.message)

    async def letter(self, sequence: int) -> DeadLetter | None:
        """One dead letter."""
        with _classified(), contextlib.suppress(NotFoundError):
            found = await self._session.js.get_msg(self._settings.dead_stream, seq=sequence)
            return dead_letter_of(sequence, _message(found))
        return None

    async def replay(self, letter: DeadLetter, *, keep: bool) -> str:
        """Publish a letter's message again, then remove the letter unless it is to be kept; gives the new id.

        :raises Unusable: it would only become a dead letter again; nothing was done.
        """
        message = again(letter, uuid4().hex)
        with _classified():
            await self._session.js.publish(
                message.subject, message.payload, headers=message.headers, timeout=self._settings.publish_timeout
            )
            if not keep:
                with contextlib.suppress(NotFoundError):
                    await self._session.js.delete_msg(self._settings.dead_stream, letter.sequence)
        return message.id

    async def events(self, subjects: str) -> AsyncIterator[StoredMessage]:
        """The stored messages of some subjects, the oldest first."""
        async for stored in self._stored(self._settings.stream, subjects):
            yield stored

    async def follow(self, subjects: str, after: int) -> AsyncGenerator[StoredMessage, None]:
        """Those that come after a sequence, until cancelled."""
        with _classified():
            subscription = await self._subscribed(self._settings.stream, subjects, after)
        async with contextlib.aclosing(self._delivered(subscription)) as delivered:
            async for found in delivered:
                yield _stored(found)

    async def _stored(self, stream: str, subjects: str) -> AsyncIterator[StoredMessage]:
        """What is stored at this moment: the server sends it all, as fast as it is taken."""
        try:
            with _classified():
                subscription = await self._subscribed(stream, subjects, 0)
        except NotFoundError:
            return
        async with contextlib.aclosing(self._delivered(subscription)) as delivered:
            with _classified():
                info = await subscription.consumer_info()
            # Some are on their way already.
            left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
            while left > 0:
                try:
                    async with asyncio.timeout(self._settings.api_timeout):
                        found = await anext(delivered)
                except TimeoutError as error:
                    raise BusUnavailable("it does not send what it has") from error
                yield _stored(found)
                # The oldest may be removed while we read.
                left = min(left - 1, found.metadata.num_pending)

    async def _subscribed(self, stream: str, subjects: str, after: int) -> JetStreamContext.PushSubscription:
        """Everything after a sequence, in the stream's order: begun again by the client where something was missed."""
        return await self._session.js.subscribe(
            subjects,
            stream=stream,
            ordered_consumer=True,
            inactive_threshold=self._settings.watch_threshold,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1),
        )

    async def _delivered(self, subscription: JetStreamContext.PushSubscription) -> AsyncGenerator[Msg, None]:
        """Its messages, until the caller stops.

        :raises BusUnavailable: the connection went away.
        """
        lost = asyncio.ensure_future(self._session.lost.wait())
        following = asyncio.ensure_future(subscription.next_msg(timeout=None))
        try:
            while True:
                await asyncio.wait({following, lost}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise BusUnavailable("the connection went away")
                with _classified():
                    found = following.result()
                following = asyncio.ensure_future(subscription.next_msg(timeout=None))
                yield found
        finally:
            lost.cancel()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            if not self._session.client.is_closed:
                with contextlib.suppress(NatsError):
                    await subscription.unsubscribe()


@contextlib.asynccontextmanager
async def reading(
    url: str, environ: Mapping[str, str], *, log: Log, settings: BusSettings | None = None
) -> AsyncIterator[Reader]:
    """Connect, and leave at the end.

    :param url: ``NATS_URL``. :param environ: for the credentials, as for :func:`services.common.bus.jetstream.connect`.
    :raises BusUnavailable: nobody answers there, or does not let us in.
    """
    limits = settings or BusSettings()
    with _classified():
        session = await BusConnection.open(Endpoint.of(url, environ), name="hotnic-cli", settings=limits, log=log)
    try:
        yield Reader(session, limits)
    finally:
        await session.close()


@contextlib.contextmanager
def _classified() -> Iterator[None]:
    try:
        yield
    except NotFoundError:
        raise
    except (NatsError, OSError) as error:
        raise BusUnavailable(str(error) or type(error).__name__) from error


def _message(found: RawStreamMsg) -> BusMessage:
    return BusMessage(found.subject or "", found.data or b"", dict(found.headers or {}))


def _stored(found: Msg) -> StoredMessage:
    return StoredMessage(
        found.metadata.sequence.stream, BusMessage(found.subject, found.data, dict(found.headers or {}))
    )
