"""Carries NATS connections from the machine's loopback to nats-server inside the lab.

The listening socket was made outside and keeps that network namespace; connections out of it are made from inside.
The apiserver needs no relay: it listens on such a socket itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

CHUNK = 64 * 1024


async def serve(listener: socket.socket, port: int) -> asyncio.Server:
    """Relay every connection to `listener` to 127.0.0.1:`port` of this network namespace."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, TimeoutError):
            # nats-server is down: the client sees a closed connection, as it would without a relay.
            writer.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(reader, inner_writer))
            both.create_task(pump(inner_reader, writer))

    return await asyncio.start_server(carry, sock=listener)


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy `source` to `sink` until its end, then close `sink`."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()
