"""What a client without a certificate, or without a complete request, can take from a server."""

import asyncio
import contextlib
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from services.common.http.deadlines import MAX_WAITING, WRITE_BUFFER, Connections
from services.common.http.server import make_app, serve
from services.common.http.tls import ServerTls
from services.common.http.tls_connection import READ_BUFFER
from tests.support.kube.certs import Authority
from tests.support.telemetry.spans import recording_telemetry

COUNT = 40
"""Connections whose memory is measured."""


async def large(_request: web.Request) -> web.Response:
    return web.Response(body=b"x" * 1_000_000)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server_context(authority: Authority) -> ssl.SSLContext:
    pair, tls = authority.server(), ServerTls(client_ca=authority.ca.read_text())
    tls.use(pair.cert.read_bytes(), pair.key.read_bytes())
    return tls.context


def app() -> web.Application:
    found = make_app(telemetry=recording_telemetry()[0], max_body=100, body_deadline=1000.0)
    found.router.add_get("/large", large)
    return found


@contextlib.asynccontextmanager
async def limited(tls: ssl.SSLContext | None, limit: int) -> AsyncIterator[tuple[Connections, int]]:
    """Serve with a limit of waiting connections; yield the limits and the port."""
    runner = web.AppRunner(app(), access_log=None)
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, tls=tls, limit=limit)
    listening = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    try:
        yield connections, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the server has ended a connection."""
    async with asyncio.timeout(50):
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                continue


async def test_a_handshake_takes_little_memory(authority: Authority) -> None:
    """asyncio has no setting for the buffer of TLS; this notices when it no longer reads ours."""
    async with limited(server_context(authority), 2 * COUNT) as (connections, port):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(COUNT)]
            async with asyncio.timeout(50):
                while len(connections._waiting) < COUNT:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            taken = (tracemalloc.get_traced_memory()[0] - before) / COUNT
        finally:
            tracemalloc.stop()
        assert taken < 4 * READ_BUFFER
        for client in clients:
            client.close()


async def test_handshakes_that_do_not_proceed_make_room_for_others(authority: Authority) -> None:
    async with limited(server_context(authority), 2) as (connections, port):
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        await ended(clients[0][0])
        await ended(clients[1][0])
        context = ssl.create_default_context(cafile=str(authority.ca))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(50):
            assert len(await reader.read()) > 1_000_000
        for other in [*(found for _, found in clients), writer]:
            other.close()
        async with asyncio.timeout(50):
            while connections._waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_connections_without_a_certificate_do_not_end_those_with_one(authority: Authority) -> None:
    """Whoever reaches the port would cut off the API server from the api."""
    pair = authority.client("front-proxy")
    async with limited(server_context(authority), 2) as (connections, port):
        context = ssl.create_default_context(cafile=str(authority.ca))
        context.load_cert_chain(pair.cert, pair.key)
        verified = [await asyncio.open_connection("127.0.0.1", port, ssl=context) for _ in range(3)]
        # They have a limit of their own.
        await ended(verified[0][0])
        for _, writer in verified[1:]:
            writer.write(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        for reader, _ in verified[1:]:
            async with asyncio.timeout(50):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        await ended(others[2][0])
        for reader, writer in verified[1:]:
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(50):
                assert len(await reader.read()) > 1_000_000
        for _, writer in [*verified, *others]:
            writer.close()
        async with asyncio.timeout(50):
            while connections._waiting or connections._verified:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_burst_of_connections_does_not_end_one_whose_request_is_there() -> None:
    async with serve(app(), "127.0.0.1:0") as address:
        to = ("127.0.0.1", int(address.rpartition(":")[2]))
        # All of them wait in the kernel's queue: the server runs in this thread.
        first = socket.create_connection(to)
        first.sendall(b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        others = [socket.create_connection(to) for _ in range(2 * MAX_WAITING)]
        reader, writer = await asyncio.open_connection(sock=first)
        async with asyncio.timeout(50):
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        for other in others:
            other.close()
        writer.close()


async def test_bodies_that_do_not_end_make_room_for_others() -> None:
    async with limited(None, 2) as (_, port):
        clients = []
        for _ in range(3):
            clients.append(await asyncio.open_connection("127.0.0.1", port))
            reader, writer = clients[-1]
            writer.write(b"PUT /large HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\nhalf")
            async with asyncio.timeout(50):
                assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        # One of them, but not the last.
        endings = [asyncio.create_task(ended(reader)) for reader, _ in clients[:2]]
        done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        for ending in done:
            ending.result()
        for ending in endings:
            ending.cancel()
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_client_that_does_not_read_is_left(authority: Authority, encrypted: bool) -> None:
    tls = server_context(authority) if encrypted else None
    async with serve(app(), "127.0.0.1:0", ssl=tls, writing=0.1) as address:
        context = ssl.create_default_context(cafile=str(authority.ca)) if encrypted else None
        port = int(address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1024)
        # More than the kernel's buffers take.
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        async with asyncio.timeout(50):
            # Nothing is read until the end, which an attempt to write meets.
            while not writer.is_closing():
                writer.write(b"\r\n")
                await asyncio.sleep(0.02)
        assert not reader.at_eof() or reader.exception() is not None
        writer.close()


async def test_requests_of_a_client_that_does_not_read_wait_unread() -> None:
    class Recorded(asyncio.Transport):
        reading = True

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            self.high = high

        def pause_reading(self) -> None:
            self.reading = False

        def resume_reading(self) -> None:
            self.reading = True

    connection, transport = Connections(asyncio.Protocol)(), Recorded()
    connection.connection_made(transport)
    assert transport.high == WRITE_BUFFER
    connection.pause_writing()
    assert not transport.reading
    connection.resume_writing()
    assert transport.reading
    connection.connection_lost(None)
