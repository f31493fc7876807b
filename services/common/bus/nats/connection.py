"""One connection to NATS, from connecting to its loss. A lost connection is replaced, never reused.

The client's own reconnect is disabled: after a reconnect, pull requests are lost without notice and
pending requests hang until they time out. Next: :mod:`services.common.bus.nats.jetstream`, which replaces lost
connections.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterator

from nats.aio.client import DEFAULT_INBOX_PREFIX, Client
from nats.errors import NoRespondersError
from nats.js import JetStreamContext

from schemas.bus.encoding import STREAM, node_consumer
from schemas.bus.permissions import API, CLIENT_API, NODE_ROLES, BusRole, inbox_prefix
from services.common.bus.nats.client import BusClient
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.stored.notices import Notices
from services.common.bus.settings import BusSettings
from services.common.flowcontrol.backoff import jittered
from services.common.telemetry.logs import Log

OnDenied = Callable[[str, str], None]
"""Callback for what the server denies: ``publish`` or ``subscribe``, and the subject, in lower case."""

FIRST_BACKOFF = 0.05
"""Seconds of the pause after the first failure; the limit is ``reconnect_delay``."""
POLL_INTERVAL = 0.25
"""Seconds between two checks whether the client has closed without calling back."""
MAX_DENIED = 64
"""Number of denied subjects that a connection remembers."""
_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)
_EOF_WARNING = "returning true from eof_received() has no effect when using ssl"


def _is_no_eof_warning(record: logging.LogRecord) -> bool:
    """Return whether a line of asyncio is to be logged."""
    return record.msg != _EOF_WARNING


# nats-py (2.16) begins TLS on a stream that began without; asyncio warns about such a stream whenever it ends.
logging.getLogger("asyncio").addFilter(_is_no_eof_warning)


class Caller:
    """The role of the process that connects.

    :param node: the node of a role of a node; ignored for any other role.
    """

    def __init__(self, role: str, node: str) -> None:
        self.role = role
        self.node = node if role in NODE_ROLES else None

    @property
    def inbox(self) -> str:
        """Prefix of its inboxes; the client's own one for a process that has no identity on the bus."""
        try:
            return inbox_prefix(self.role, self.node)
        except ValueError:
            return DEFAULT_INBOX_PREFIX.decode()

    @property
    def consumer(self) -> str | None:
        """Name of the consumer of a role of a node."""
        return None if self.node is None else node_consumer(self.role, self.node)


NOBODY = Caller("", "")


