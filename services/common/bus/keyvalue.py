"""A bucket on JetStream's key-value store: made when missing, errors as the protocol names them."""

import asyncio
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
from nats.js.kv import KeyValue as NatsKeyValue

from services.common.bus.connection import BusConnection
from services.common.bus.protocol import BusUnavailable, KeyValueEntry, WrongRevision
from services.common.bus.settings import BusSettings

T = TypeVar("T")


class JetStreamKeyValue:
    """A bucket by name, over whatever session stands."""

    def __init__(self, bucket: str, session: Callable[[], BusConnection | None], settings: BusSettings) -> None:
        self._bucket = bucket
        self._session = session
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

        return await self._do(call)

    async def put(self, key: str, value: bytes) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._do(lambda store: store.put(key, value))

    async def create(self, key: str, value: bytes) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._do(lambda store: store.create(key, value))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        return await self._do(lambda store: store.update(key, value, last=revision))

    async def delete(self, key: str) -> None:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        await self._do(lambda store: store.delete(key))

    async def forget(self, key: str) -> None:
        """See :class:`services.common.bus.protocol.KeyValue`."""

        async def call(_store: NatsKeyValue) -> None:
            assert self._opened is not None
            js = self._opened[0].js
            await js.purge_stream(f"KV_{self._bucket}", subject=f"$KV.{self._bucket}.{key}")

        await self._do(call)

    async def watch(self, keys: str = ">") -> AsyncGenerator[KeyValueEntry | None, None]:
        """See :class:`services.common.bus.protocol.KeyValue`."""
        # nats-py ends a watch without deleting its consumer.
        threshold = self._settings.watch_threshold
        watcher = await self._do(lambda store: store.watch(keys, inactive_threshold=threshold))
        assert self._opened is not None
        session = self._opened[0]
        lost = asyncio.ensure_future(session.lost.wait())
        try:
            while True:
                # nats-py leaves its watcher untyped.
                following = asyncio.ensure_future(watcher.__anext__())  # type: ignore[no-untyped-call]
                try:
                    await asyncio.wait({following, lost}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not following.done():
                        following.cancel()
                if following.cancelled() or not following.done():
                    raise BusUnavailable("the connection went away during a watch")
                found = following.result()
                if found is None:
                    yield None
                else:
                    gone = found.operation in ("DEL", "PURGE")
                    yield KeyValueEntry(found.key, None if gone else found.value or b"", found.revision or 0)
        finally:
            lost.cancel()
            if not session.client.is_closed:
                await watcher.stop()  # type: ignore[no-untyped-call]

    async def _do(self, call: Callable[[NatsKeyValue], Awaitable[T]]) -> T:
        try:
            try:
                return await call(await self._open())
            except (NoStreamResponseError, NoRespondersError, NotFoundError):
                # The bucket vanished: with the server's data, or somebody deleted it.
                self._opened = None
                return await call(await self._open())
        except KeyWrongLastSequenceError as error:
            raise WrongRevision(str(error)) from error
        except (NatsError, OSError) as error:
            raise BusUnavailable(f"bucket {self._bucket}: {error!r}") from error

    async def _open(self) -> NatsKeyValue:
        session = self._session()
        if session is None:
            raise BusUnavailable("NATS is not connected")
        if self._opened is None or self._opened[0] is not session:
            self._opened = (session, await self._make(session))
        return self._opened[1]

    async def _make(self, session: BusConnection) -> NatsKeyValue:
        try:
            return await session.js.key_value(self._bucket)
        except (BucketNotFoundError, NotFoundError):
            return await session.js.create_key_value(
                KeyValueConfig(
                    bucket=self._bucket,
                    history=1,
                    max_bytes=self._settings.bucket_max_bytes,
                    storage=StorageType.FILE,
                    replicas=self._settings.replicas,
                    direct=True,
                )
            )
