"""The connection to NATS for commands that read it: address, credentials, and the error when NATS does not answer.

The connection to a cluster is :mod:`services.cli.cluster`. Next: :mod:`services.common.bus.nats.stored.reader`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from services.cli.errors import RefusedByServer, Unreachable
from services.common.telemetry.redact import redact_addresses

if TYPE_CHECKING:
    from services.common.bus.nats.stored.reader import StreamReader

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

NATS_HINT = (
    "Set --nats-url URL or NATS_URL; NATS_NKEY (or NATS_CREDS), NATS_CA, NATS_CERT and NATS_KEY name files.\n"
    "The address of the lab's NATS server: hotnic lab status"
)


def bus_option(command: F) -> F:
    """Add ``--nats-url``."""
    option = click.option(
        "--nats-url",
        metavar="URL",
        envvar="NATS_URL",
        help="Address of the NATS server; several are separated by commas (default: NATS_URL).",
    )
    return option(command)


def run_with_bus(url: str | None, work: Callable[[StreamReader], Coroutine[Any, Any, T]]) -> T:
    """Connect to NATS, run ``work(reader)`` and disconnect.

    :param url: as the user gave it; ``None`` when there is none.
    :raises Unreachable: no address is given, or NATS does not answer.
    :raises RefusedByServer: NATS denies something to the identity of the command.
    """
    from services.common.bus.nats.stored.reader import open_reader
    from services.common.bus.protocol import BusDenied, BusUnavailable
    from services.common.telemetry.logs import logger

    address = required_url(url)

    async def connected() -> T:
        async with open_reader(address, os.environ, log=logger("cli", "critical")) as reader:
            return await work(reader)

    try:
        return asyncio.run(connected())
    except BusDenied as error:
        raise RefusedByServer(f"NATS at {redact_addresses(address)}: {error}") from error
    except BusUnavailable as error:
        raise Unreachable(f"NATS at {redact_addresses(address)} does not answer: {error}\n{NATS_HINT}") from error


def required_url(url: str | None) -> str:
    """Return the address of NATS.

    :param url: as the user gave it; ``None`` when there is none.
    :raises Unreachable: no address is given.
    """
    if not url:
        raise Unreachable(f"no NATS address is set\n{NATS_HINT}")
    return url
