"""Finding the bus as NATS' own tools do, for the few commands that read it, and saying what is wrong when it is away.

Commands about a cluster find that by :mod:`services.cli.cluster`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click

from services.cli.errors import Unreachable

if TYPE_CHECKING:
    from services.common.bus.reader import Reader

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

HOW_TO_POINT = (
    "Name it with --nats-url URL or the variable NATS_URL (NATS_CREDS, NATS_CA, NATS_CERT and NATS_KEY name files);\n"
    "the lab's is printed by: hotnic lab status"
)


def bus_option(command: F) -> F:
    """Add ``--nats-url``."""
    option = click.option(
        "--nats-url", metavar="URL", envvar="NATS_URL", help="Where NATS is (NATS_URL; several, parted by commas)."
    )
    return option(command)


def ask(url: str | None, work: Callable[[Reader], Coroutine[Any, Any, T]]) -> T:
    """Connect, run ``work(reader)`` and disconnect.

    :raises Unreachable: there is no bus, or it does not answer.
    """
    from services.common.bus.protocol import BusUnavailable
    from services.common.bus.reader import reading
    from services.common.logs import logger

    where = named(url)

    async def connected() -> T:
        async with reading(where, os.environ, log=logger("cli", "critical")) as reader:
            return await work(reader)

    try:
        return asyncio.run(connected())
    except BusUnavailable as error:
        raise Unreachable(f"NATS at {shown(where)} does not answer: {error}\n{HOW_TO_POINT}") from error


def named(url: str | None) -> str:
    """The address, which has to be named.

    :raises Unreachable: it is not.
    """
    if not url:
        raise Unreachable(f"no bus is named.\n{HOW_TO_POINT}")
    return url


def shown(url: str) -> str:
    """An address without what lets one in."""
    return ",".join(_shown(part.strip()) for part in url.split(","))


def _shown(url: str) -> str:
    if "@" not in url:
        return url
    parts = urlsplit(url if "//" in url else f"//{url}")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
