"""One connection to NATS, from connecting to its loss. A lost connection is replaced, never reused.

The client's own reconnect is disabled: after a reconnect, pull requests are lost without notice and
pending requests hang until they time out. Next: :mod:`services.common.bus.nats.jetstream`, which replaces lost
connections.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext

from services.common.bus.settings import BusSettings
from services.common.telemetry.logs import Log

POLL_INTERVAL = 0.25
"""Seconds between two checks whether the client has closed without calling back."""


class Endpoint(msgspec.Struct, frozen=True):
    """Address of NATS and the credentials to connect.

    :ivar servers: URLs, ``nats://`` or ``tls://``.
    :ivar creds: path of a credentials file in NATS' own format.
    :ivar ca: path of the CA certificates, PEM.
    :ivar cert: path of the client certificate, PEM.
    :ivar key: path of the client key, PEM.
    """

    servers: tuple[str, ...]
    creds: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @classmethod
    def from_url(cls, url: str, environ: Mapping[str, str]) -> "Endpoint":
        """Return the endpoint of a URL and of the environment variables that NATS' own tools read.

        :param url: ``NATS_URL``; several URLs are separated by commas.
        :param environ: ``NATS_CREDS``, ``NATS_CA``, ``NATS_CERT`` and ``NATS_KEY`` are read.
        """
        return cls(
            tuple(part.strip() for part in url.split(",") if part.strip()),
            creds=environ.get("NATS_CREDS"),
            ca=environ.get("NATS_CA"),
            cert=environ.get("NATS_CERT"),
            key=environ.get("NATS_KEY"),
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context, or ``None`` when neither a CA nor a certificate is configured.

        Without a context a ``tls://`` URL uses the trust store of the machine.

        :raises OSError: a file is missing or not PEM (``ssl.SSLError`` is an ``OSError``).
        """
        if not (self.ca or self.cert):
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


class BusConnection:
    """An open or lost connection to NATS.

    :ivar lost: set once, when the connection is lost or closed.
    """

    def __init__(self, client: Client, js: JetStreamContext, lost: asyncio.Event, close_timeout: float) -> None:
        self.client = client
        self.js = js
        self.lost = lost
        self._close_timeout = close_timeout
        self._poll_task = asyncio.create_task(self._poll_client(), name="bus-poll-client")

    @classmethod
    async def open(cls, endpoint: Endpoint, *, name: str, settings: BusSettings, log: Log) -> "BusConnection":
        """Connect to NATS.

        :raises OSError: no server answers (``TimeoutError`` included), or a TLS file is wrong.
        :raises nats.errors.Error: the peer is not a NATS server, or rejects the credentials.
        """
        client, lost = Client(), asyncio.Event()

        async def on_closed() -> None:
            lost.set()

        async def on_error(error: Exception) -> None:
            log.debug("NATS client error", error=repr(error))

        try:
            async with asyncio.timeout(settings.connect_timeout):
                await client.connect(
                    list(endpoint.servers),
                    name=name,
                    # ADR 4: the client's own reconnect hides that pull requests are lost.
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=2,
                    # A frozen server or a broken path leaves the socket open; only missing pongs reveal it.
                    ping_interval=10,
                    max_outstanding_pings=2,
                    user_credentials=endpoint.creds,
                    tls=endpoint.tls(),
                    error_cb=on_error,
                    closed_cb=on_closed,
                    disconnected_cb=on_closed,
                )
        except BaseException:
            await _close(client, settings.close_timeout)
            raise
        return cls(client, client.jetstream(timeout=settings.api_timeout), lost, settings.close_timeout)

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


async def _close(client: Client, timeout: float) -> None:
    """Close a client in bounded time: after a failed TLS handshake it waits forever for a closed socket."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await client.close()
