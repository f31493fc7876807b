"""Answer requests on one subject of NATS, over a connection of its own that is replaced when it is lost.

Not JetStream: a request that nobody answers is the caller's to repeat. Replicas share the requests by a queue group.
Next: :mod:`services.common.bus.nats.connection`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.common.bus.nats.connection import BusConnection, reconnect_pause
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import Log

MAX_RUNNING = 1024
"""Requests that are answered at once, and as many that wait in the client; further ones are dropped."""
Answer = Callable[[bytes], Awaitable[bytes | None]]
"""Returns the response to a request; ``None`` for no response."""


class RequestServer:
    """Answers the requests on one subject.

    :param name: of the connection.
    :param on_state: called with whether requests are answered, after each change.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        name: str,
        subject: str,
        queue: str,
        answer: Answer,
        settings: BusSettings,
        log: Log,
        on_state: Callable[[bool], None] = lambda _up: None,
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._subject = subject
        self._queue = queue
        self._answer = answer
        self._settings = settings
        self._log = log.bind(subject=subject)
        self._on_state = on_state
        self._rng = random.Random()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Answer until cancelled; reconnect whenever the connection is lost."""
        failures = 0
        while True:
            try:
                connection = await BusConnection.open(
                    self._endpoint, name=self._name, settings=self._settings, log=self._log, jetstream=False
                )
            except Exception as error:
                # Any error, for example an unreadable seed, which its owner may replace.
                log_failure = self._log.warning if failures == 0 else self._log.debug
                log_failure("NATS connection failed", error=repr(error), failures=failures + 1)
            else:
                try:
                    await self._serve(connection)
                    failures = 0
                except NatsError as error:
                    self._log.warning("NATS subscription failed", error=repr(error))
                finally:
                    self._on_state(False)
                    for task in self._running:
                        task.cancel()
                    await connection.close()
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                # nats-py swallows a cancellation that arrives while it closes a connection.
                raise asyncio.CancelledError
            failures += 1
            await asyncio.sleep(reconnect_pause(failures, self._settings, self._rng))

    async def _serve(self, connection: BusConnection) -> None:
        """Answer until the connection is lost."""

        async def on_request(message: Msg) -> None:
            if len(self._running) >= MAX_RUNNING:
                return
            task = asyncio.create_task(self._respond(connection, message))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

        await connection.client.subscribe(
            self._subject, queue=self._queue, cb=on_request, pending_msgs_limit=MAX_RUNNING
        )
        await connection.client.flush()
        self._log.info("NATS requests are answered")
        self._on_state(True)
        await connection.lost.wait()
        self._log.warning("NATS connection lost, requests are not answered")

    async def _respond(self, connection: BusConnection, message: Msg) -> None:
        response = await self._answer(message.data)
        if response is None or not message.reply:
            return
        try:
            await connection.client.publish(message.reply, response)
        except NatsError as error:
            self._log.debug("response not sent", error=repr(error))
