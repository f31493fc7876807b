"""The streams as CLI commands read them: dead letters to list and replay, the events of one VM, and what is used.

One command uses one connection; roles do not use this module. The server sends many messages for a request: one request
per message would cost a round trip each, which is slow over a distant connection.
Next: :mod:`services.common.bus.dead_letters`, the content of a dead letter.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from uuid import uuid4

import msgspec
from nats.errors import Error as NatsError
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from schemas.bus.encoding import BUCKET_STREAM_PREFIX, DEAD_ROOT, NO_NODE
from schemas.bus.permissions import API, BusRole
from schemas.inputs import Edge, InputDecoder, RejectedInput
from services.common.bus.dead_letters import DeadLetter, build_replay, parse_dead_letter
from services.common.bus.envelope import BusMessage
from services.common.bus.nats.connection import BusConnection, Caller
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.limits import describe_command_denial
from services.common.bus.nats.stored.messages import StoredMessage, follow_stored, read_stored
from services.common.bus.protocol import BusDenied, BusUnavailable
from services.common.bus.settings import BusSettings, StoreUsage, StreamUsage
from services.common.runtime.settings import SettingsError
from services.common.telemetry.logs import Log


class _AccountLimits(msgspec.Struct, frozen=True):
    max_storage: int = -1


class _Account(msgspec.Struct, frozen=True):
    storage: int = 0
    reserved_storage: int = 0
    limits: _AccountLimits = _AccountLimits()


_account = InputDecoder(Edge.BUS, _Account)


class StreamReader:
    """Reads the streams over one connection; :func:`open_reader` creates it.

    :raises BusUnavailable: (every call) NATS does not answer.
    """

    def __init__(self, connection: BusConnection, settings: BusSettings) -> None:
        self._connection = connection
        self._settings = settings

    async def list_dead_letters(self) -> AsyncIterator[DeadLetter]:
        """Yield all dead letters, oldest first."""
        async for stored in self._iterate_stored(self._settings.dead_stream, f"{DEAD_ROOT}.>"):
            yield parse_dead_letter(stored.sequence, stored.message)

    async def get_dead_letter(self, sequence: int) -> DeadLetter | None:
        """Return the dead letter with this sequence, ``None`` if there is none."""
        with self._translate_errors(), contextlib.suppress(NotFoundError):
            found = await self._connection.js.get_msg(self._settings.dead_stream, seq=sequence)
            return parse_dead_letter(sequence, _to_bus_message(found))
        return None

    async def replay(self, dead_letter: DeadLetter, *, keep: bool) -> str:
        """Publish the message of a dead letter again, delete the dead letter and return the new id of the message.

        :param keep: do not delete the dead letter.
        :raises UnusableMessage: the message would only be dead-lettered again; nothing is published or deleted.
        """
        message = build_replay(dead_letter, uuid4().hex)
        with self._translate_errors():
            await self._connection.js.publish(
                message.subject, message.payload, headers=message.headers, timeout=self._settings.publish_timeout
            )
            if not keep:
                with contextlib.suppress(NotFoundError):
                    await self._connection.js.delete_msg(self._settings.dead_stream, dead_letter.sequence)
        return message.id

    async def read_usage(self, *buckets: str) -> tuple[StreamUsage, ...]:
        """Return the usage of both streams and of these buckets."""
        settings = self._settings
        limits = {settings.stream: settings.max_bytes, settings.dead_stream: settings.dead_max_bytes}
        limits |= {f"{BUCKET_STREAM_PREFIX}{bucket}": settings.bucket_max_bytes for bucket in buckets}
        return tuple([await self._usage(name, limit) for name, limit in limits.items()])

    async def read_account_store(self) -> StoreUsage | None:
        """Return the usage of the account's store; ``None`` if the account has no limit, or may not be read."""
        settings = self._settings
        try:
            answer = await self._connection.client.request(f"{API}.INFO", timeout=settings.account_timeout)
            found = _account.decode(answer.data)
        # A permission that is missing shows as a missing response.
        except (NatsError, OSError, RejectedInput):
            return None
        if found.limits.max_storage <= 0:
            return None
        return StoreUsage("NATS account", found.limits.max_storage, found.reserved_storage, found.storage)

    def _translate_errors(self) -> contextlib.AbstractContextManager[None]:
        return _translate_errors(lambda: self._connection.last_denied)

    async def _usage(self, name: str, limit: int) -> StreamUsage:
        with self._translate_errors(), contextlib.suppress(NotFoundError):
            info = await self._connection.js.stream_info(name)
            size, message = (max(limit or 0, 0) for limit in (info.config.max_bytes, info.config.max_msg_size))
            return StreamUsage(name, size, info.state.bytes, message, info.config.sealed)
        return StreamUsage(name, limit, None)

    async def list_messages(self, subjects: str) -> AsyncIterator[StoredMessage]:
        """Yield the stored messages on the subjects, oldest first."""
        async for stored in self._iterate_stored(self._settings.stream, subjects):
            yield stored

    async def follow_messages(
        self, subjects: str, after: int, on_subscribed: Callable[[], None] | None = None
    ) -> AsyncGenerator[StoredMessage, None]:
        """Yield the messages on the subjects after a sequence, until cancelled.

        :param on_subscribed: called once, when all that is stored was read.
        """
        followed = follow_stored(self._connection, self._settings.stream, subjects, self._settings, after=after)
        with self._translate_errors():
            async with contextlib.aclosing(followed) as stored:
                async for found in stored:
                    if found is not None:
                        yield found
                    elif on_subscribed is not None:
                        on_subscribed()

    async def _iterate_stored(self, stream: str, subjects: str) -> AsyncIterator[StoredMessage]:
        """Yield the messages that are stored when the call starts.

        :raises BusUnavailable: the server stops sending before the last one.
        """
        try:
            with self._translate_errors():
                last = (await self._connection.js.stream_info(stream)).state.last_seq
        except NotFoundError:
            return
        with self._translate_errors():
            async for found in read_stored(self._connection, stream, subjects, self._settings):
                if found.sequence > last:
                    return
                yield found