class BusConnection:
    """An open or lost connection to NATS.

    :ivar lost: set once, when the connection is lost or closed.
    :ivar retired: set once, when another connection replaces this one; it is closed when nobody uses it any more.
    :ivar unused: set while no consumer uses the connection.
    :ivar notices: of what the streams have stored.
    :ivar api: prefix of JetStream's requests in the account of this user.
    :ivar digest: of the files with which the connection was opened.
    """

    def __init__(
        self,
        client: Client,
        js: JetStreamContext,
        lost: asyncio.Event,
        close_timeout: float,
        *,
        api: str = API,
        digest: str = "",
        denied: deque[str] | None = None,
    ) -> None:
        self.client = client
        self.js = js
        self.lost = lost
        self.retired = asyncio.Event()
        self.unused = asyncio.Event()
        self.unused.set()
        self.notices = Notices(client)
        self.api = api
        self.digest = digest
        self._denied: deque[str] = deque(maxlen=MAX_DENIED) if denied is None else denied
        self._users = 0
        self._close_timeout = close_timeout
        self._poll_task = asyncio.create_task(self._poll_client(), name="bus-poll-client")

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        *,
        name: str,
        settings: BusSettings,
        log: Log,
        caller: Caller = NOBODY,
        jetstream: bool = True,
        on_denied: OnDenied = lambda _operation, _subject: None,
    ) -> "BusConnection":
        """Connect to NATS.

        :param caller: the role that connects.
        :param jetstream: whether the connection is for JetStream; the callout's user may request nothing of it.
        :raises OSError: no server answers (``TimeoutError`` included) or it has no TLS where it must, or a file of the
            endpoint is wrong.
        :raises nats.errors.Error: the peer is not a NATS server, or rejects the credentials.
        """
        client, lost = BusClient(endpoint, settings.dead_max_message_bytes), asyncio.Event()
        denied: deque[str] = deque(maxlen=MAX_DENIED)
        # Before the files are used: a change in the meantime is found by the next comparison.
        digest = endpoint.digest()

        async def on_closed() -> None:
            lost.set()

        async def on_error(error: Exception) -> None:
            log.debug("NATS client error", error=repr(error))
            if found := _DENIED.search(str(error)):
                operation, subject = "publish" if found[1].lower() == "publish" else "subscribe", found[2].lower()
                denied.append(subject)
                on_denied(operation, subject)

        try:
            async with asyncio.timeout(settings.connect_timeout):
                await client.connect(
                    list(endpoint.servers),
                    name=name,
                    # ADR 4: the client's own reconnect hides that pull requests are lost.
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    # Of each step; an auth callout takes its time in the last one.
                    connect_timeout=math.ceil(settings.connect_timeout),
                    # A frozen server or a broken path leaves the socket open; only missing pongs reveal it.
                    ping_interval=10,
                    max_outstanding_pings=2,
                    user_credentials=endpoint.creds,
                    nkeys_seed=endpoint.nkey,
                    token=endpoint.read_token(),
                    inbox_prefix=caller.inbox,
                    tls=endpoint.tls(),
                    error_cb=on_error,
                    closed_cb=on_closed,
                    disconnected_cb=on_closed,
                )
            api = await _find_api(client, caller, settings.api_timeout) if jetstream else API
        except BaseException:
            await _close(client, settings.close_timeout)
            raise
        js = client.jetstream(prefix=api, timeout=settings.api_timeout)
        return cls(client, js, lost, settings.close_timeout, api=api, digest=digest, denied=denied)

    @property
    def error(self) -> str:
        """The server's or the client's reason for the loss of the connection; empty if there is none."""
        return str(self.client.last_error or "")

    @property
    def last_denied(self) -> str:
        """The subject that the server has denied last; empty if there is none."""
        return self._denied[-1] if self._denied else ""

    def is_denied(self, subject: str) -> bool:
        """Return whether the server has denied this subject on this connection."""
        return subject.lower() in self._denied

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Keep a retired connection open in this block."""
        self._users += 1
        self.unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self.unused.set()

    async def close(self) -> None:
        """Close the connection; flush pending writes first, within the close timeout."""
        self.lost.set()
        self._poll_task.cancel()
        await _close(self.client, self._close_timeout)

    async def _poll_client(self) -> None:
        """Set ``lost`` when the client has closed without calling back.

        When a connection breaks while data waits to be written, nats-py (2.16) first tries to write that data. The
        error of this write aborts its closing before any callback runs.
        """
        while not self.client.is_closed:  # noqa: ASYNC110 - the client sets no event in this case
            await asyncio.sleep(POLL_INTERVAL)
        self.lost.set()


def reconnect_pause(failures: int, settings: BusSettings, rng: random.Random) -> float:
    """Return the seconds until the next attempt to connect, after so many failures in a row, at least 1."""
    limit = settings.reconnect_delay
    return jittered(failures, min(FIRST_BACKOFF, limit), limit, rng)


async def _close(client: Client, timeout: float) -> None:
    """Close a client in bounded time: after a failed TLS handshake it waits forever for a closed socket."""
    # nats-py asserts that it has tried to connect, which it has not if a file of the endpoint is wrong.
    with contextlib.suppress(TimeoutError, AssertionError):
        async with asyncio.timeout(timeout):
            await client.close()


async def _find_api(client: Client, caller: Caller, timeout: float) -> str:
    """Return the prefix of JetStream's requests: that of an account which imports them if this user is in one.

    A server without identities has one account for all, in which nobody answers to that prefix.
    """
    if caller.role == BusRole.CONTROLLER:
        return API
    request = f"STREAM.INFO.{STREAM}" if caller.consumer is None else f"CONSUMER.INFO.{STREAM}.{caller.consumer}"
    try:
        await client.request(f"{CLIENT_API}.{request}", timeout=timeout)
    except NoRespondersError:
        return API
    return CLIENT_API
