"""The client of NATS on a scripted server: what it cannot read ends the connection where others notice it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import structlog
from nats.aio.msg import Msg

from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.settings import BusSettings

INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true}\r\n'


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[BusConnection, asyncio.StreamWriter]]:
    """Provide a connection, and the stream by which its server sends."""
    server_side: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
                if not server_side.done():
                    server_side.set_result(writer)
        writer.close()
        done.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = await BusConnection.open(
            Endpoint((f"nats://127.0.0.1:{port}",)),
            name="test",
            settings=BusSettings(),
            log=structlog.get_logger(),
            jetstream=False,
        )
        try:
            yield connection, await server_side
        finally:
            await connection.close()
            async with asyncio.timeout(60):
                await done.wait()


@pytest.mark.parametrize("sent", [b"-ERR \r\n", b"INFO {\r\n", b"INFO {} {}\r\n", b"nonsense\r\n", b"x" * 1_100_000])
async def test_a_line_that_cannot_be_read_ends_the_connection(sent: bytes) -> None:
    async with connected() as (connection, server):
        server.write(sent)
        async with asyncio.timeout(60):
            await connection.lost.wait()


@pytest.mark.parametrize("size", [1, 3, 100_000])
async def test_messages_arrive_whole_however_the_stream_is_cut(size: int) -> None:
    sent = (
        b"MSG a.\x0b.b 1 5\r\nMSG \r\r\n"
        b"PING\r\n"
        b"HMSG a.\xff 1 $JS.ACK.x 18 20\r\nNATS/1.0\r\nb: c\r\n\r\n\r\n\r\n"
        b"MSG a.c 1 0\r\n\r\n"
    )
    async with connected() as (connection, server):
        received: asyncio.Queue[Msg] = asyncio.Queue()
        await connection.client.subscribe("a.>", cb=received.put)
        for start in range(0, len(sent), size):
            server.write(sent[start : start + size])
            await server.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            found = [await received.get() for _ in range(3)]
    assert [(msg.subject, msg.data) for msg in found] == [
        ("a.\ufffd.b", b"MSG \r"),
        ("a.\ufffd", b"\r\n"),
        ("a.c", b""),
    ]
    assert found[1].headers == {"b": "c"}
