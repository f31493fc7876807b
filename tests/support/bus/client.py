"""A client of nats-py itself, for tests that inspect a server or publish what no role would."""

import contextlib
from collections.abc import AsyncIterator, Mapping

import nats
from nats.aio.client import Client

from services.common.bus.nats.connection import Endpoint


@contextlib.asynccontextmanager
async def nats_client(environment: Mapping[str, str]) -> AsyncIterator[Client]:
    """Connect as hotnic does with these variables, and close the connection at the end of the block."""
    endpoint = Endpoint.from_url(environment["NATS_URL"], environment)
    client = await nats.connect(list(endpoint.servers), tls=endpoint.tls(), allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()
