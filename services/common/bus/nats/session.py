"""Keeps one connection to NATS open: connects, waits for the streams, follows the credentials, connects again.

A lost connection is replaced with backoff. If a file with credentials changes, a new connection is opened first; the
earlier one is closed when its consumers have received what is on its way.
Next: :mod:`services.common.bus.nats.connection`, one connection.
"""

import asyncio
import functools
import random
from collections import deque
from collections.abc import Callable
from datetime import datetime

from nats.errors import Error as NatsError
from nats.js.api import ConsumerConfig

from schemas.bus.permissions import BusRole
from services.common.bus.nats import streams
from services.common.bus.nats.connection import MAX_DENIED, BusConnection, Caller, reconnect_pause
from services.common.bus.nats.consumers.creation import ensure_consumer
from services.common.bus.nats.consumers.requests import ConsumerRequests, request_consumer
from services.common.bus.nats.consumers.undelivered import watch_undelivered
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.limits import describe_denial
from services.common.bus.settings import BusSettings
from services.common.telemetry import Metrics
from services.common.telemetry.logs import Log

TRANSIENT = (NatsError, OSError)
"""Errors of a call to NATS that may succeed later; ``TimeoutError`` is an ``OSError``."""
OnState = Callable[[str], None]
"""Callback for the state of the bus: empty while it works, otherwise why it does not."""


class _Opening:
    """What a connection has been denied until it is offered.

    :ivar connection: once it is open.
    :ivar denied: the first denial, as text: what follows may be the consequence, as all answers are missing without an
        inbox.
    """

    def __init__(self) -> None:
        self.connection: BusConnection | None = None
        self.denied = ""


