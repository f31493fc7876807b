"""Relay connections between the machine and the lab's network namespace: NATS and the API inwards, traces outwards.

A socket stays in the network namespace in which it was created. The listeners for NATS and the API were created
outside, and the connections to their servers are made inside. For traces the listener is inside, and each connection to
the collector is created by a thread that is in the machine's network namespace meanwhile; `holder.py` passed a
descriptor of it. The lab's own API server needs no relay, because it listens on a socket from outside itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from lab.supervisor.collector import COLLECTOR_PORT, Collector

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CHUNK: Final = 64 * 1024
CONNECT_TIMEOUT: Final = 5.0
"""Seconds until the other side has accepted a connection."""


async def serve_inwards(listener: socket.socket, port: int) -> asyncio.Server:
    """Relay every connection to `listener` to 127.0.0.1:`port` of the current network namespace."""
    return await _serve(listener, lambda: asyncio.open_connection("127.0.0.1", port))


async def serve_collector(collector: Collector, outside: int) -> asyncio.Server:
    """Relay every connection to `COLLECTOR_PORT` of the current network namespace to a collector.

    :param outside: descriptor of the network namespace from which the collector is reached.
    """
    # Imported here because a lab without a collector does not need it.
    from services.common.netlink.errors import NetnsGone
    from services.common.netlink.netns_thread import run_in_netns

    async def connect() -> Streams:
        try:
            sock = await run_in_netns(outside, lambda: collector.connect(CONNECT_TIMEOUT), timeout=CONNECT_TIMEOUT)
        except NetnsGone as error:
            raise ConnectionError(str(error)) from error
        sock.setblocking(False)
        return await asyncio.open_connection(sock=sock)

    return await _serve(socket.create_server(("127.0.0.1", COLLECTOR_PORT)), connect)


async def _serve(listener: socket.socket, connect: Callable[[], Awaitable[Streams]]) -> asyncio.Server:
    """Relay every connection to `listener` to the one that `connect` makes."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                other_reader, other_writer = await connect()
        except (OSError, TimeoutError):
            # The other side is down: close the connection, so that the client sees what it would see without a relay.
            writer.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(reader, other_writer))
            both.create_task(copy(other_reader, writer))

    return await asyncio.start_server(carry, sock=listener)


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy `source` to `sink` until its end, then close `sink`."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()
