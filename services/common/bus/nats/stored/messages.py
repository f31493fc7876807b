"""The messages of a stream by filter and sequence: those that are stored, and those that come.

A consumer would be state in the server that its creator configures, so only the controller makes any (docs/adr/0043).
Here each request names the messages that it wants, and the server gives notice of new ones. A notice says only that it
is time to read: none, a late and a repeated one lose nothing. Next: :mod:`services.common.bus.nats.stored.notices`, how
they arrive; :mod:`services.common.bus.nats.stored.reader`, which reads.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from services.common.bus.envelope import BusMessage
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.stored.notices import SEQUENCE
from services.common.bus.settings import BusSettings

BATCH = 256
"""Messages of one request."""
SECOND_LOOK = 0.2
"""Seconds until the stream is read once more, if a replica has answered that is behind the notice of the leader."""
# The server sets these on each message that it sends, whatever the publisher has set.
_STREAM, _SUBJECT, _PENDING = "Nats-Stream", "Nats-Subject", "Nats-Num-Pending"
_HEADERS = frozenset({_STREAM, _SUBJECT, SEQUENCE, _PENDING, "Nats-Time-Stamp", "Nats-Last-Sequence"})
_MORE, _NONE, _NO_STREAM = "204", "404", "503"
_encode = msgspec.json.Encoder().encode


class StoredMessage(msgspec.Struct, frozen=True):
    """A message of a stream with its sequence."""

    sequence: int
    message: BusMessage


class _Batch(NamedTuple):
    """What one request has returned.

    :ivar last: whether no more messages were stored.
    """

    messages: list[StoredMessage]
    last: bool


async def read_stored(
    connection: BusConnection, stream: str, subjects: str, settings: BusSettings, *, after: int = 0
) -> AsyncGenerator[StoredMessage, None]:
    """Yield the stored messages on the subjects after a sequence, in their order.

    :raises nats.errors.Error: the stream does not exist, or the connection is lost.
    :raises TimeoutError: the server does not answer.
    """
    batch = _Batch([], last=False)
    while not batch.last:
        batch = await _read_batch(connection, stream, subjects, after, settings)
        for found in batch.messages:
            after = found.sequence
            yield found


async def follow_stored(
    connection: BusConnection, stream: str, subjects: str, settings: BusSettings, *, after: int = 0, noticed: str = ""
) -> AsyncGenerator[StoredMessage | None, None]:
    """Yield the messages that are stored, as :func:`read_stored`, then ``None`` once, then each further one.

    :param noticed: the subjects of all messages of which the stream gives notice; otherwise it is read at intervals.
    :raises nats.errors.Error: as :func:`read_stored`, at any time.
    """
    lost = asyncio.ensure_future(connection.lost.wait())
    interval = settings.read_interval if noticed else settings.follow_interval
    first = True
    try:
        # Before the first request on this connection, so the server gives notice of what that does not return.
        async with connection.notices.following(subjects, after, noticed=noticed) as follower:
            lost.add_done_callback(lambda _: follower.arrived.set())
            while True:
                newest = follower.take()
                reading = read_stored(connection, stream, subjects, settings, after=follower.after)
                async with contextlib.aclosing(reading) as stored:
                    async for found in stored:
                        follower.after = found.sequence
                        yield found
                if first:
                    first = False
                    yield None
                if follower.after < newest:
                    # Its message may have been removed since, so once. Not sooner, whatever is noticed meanwhile: a
                    # notice of nothing costs two reads a while, however many there are.
                    await asyncio.wait({lost}, timeout=SECOND_LOOK)
                else:
                    try:
                        async with asyncio.timeout(interval):
                            await follower.arrived.wait()
                    except TimeoutError:
                        if await _last_sequence(connection, stream) < follower.after:
                            # The stream was created again, and counts from 1.
                            follower.after = 0
                if connection.lost.is_set():
                    raise ConnectionClosedError
    finally:
        lost.cancel()


async def _last_sequence(connection: BusConnection, stream: str) -> int:
    try:
        return (await connection.js.stream_info(stream)).state.last_seq
    except NotFoundError:
        raise _missing(stream) from None


def _missing(stream: str) -> NatsError:
    return NatsError(f"stream {stream} does not exist, or answers no direct requests")


async def _read_batch(
    connection: BusConnection, stream: str, subjects: str, after: int, settings: BusSettings
) -> _Batch:
    """Request the next messages after a sequence (NATS ADR-31)."""
    found: list[StoredMessage] = []
    ended: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()

    async def on_received(msg: Msg) -> None:
        if ended.done():
            return
        headers = msg.headers or {}
        # Of a status, the server sets none. Not its first one, which a broken header of the publisher's may swallow.
        if SEQUENCE not in headers:
            ended.set_result(msg)
            return
        found.append(_to_stored_message(msg))
        # A server before 2.11 sends one message for each request.
        if _PENDING not in headers:
            ended.set_result(None)

    client = connection.client
    inbox = client.new_inbox()
    lost = asyncio.ensure_future(connection.lost.wait())
    subscription = await client.subscribe(inbox, cb=on_received)
    try:
        body = {"seq": after + 1, "batch": BATCH, "next_by_subj": subjects}
        await client.publish(f"{connection.api}.DIRECT.GET.{stream}", _encode(body), reply=inbox)
        while not ended.done():
            count = len(found)
            either: set[asyncio.Future[Any]] = {ended, lost}
            await asyncio.wait(either, timeout=settings.api_timeout, return_when=asyncio.FIRST_COMPLETED)
            if connection.lost.is_set():
                raise ConnectionClosedError
            if not ended.done() and len(found) == count:
                raise TimeoutError(f"stream {stream}: the server stopped sending stored messages")
    finally:
        lost.cancel()
        if not client.is_closed:
            await subscription.unsubscribe()
    return _Batch(found, _is_last(stream, ended.result()))


def _is_last(stream: str, end: Msg | None) -> bool:
    """Return whether the stream has no more messages.

    :param end: the status that ended a batch; ``None`` from a server that sends none.
    :raises nats.errors.Error: the server has refused the request.
    """
    if end is None:
        return False
    headers = end.headers or {}
    status = headers.get("Status", "")
    if status == _NONE:
        return True
    if status == _MORE:
        return headers.get(_PENDING, "0") == "0"
    if status == _NO_STREAM:
        raise _missing(stream)
    raise NatsError(f"stream {stream}: {status} {headers.get('Description', '')}".rstrip())


def _to_stored_message(msg: Msg) -> StoredMessage:
    headers = dict(msg.headers or {})
    sequence, subject = int(headers[SEQUENCE]), headers[_SUBJECT]
    kept = {name: value for name, value in headers.items() if name not in _HEADERS}
    return StoredMessage(sequence, BusMessage(subject, msg.data, kept))
