"""Reads how much of their limits the streams of the bus use.

Next: :mod:`services.cli.doctor.checks.bus`.
"""

import os

from schemas.bus.hotplug_status import BUCKET
from services.cli.doctor.snapshot import NotVisible
from services.common.bus.nats.reader import open_reader
from services.common.bus.protocol import BusUnavailable
from services.common.bus.settings import StreamUsage
from services.common.telemetry.logs import logger
from services.common.telemetry.redact import redact_addresses


async def read_bus(url: str) -> tuple[StreamUsage, ...] | NotVisible:
    """Return the usage of hotnic's streams and of its bucket.

    :param url: ``NATS_URL``.
    """
    try:
        async with open_reader(url, os.environ, log=logger("cli", "critical")) as reader:
            return await reader.read_usage(BUCKET)
    except BusUnavailable as error:
        return NotVisible(f"NATS at {redact_addresses(url)} does not answer: {error}")
