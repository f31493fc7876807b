"""Reads how much of their limits the streams of the bus use, and how much of the store all streams together.

The store of an account is in JetStream's own answer. That of a server is only at its monitoring endpoint
(``http_port`` of nats-server), which an administrator may reach.
Next: :mod:`services.cli.doctor.checks.bus`.
"""

import os

import aiohttp
import msgspec

from schemas.bus.hotplug_status import BUCKET
from schemas.inputs import Edge, InputDecoder, RejectedInput
from services.cli.doctor.snapshot import BusSnapshot, NotVisible
from services.common.bus.nats.stored.reader import open_reader
from services.common.bus.protocol import BusDenied, BusUnavailable
from services.common.bus.settings import StoreUsage
from services.common.telemetry.logs import logger
from services.common.telemetry.redact import redact_addresses

MONITORING_DEADLINE = 5.0
"""Seconds for the answer of a monitoring endpoint."""
MAX_ANSWER = 1024 * 1024


class _Limits(msgspec.Struct, frozen=True):
    max_storage: int = 0


class _Server(msgspec.Struct, frozen=True):
    config: _Limits = _Limits()
    reserved_storage: int = 0
    storage: int = 0


_server = InputDecoder(Edge.BUS, _Server, max_bytes=MAX_ANSWER)


async def read_bus(url: str, monitoring: str | None = None) -> BusSnapshot | NotVisible:
    """Return the usage of hotnic's streams, of its bucket and of the stores.

    :param url: ``NATS_URL``.
    :param monitoring: address of the server's monitoring endpoint; without it, the server's store is not read.
    """
    try:
        async with open_reader(url, os.environ, log=logger("cli", "critical")) as reader:
            streams, account = await reader.read_usage(BUCKET), await reader.read_account_store()
    except BusDenied as error:
        return NotVisible(str(error))
    except BusUnavailable as error:
        return NotVisible(f"NATS at {redact_addresses(url)} does not answer: {error}")
    stores: list[StoreUsage | NotVisible] = [account] if account is not None else []
    if monitoring:
        stores.append(await read_server_store(monitoring))
    return BusSnapshot(streams, tuple(stores))


async def read_server_store(monitoring: str) -> StoreUsage | NotVisible:
    """Return the usage of a server's store.

    :param monitoring: address of its monitoring endpoint.
    """
    name = f"NATS server {redact_addresses(monitoring)}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=MONITORING_DEADLINE)) as session,
            session.get(f"{monitoring.rstrip('/')}/jsz", allow_redirects=False, raise_for_status=True) as response,
        ):
            found = _server.decode(await response.content.read(MAX_ANSWER + 1))
    except (aiohttp.ClientError, OSError, ValueError, RejectedInput) as error:
        return NotVisible(f"{name} does not tell the size of its store: {error or type(error).__name__}")
    return StoreUsage(name, found.config.max_storage, found.reserved_storage, found.storage)
