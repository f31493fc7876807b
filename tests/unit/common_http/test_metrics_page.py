"""Whoever reads metrics, and however often, does not keep a role from its work."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.metrics import Observation

from services.common.http.metrics_page import MAX_RUNNING, MetricsPage
from services.common.http.server import make_app, serve
from services.common.runtime.health import Readiness, health_app
from tests.support.telemetry.spans import recording_telemetry

LARGE = b"x" * 8_000_000
"""More than the buffers of a connection hold, so that a response waits for its reader."""


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def client_of(socket: Path, app: web.Application) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        serve(app, f"unix:{socket}", shutdown=0.1),
        aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(socket))) as client,
    ):
        yield client


def app_of(page: MetricsPage) -> web.Application:
    app = make_app(telemetry=recording_telemetry()[0], max_body=1024, errors="text", traced=False)
    app.router.add_get("/metrics", page.get)
    return app


async def begin_to_read(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for the metrics, and read no more than the status of the response."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readexactly(12) == b"HTTP/1.1 200"
    return reader, writer


async def until_served(client: aiohttp.ClientSession) -> None:
    """Ask for the metrics until one of the requests in progress has ended."""
    async with asyncio.timeout(20):
        while True:
            async with client.get("/metrics") as response:
                if response.status == 200:
                    return


async def test_metrics_are_rendered_once_per_second(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    rendered: list[float] = []
    clock = Clock()

    def observe(_options: object) -> Iterator[Observation]:
        rendered.append(clock.now)
        yield Observation(len(rendered))

    telemetry.meter.create_observable_gauge("renders", callbacks=[observe])
    async with client_of(tmp_path / "s", health_app(telemetry, Readiness(), clock)) as client:
        for second in (100.0, 101.0, 102.5):
            for request in range(200):
                clock.now = second + request / 201
                async with client.get("/metrics") as response:
                    assert response.status == 200
                    assert f" {len(rendered)}.0\n" in await response.text()
    assert rendered == [100.0, 101.0, 102.5]


async def test_readers_beyond_the_limit_are_sent_away_until_others_have_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = MetricsPage(lambda: LARGE)
    async with client_of(tmp_path / "s", app_of(page)) as client:
        writers = [(await begin_to_read(tmp_path / "s"))[1] for _ in range(MAX_RUNNING)]
        async with client.get("/metrics") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert await response.text() == f"{MAX_RUNNING} requests for metrics are in progress\n"
        for writer in writers:
            writer.close()
        await until_served(client)
    assert caplog.text == ""


async def test_readers_that_do_not_read_lose_their_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(tmp_path / "s", app_of(MetricsPage(lambda: LARGE, deadline=0.05))) as client:
        connections = [await begin_to_read(tmp_path / "s") for _ in range(MAX_RUNNING)]
        await until_served(client)
        # The one that began first has lost its connection, so there was room for the client.
        assert len(await connections[0][0].read(-1)) < len(LARGE)
        for _, writer in connections:
            writer.close()
    assert caplog.text == ""
