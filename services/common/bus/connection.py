"""One connection to NATS, from connecting to its loss. A lost one is replaced, never revived.

The client's own reconnecting is switched off: a connection that comes back by itself hides that its pulls are gone
and lets requests hang until they time out. Who makes a new session, and when: :mod:`services.common.bus.jetstream`.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext
from structlog.typing import FilteringBoundLogger

from services.common.bus.settings import BusSettings

LOOK = 0.25
"""Seconds between two looks at whether the client has closed without a word."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where NATS is and how to be let in; files are PEM (and NATS' own format for ``creds``).

    :ivar servers: URLs, ``nats://`` or ``tls://``.
    """

    servers: tuple[str, ...]
    creds: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @classmethod
    def of(cls, url: str, environ: Mapping[str, str]) -> "Endpoint":
        """From ``NATS_URL`` (several, parted by commas) and the variables that NATS' own tools read beside it."""
        return cls(
            tuple(part.strip() for part in url.split(",") if part.strip()),
            creds=environ.get("NATS_CREDS"),
            ca=environ.get("NATS_CA"),
            cert=environ.get("NATS_CERT"),
            key=environ.get("NATS_KEY"),
        )

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, where something of it is set; ``tls://`` alone means the machine's trust store.

        :raises OSError: a file is missing or not PEM (``ssl.SSLError`` is an ``OSError``).
        """
        if not (self.ca or self.cert):
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


class BusConnection:
    """A connection that stands, or stood.

    :ivar lost: set once, when it is gone.
    """

    def __init__(self, client: Client, js: JetStreamContext, lost: asyncio.Event, close_timeout: float) -> None:
        self.client = client
        self.js = js
        self.lost = lost
        self._close_timeout = close_timeout
        self._looking = asyncio.create_task(self._look(), name="bus-session")

    @classmethod
    async def open(
        cls, endpoint: Endpoint, *, name: str, settings: BusSettings, log: FilteringBoundLogger
    ) -> "BusConnection":
        """Connect.

        :raises OSError: nobody answers there (``TimeoutError`` included), or a TLS file is wrong.
        :raises nats.errors.Error: somebody else answers, or does not let us in.
        """
        client, lost = Client(), asyncio.Event()

        async def gone() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            log.debug("the NATS client reports", error=repr(error))

        try:
            async with asyncio.timeout(settings.connect_timeout):
                await client.connect(
                    list(endpoint.servers),
                    name=name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=2,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    user_credentials=endpoint.creds,
                    tls=endpoint.tls(),
                    error_cb=failed,
                    closed_cb=gone,
                    disconnected_cb=gone,
                )
        except BaseException:
            await _close(client, settings.close_timeout)
            raise
        return cls(client, client.jetstream(timeout=settings.api_timeout), lost, settings.close_timeout)

    async def close(self) -> None:
        """Leave; what the client wrote is flushed first, within the time for closing."""
        self.lost.set()
        self._looking.cancel()
        await _close(self.client, self._close_timeout)

    async def _look(self) -> None:
        """Notice what the client does not tell.

        When a connection breaks while something waits to be written, nats-py (2.16) tries to write that first; the
        error of this attempt ends its closing before anyone is called back.
        """
        while not self.client.is_closed:  # noqa: ASYNC110 - that no event is set is the fault
            await asyncio.sleep(LOOK)
        self.lost.set()


async def _close(client: Client, timeout: float) -> None:
    """Close in bounded time: after a failed TLS handshake the client waits for ever for a socket that is closed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await client.close()
