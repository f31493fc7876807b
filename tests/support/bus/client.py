"""A client of nats-py itself, for tests that inspect a server or publish what no role would."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import nats
from nats.aio.client import Client

from services.common.bus.nats.credentials import Endpoint


@contextlib.asynccontextmanager
async def nats_client(
    environment: Mapping[str, str], *, errors: asyncio.Queue[str] | None = None
) -> AsyncIterator[Client]:
    """Connect as hotnic does with these variables, and close the connection at the end of the block.

    :param errors: gets the texts of the server's errors.
    """
    endpoint = Endpoint.from_url(environment["NATS_URL"], environment)

    async def on_error(error: Exception) -> None:
        if errors is not None:
            errors.put_nowait(str(error))

    client = await nats.connect(
        list(endpoint.servers),
        tls=endpoint.tls(),
        nkeys_seed=endpoint.nkey,
        error_cb=on_error,
        allow_reconnect=False,
    )
    try:
        yield client
    finally:
        await client.close()