@contextlib.asynccontextmanager
async def open_reader(
    url: str, environ: Mapping[str, str], *, log: Log, settings: BusSettings | None = None
) -> AsyncIterator[StreamReader]:
    """Connect to NATS and close the connection at the end of the block.

    :param url: ``NATS_URL``.
    :param environ: variables for the credentials, as in :func:`services.common.bus.nats.jetstream.connect`.
    :raises BusUnavailable: no server answers, or it rejects the credentials.
    """
    limits = settings or BusSettings()
    denied: list[str] = []
    with _translate_errors(lambda: denied[-1] if denied else ""), _unusable_credentials():
        connection = await BusConnection.open(
            Endpoint.from_url(url, environ),
            name="hotnic-cli",
            settings=limits,
            log=log,
            caller=Caller(BusRole.READER, NO_NODE),
            on_denied=lambda _operation, subject: denied.append(subject),
        )
    try:
        yield StreamReader(connection, limits)
    finally:
        await connection.close()


@contextlib.contextmanager
def _unusable_credentials() -> Iterator[None]:
    """Raise :class:`BusUnavailable` for whatever nats-py raises for a file that contains no credentials."""
    try:
        yield
    except (NatsError, OSError):
        raise
    except SettingsError as error:
        raise BusUnavailable(str(error)) from error
    except Exception as error:
        raise BusUnavailable(f"the credentials cannot be used ({type(error).__name__})") from error


@contextlib.contextmanager
def _translate_errors(last_denied: Callable[[], str]) -> Iterator[None]:
    """Raise errors of the client as :class:`BusUnavailable`, except a missing stream or message.

    :param last_denied: returns the subject that the server has denied last.
    """
    try:
        yield
    except NotFoundError:
        raise
    except (NatsError, OSError) as error:
        # The server does not answer a request that it denies.
        if isinstance(error, TimeoutError) and (subject := last_denied()):
            raise BusDenied(describe_command_denial(subject)) from error
        raise BusUnavailable(str(error) or type(error).__name__) from error


def _to_bus_message(found: RawStreamMsg) -> BusMessage:
    # Of headers that are no ASCII, nats-py (2.16) returns objects, and text that cannot be encoded.
    headers = {_to_text(name): _to_text(value) for name, value in (found.headers or {}).items()}
    return BusMessage(_to_text(found.subject or ""), found.data or b"", headers)


def _to_text(found: object) -> str:
    return str(found).encode(errors="replace").decode()
