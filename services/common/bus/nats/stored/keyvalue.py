"""A bucket in JetStream's key-value store: created when missing, with the errors of the protocol.

Next: :mod:`services.common.bus.nats.stored.reader`, which reads streams for the CLI.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import (
    BucketNotFoundError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoStreamResponseError,
    NotFoundError,
)
from nats.js.kv import KV_DEL, KV_OP, KV_PURGE
from nats.js.kv import KeyValue as NatsKeyValue

from schemas.bus.encoding import BUCKET_STREAM_PREFIX
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.limits import describe_bus_error
from services.common.bus.nats.stored.messages import StoredMessage, follow_stored
from services.common.bus.nats.streams import ensure_settings, notices_of
from services.common.bus.protocol import BucketState, BusUnavailable, KeyValueEntry, WrongRevision
from services.common.bus.settings import BusSettings

T = TypeVar("T")
_DELETIONS = (KV_DEL, KV_PURGE)


class JetStreamKeyValue:
    """A bucket by name, on the connection that is open at the time of a call.

    :param create: whether this process creates the bucket when it is missing, which only the controller may.
    """

    def __init__(
        self,
        bucket: str,
        connection: Callable[[], BusConnection | None],
        settings: BusSettings,
        *,
        create: bool = True,
    ) -> None:
        self._bucket = bucket
        self._stream = f"{BUCKET_STREAM_PREFIX}{bucket}"
        self._create = create
        self._current_connection = connection
        self._settings = settings
        self._opened: tuple[BusConnection, NatsKeyValue] | None = None

    async def get(self, key: str) -> KeyValueEntry | None:
        """See :class:`services.common.bus.protocol.KeyValue`."""

        async def call(store: NatsKeyValue) -> KeyValueEntry | None:
            try:
                found = await store.get(key)
            except KeyNotFoundError:
                return None
            return KeyValueEntry(key, found.value or b"", found.revision or 0)

        return await self._call(call)

    async def put(self, key: str, value: bytes) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._call(lambda store: store.put(key, value))

    async def create(self, key: str, value: bytes) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._call(lambda store: store.create(key, value))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._call(lambda store: store.update(key, value, last=revision))

    async def delete(self, key: str) -> None:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        await self._call(lambda store: store.delete(key))

    async def purge(self, key: str) -> None:
        """See :class:`services.common.bus.protocol.KeyValue`."""

        async def call(_store: NatsKeyValue) -> None:
            assert self._opened is not None
            js = self._opened[0].js
            # Not the client's purge, which leaves a marker itself.
            await js.purge_stream(self._stream, subject=f"$KV.{self._bucket}.{key}")

        await self._call(call)

    async def state(self) -> BucketState:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        found = (await self._call(lambda store: store.status())).stream_info.state
        return BucketState(found.last_seq, found.messages)

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        # Opens the bucket, which the controller creates when it is missing.
        await self._call(_nothing)
        assert self._opened is not None
        prefix = f"$KV.{self._bucket}."
        followed = follow_stored(self._opened[0], self._stream, f"{prefix}{keys}", self._settings, noticed=f"{prefix}>")
        try:
            async with contextlib.aclosing(followed) as entries:
                async for found in entries:
                    yield None if found is None else _to_entry(found, prefix)
        except (NatsError, OSError) as error:
            raise BusUnavailable(f"watch of bucket {self._bucket}: {str(error) or repr(error)}") from error

    async def _call(self, call: Callable[[NatsKeyValue], Awaitable[T]]) -> T:
        """Call the bucket; open or create it again if it has vanished.

        :raises WrongRevision: the key has another revision.
        :raises BusUnavailable: NATS is not connected, or the call failed.
        """
        try:
            try:
                return await call(await self._open())
            except (NoStreamResponseError, NoRespondersError, NotFoundError):
                # The bucket is gone: the server lost its data, or a user deleted the bucket.
                self._opened = None
                return await call(await self._open())
        except KeyWrongLastSequenceError as error:
            raise WrongRevision(str(error)) from error
        except (NatsError, OSError) as error:
            text = describe_bus_error(error, self._stream, self._settings)
            raise BusUnavailable(f"bucket {self._bucket}: {text}") from error

    async def _open(self) -> NatsKeyValue:
        connection = self._current_connection()
        if connection is None:
            raise BusUnavailable(f"bucket {self._bucket}: NATS is not connected")
        if self._opened is None or self._opened[0] is not connection:
            self._opened = (connection, await self._open_or_create(connection))
        return self._opened[1]

    async def _open_or_create(self, connection: BusConnection) -> NatsKeyValue:
        notices = notices_of(f"$KV.{self._bucket}.>")
        limit = self._settings.message_limit(self._stream)
        try:
            store = await connection.js.key_value(self._bucket)
            if self._create:
                await ensure_settings(connection.js, self._stream, republish=notices, max_msg_size=limit)
            return store
        except (BucketNotFoundError, NotFoundError):
            if not self._create:
                raise BusUnavailable(
                    f"bucket {self._bucket} does not exist; the controller creates it when it leads"
                ) from None
            return await connection.js.create_key_value(
                KeyValueConfig(
                    bucket=self._bucket,
                    history=1,
                    max_bytes=self._settings.bucket_max_bytes,
                    max_value_size=limit,
                    storage=StorageType.FILE,
                    replicas=self._settings.replicas,
                    direct=True,
                    republish=notices,
                )
            )


async def _nothing(_store: NatsKeyValue) -> None:
    """Do nothing with a bucket."""


def _to_entry(found: StoredMessage, prefix: str) -> KeyValueEntry:
    message = found.message
    deleted = message.headers.get(KV_OP) in _DELETIONS
    return KeyValueEntry(message.subject.removeprefix(prefix), None if deleted else message.payload, found.sequence)
