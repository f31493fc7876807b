"""Relay NATS connections from the machine's loopback interface to nats-server inside the lab.

The listening socket was created outside and stays in that network namespace; the connections to nats-server are made
inside. The API server needs no relay, because it listens on such a socket itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

CHUNK = 64 * 1024


async def serve(listener: socket.socket, port: int) -> asyncio.Server:
    """Relay every connection to `listener` to 127.0.0.1:`port` of the current network namespace."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, TimeoutError):
            # nats-server is down: close the connection, so that the client sees what it would see without a relay.
            writer.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(reader, inner_writer))
            both.create_task(copy(inner_reader, writer))

    return await asyncio.start_server(carry, sock=listener)


async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy `source` to `sink` until its end, then close `sink`."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()
