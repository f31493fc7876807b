"""A role of a node requests its consumer; a controller creates it. Over NATS, without JetStream.

Which consumer it is follows from the subject of the request, which NATS binds to the node's identity: whoever may
configure a consumer can have it deliver anywhere in the account of the streams, as a pull of another consumer, too
(docs/adr/0043). Every controller answers, whether or not it leads.
Next: :mod:`services.common.bus.nats.consumers.pull`, which receives.
"""

import asyncio
from datetime import datetime

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig

from schemas.bus.consumers import ConsumerAnswer, ConsumerRequest, decode_answer, decode_request, encode_body
from schemas.bus.encoding import consumer_request, node_consumer, node_filter, parse_consumer_request
from schemas.bus.permissions import CONSUMER_REQUESTS, CONSUMER_ROLES
from schemas.inputs import RejectedInput, printable
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.consumers.creation import (
    consumer_config,
    creation_time,
    ensure_consumer,
    find_consumer,
    is_desired,
    serves,
)
from services.common.bus.nats.limits import describe_bus_error
from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import Log
from services.common.telemetry.stores import STORES

QUEUE = "controllers"
"""The queue group of the controllers: one of them answers each request, and gets each advisory."""
MAX_REQUESTED = 20_000
"""Consumers that are requested at once, as many as a stream has; further requests are dropped, and repeated."""
MAX_CREATED = 16
"""Consumers that are created at once."""
PAUSE = 0.2
"""Seconds between two answers about one consumer, so that no node can keep a controller busy."""


class ConsumerRefused(NatsError):
    """There is no consumer; the message says why."""


async def request_consumer(
    connection: BusConnection, role: str, node: str, desired: ConsumerConfig, settings: BusSettings
) -> datetime | None:
    """Have the consumer of a role of a node created, unless it exists as desired.

    :return: the time of its creation; ``None`` if it existed.

    :raises ConsumerRefused: no controller creates it.
    :raises nats.errors.Error: NATS does not answer.
    """
    assert desired.name is not None
    found = await find_consumer(connection.js, settings.stream, desired.name)
    if is_desired(found, desired):
        return None
    try:
        return await _request(connection, role, node, desired, settings)
    except ConsumerRefused:
        # It is as good as another one until a message comes that nobody acks.
        if serves(found, desired):
            return None
        raise


async def _request(
    connection: BusConnection, role: str, node: str, desired: ConsumerConfig, settings: BusSettings
) -> datetime | None:
    """Request the consumer; return the time of its creation."""
    assert desired.name is not None
    subject = consumer_request(role, node)
    body = encode_body(ConsumerRequest(desired.opt_start_time))
    try:
        answer = await connection.client.request(subject, body, timeout=settings.api_timeout)
    except NoRespondersError:
        raise ConsumerRefused(
            f"no controller creates consumer {desired.name}: none is connected, or it is of an earlier version"
        ) from None
    except TimeoutError:
        if connection.is_denied(subject):
            why = "make the configuration of the NATS server, or the auth callout's answers, again (docs/upgrade.md)"
            raise ConsumerRefused(f"NATS denies to request consumer {desired.name} on {subject}; {why}") from None
        raise ConsumerRefused(f"no controller answers the request for consumer {desired.name}") from None
    try:
        why = printable(decode_answer(answer.data).error)
    except RejectedInput as error:
        raise ConsumerRefused(f"the answer about consumer {desired.name} cannot be read: {error}") from error
    if why:
        raise ConsumerRefused(f"the controller does not create consumer {desired.name}: {why}")
    found = await find_consumer(connection.js, settings.stream, desired.name)
    if not is_desired(found, desired):
        raise ConsumerRefused(f"the controller has created another consumer {desired.name}; it is of another version")
    return creation_time(found)


class ConsumerRequests:
    """Answers the requests of the roles of the nodes, on each connection of a controller.

    Of several requests for one consumer, only the newest waits: the role repeats what is not answered.
    """

    def __init__(self, settings: BusSettings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._places = asyncio.Semaphore(MAX_CREATED)
        # By subject; ``None`` while no further request waits.
        self._newest: dict[str, tuple[BusConnection, Msg] | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        STORES.watch("consumer-requests", self, lambda requests: len(requests._newest), MAX_REQUESTED)

    async def serve(self, connection: BusConnection) -> None:
        """Answer on a connection until it is closed."""

        async def on_request(msg: Msg) -> None:
            is_new = msg.subject not in self._newest
            if not msg.reply or (is_new and len(self._newest) >= MAX_REQUESTED):
                return
            self._newest[msg.subject] = connection, msg
            if is_new:
                task = asyncio.create_task(self._answer_all(msg.subject), name="bus-consumer-request")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        await connection.client.subscribe(
            CONSUMER_REQUESTS, queue=QUEUE, cb=on_request, pending_msgs_limit=MAX_REQUESTED
        )
        await connection.client.flush()

    def close(self) -> None:
        """Answer no further request."""
        for task in self._tasks:
            task.cancel()

    async def _answer_all(self, subject: str) -> None:
        """Answer the newest request on a subject until none waits."""
        try:
            while (request := self._newest[subject]) is not None:
                self._newest[subject] = None
                connection, msg = request
                async with self._places:
                    with connection.use():
                        await self._answer(connection, msg)
                await asyncio.sleep(PAUSE)
        finally:
            del self._newest[subject]

    async def _answer(self, connection: BusConnection, msg: Msg) -> None:
        """Create the consumer of a request, if it does not exist, and answer."""
        error = ""
        try:
            await self._create(connection, msg)
        except (NatsError, OSError) as failure:
            error = describe_bus_error(failure, self._settings.stream, self._settings)
        # A time that the client cannot encode overflows.
        except (ValueError, OverflowError) as failure:
            error = str(failure)
        if error:
            # The role logs it.
            self._log.debug("consumer refused", subject=msg.subject, error=error)
        try:
            await connection.client.publish(msg.reply, encode_body(ConsumerAnswer(error)))
        except (NatsError, OSError) as failure:
            # The role asks again.
            self._log.debug("request for a consumer not answered", subject=msg.subject, error=repr(failure))

    async def _create(self, connection: BusConnection, msg: Msg) -> None:
        role, node = parse_consumer_request(msg.subject)
        if role not in CONSUMER_ROLES:
            raise ValueError(f"role {role!r} has no consumer on a node")
        since = decode_request(msg.data).since if msg.data else None
        desired = consumer_config(node_consumer(role, node), [node_filter(node)], self._settings, since)
        if await ensure_consumer(connection.js, self._settings.stream, desired) is not None:
            self._log.info("consumer created", consumer=desired.name, role=role, node=node)