class Session:
    """The connection of one process.

    :param node: the process' node; ``_`` for none.
    :ivar connection: the connection for new work; ``None`` while there is none.
    :ivar up: set while there is one.
    :ivar down: set while there is none.
    """

    def __init__(
        self, role: str, node: str, *, settings: BusSettings, metrics: Metrics, log: Log, on_state: OnState
    ) -> None:
        self._caller = Caller(role, node)
        self._name = f"hotnic-{role}-{node}"
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._on_state = on_state
        self._rng = random.Random()
        self._state: str | None = None
        self._failure = ""
        self._logged_denials: deque[str] = deque(maxlen=MAX_DENIED)
        self._closing = False
        self._requests = ConsumerRequests(settings, log) if self.creates else None
        # Why a consumer does not receive, by its name.
        self._interrupted: dict[str, str] = {}
        self._retired: BusConnection | None = None
        self._retiring: asyncio.Task[None] | None = None
        self.connection: BusConnection | None = None
        self.up = asyncio.Event()
        self.down = asyncio.Event()
        self.down.set()

    @property
    def creates(self) -> bool:
        """Whether this process creates streams, buckets and consumers."""
        return self._caller.role == BusRole.CONTROLLER

    async def provide_consumer(self, connection: BusConnection, desired: ConsumerConfig) -> datetime | None:
        """Create a consumer, or request it, unless it exists.

        It is a :data:`services.common.bus.nats.consumers.pull.Provide`.

        :raises ValueError: a role of a node has no other consumer than its own, and other roles have none.
        """
        if self.creates:
            return await ensure_consumer(connection.js, self._settings.stream, desired)
        role, node = self._caller.role, self._caller.node
        if node is None or desired.name != self._caller.consumer:
            raise ValueError(f"role {role} has no consumer {desired.name}")
        return await request_consumer(connection, role, node, desired, self._settings)

    async def discard_consumer(self, connection: BusConnection, name: str) -> None:
        """Delete a consumer, which only the controller may.

        It is a :data:`services.common.bus.nats.consumers.pull.Discard`.
        """
        await connection.js.delete_consumer(self._settings.stream, name)

    def set_interrupted(self, consumer: str, why: str) -> None:
        """Report why a consumer does not receive; empty when it does."""
        if self._interrupted.get(consumer, "") != why:
            self._interrupted[consumer] = why
            if self.connection is not None:
                self._report("")

    def backoff(self, failures: int) -> float:
        """Return the seconds until the next attempt, with ``failures`` earlier failures in a row."""
        return reconnect_pause(failures + 1, self._settings, self._rng)

    def close(self) -> None:
        """Let :meth:`run` end; its task is cancelled by the caller."""
        self._closing = True
        if self._requests is not None:
            self._requests.close()
        if self._retiring is not None:
            self._retiring.cancel()

    async def run(self, endpoint: Endpoint) -> None:
        """Keep the connection until cancelled."""
        failures = 0
        try:
            while True:
                connection = await self._open(endpoint, quiet=failures > 0)
                if connection is not None:
                    failures = 0
                    await self._serve(endpoint, connection)
                if self._closing:
                    # nats-py swallows a cancellation that arrives while it closes a connection.
                    return
                await asyncio.sleep(self.backoff(failures))
                failures += 1
        finally:
            if self._retired is not None:
                await self._retired.close()

    async def restore_streams(self, connection: BusConnection) -> None:
        """Create the streams again after they were lost, if this process creates them."""
        if not self.creates:
            return
        try:
            await streams.ensure_streams(connection.js, self._settings, self._log)
        except TRANSIENT as error:
            self._log.debug("stream check failed", error=repr(error))

    async def _open(self, endpoint: Endpoint, *, quiet: bool) -> BusConnection | None:
        """Return a connection to a server that has the streams; ``None`` if it is to be tried again."""
        opening = _Opening()
        try:
            connection = await BusConnection.open(
                endpoint,
                name=self._name,
                settings=self._settings,
                log=self._log,
                caller=self._caller,
                on_denied=functools.partial(self._on_denied, opening),
            )
        except Exception as error:
            # Any error, for example a malformed credentials file, leaves the role running without the bus.
            log_failure = self._log.debug if quiet else self._log.warning
            log_failure("NATS connection failed", error=repr(error))
            self._fail(opening.denied or f"cannot connect to NATS: {error or repr(error)}")
            return None
        if await self._is_ready(connection, opening):
            opening.connection = connection
            return connection
        await connection.close()
        return None

    async def _is_ready(self, connection: BusConnection, opening: _Opening) -> bool:
        """Return whether the streams exist.

        They do not, for example, before JetStream is up; the caller then closes the connection and tries again.
        """
        try:
            if self._requests is not None:
                await streams.ensure_streams(connection.js, self._settings, self._log)
                await watch_undelivered(connection, self._metrics, self._log)
                await self._requests.serve(connection)
            else:
                await streams.check_stream(connection, self._caller.consumer, self._settings)
        except TRANSIENT as error:
            # Once: it is tried again every other second, and the cause may last until somebody enlarges the store.
            text = opening.denied or str(error) or repr(error)
            log_failure = self._log.debug if text == self._failure else self._log.warning
            log_failure("JetStream not ready", error=text)
            self._fail(text)
            return False
        return not connection.lost.is_set()

    async def _serve(self, endpoint: Endpoint, connection: BusConnection) -> None:
        """Offer a connection to publishers and consumers until it is lost; replace it when its files change."""
        try:
            self._offer(connection)
            refused = ""
            while not await self._wait_lost(connection):
                if (digest := endpoint.digest()) == connection.digest:
                    continue
                replacement = await self._open(endpoint, quiet=digest == refused)
                if replacement is None:
                    # The server may learn of the new key after the role. Logged once for each content of the files.
                    if digest != refused:
                        self._log.warning("new NATS credentials refused, the earlier connection stays")
                    refused = digest
                    continue
                self._log.info("NATS credentials replaced")
                earlier, connection = connection, replacement
                self._offer(connection)
                await self._retire(earlier)
            why = connection.error
            self._log.warning("NATS connection lost, work continues by watch and resync", error=why)
            self._report(f"NATS connection lost: {why}" if why else "NATS connection lost")
        finally:
            self.connection = None
            self.up.clear()
            self.down.set()
            self._metrics.set_bus_up(False)
            await connection.close()

    def _offer(self, connection: BusConnection) -> None:
        self._failure = ""
        self.connection = connection
        self.up.set()
        self.down.clear()
        self._metrics.set_bus_up(True)
        self._report("")
        url = connection.client.connected_url
        self._log.info("NATS connected", server=str(url and url.hostname))

    async def _wait_lost(self, connection: BusConnection) -> bool:
        try:
            async with asyncio.timeout(self._settings.files_interval):
                await connection.lost.wait()
        except TimeoutError:
            return False
        return True

    async def _retire(self, connection: BusConnection) -> None:
        """Close a replaced connection when its consumers have left it."""
        connection.retired.set()
        if self._retiring is not None:
            # Two replacements within one pull request: the one before is closed now.
            self._retiring.cancel()
            await asyncio.wait({self._retiring})
        self._retired = connection
        self._retiring = asyncio.create_task(self._close_unused(connection), name="bus-retired-connection")

    async def _close_unused(self, connection: BusConnection) -> None:
        try:
            async with asyncio.timeout(self._settings.pull_expires + self._settings.api_timeout):
                await connection.unused.wait()
        except TimeoutError:
            self._log.debug("replaced NATS connection closed in use")
        finally:
            await connection.close()

    def _on_denied(self, opening: _Opening, operation: str, subject: str) -> None:
        self._metrics.record_bus_denial(operation)
        inbox = f"{self._caller.inbox.lower()}."
        # Each inbox has a random name.
        named = f"{inbox}>" if subject.startswith(inbox) else subject
        text = describe_denial(self._caller.role, self._caller.node, operation, named)
        log_denial = self._log.debug if text in self._logged_denials else self._log.error
        log_denial("NATS permission missing", error=text)
        self._logged_denials.append(text)
        opening.denied = opening.denied or text
        # Not that of a connection which is tried, or was replaced, while another one serves.
        if self.connection is not None and self.connection is opening.connection and not self._state:
            self._report(text)

    def _fail(self, text: str) -> None:
        """Report why there is no new connection, unless the earlier one serves."""
        self._failure = text
        if self.connection is None:
            self._report(text)

    def _report(self, state: str) -> None:
        state = state or next(filter(None, self._interrupted.values()), "")
        if state != self._state:
            self._state = state
            self._on_state(state)
