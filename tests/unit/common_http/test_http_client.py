"""Requests over a unix socket: responses, classified failures, trace context."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.trace import SpanKind, StatusCode

from services.common.http.client import BadResponse, ConnectFailed, TimedOut, UnixHttpClient
from services.common.http.server import make_app, serve
from tests.support.telemetry.spans import named, recording_telemetry, tree


@asynccontextmanager
async def connected_client(path: Path, telemetry: Any) -> AsyncIterator[UnixHttpClient]:
    client = UnixHttpClient(str(path), telemetry)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def raw_server(path: Path, response: bytes | None) -> AsyncIterator[None]:
    """Run a server that sends these bytes and closes the connection; ``None``: it sends nothing."""

    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        await reader.readuntil(b"\r\n\r\n")
        if response is None:
            await reader.read()
        else:
            writer.write(response)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(handle, path):
        yield
        await asyncio.gather(*connections)


async def test_client_and_server_spans_are_in_one_trace(tmp_path: Path) -> None:
    telemetry, spans = recording_telemetry()
    app = make_app(telemetry=telemetry, max_body=1000, errors="text")

    async def delegate(request: web.Request) -> web.Response:
        return web.json_response({"got": await request.json()}, status=201)

    app.router.add_post("/delegate", delegate)
    path = tmp_path / "s"
    async with serve(app, f"unix:{path}"), connected_client(path, telemetry) as client:
        with telemetry.tracer.start_as_current_span("caller"):
            assert await client.request("POST", "/delegate", json={"a": 1}) == (201, b'{"got": {"a": 1}}')
            assert await client.request("GET", "/nowhere") == (404, b"no such path: /nowhere\n")
    finished = spans.get_finished_spans()
    assert tree(finished) == [
        ("caller", [("POST /delegate", [("POST /delegate", [])]), ("GET /nowhere", [("GET", [])])])
    ]
    not_found = named(finished, "GET /nowhere")
    assert (not_found.kind, not_found.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)


async def test_a_missing_socket_is_connect_failed(tmp_path: Path) -> None:
    telemetry, spans = recording_telemetry()
    async with connected_client(tmp_path / "absent", telemetry) as client:
        with pytest.raises(ConnectFailed, match="No such file"):
            await client.request("GET", "/x")
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "ConnectFailed"
    assert span.attributes["server.address"] == str(tmp_path / "absent")
    assert "server.port" not in span.attributes


async def test_a_timeout_is_timed_out(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    async with raw_server(tmp_path / "s", None), connected_client(tmp_path / "s", telemetry) as client:
        with pytest.raises(TimedOut, match=r"within 0\.1 s"):
            await client.request("POST", "/x", body=b"x", timeout=0.1)


@pytest.mark.parametrize(
    "response", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"]
)
async def test_a_malformed_response_is_bad_response(tmp_path: Path, response: bytes) -> None:
    telemetry, _ = recording_telemetry()
    async with raw_server(tmp_path / "s", response), connected_client(tmp_path / "s", telemetry) as client:
        with pytest.raises(BadResponse):
            await client.request("GET", "/x")


async def test_a_restarted_server_is_reached_at_once(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    path = tmp_path / "s"
    async with connected_client(path, telemetry) as client:
        for _ in range(2):
            async with serve(make_app(telemetry=telemetry, max_body=10), f"unix:{path}"):
                assert (await client.request("GET", "/x"))[0] == 404
