"""Who serves a multus socket: hotnic's daemon is told from another one, from silence and from nobody."""

import asyncio
import socket
from pathlib import Path

from aiohttp import web

from services.common.http.server import make_app, serve
from services.common.node.daemon_socket import DaemonKind, probe_daemon
from tests.support.node.multus_daemon import running_daemon
from tests.support.telemetry.spans import recording_telemetry


async def healthz(_request: web.Request) -> web.Response:
    return web.Response()


async def probe(path: Path) -> DaemonKind:
    return await asyncio.to_thread(probe_daemon, path)


async def test_hotnics_daemon(tmp_path: Path) -> None:
    async with running_daemon(tmp_path, tmp_path) as daemon:
        assert await probe(daemon.socket) is DaemonKind.HOTNIC
    assert await probe(daemon.socket) is DaemonKind.NONE


async def test_another_daemon(tmp_path: Path) -> None:
    """Upstream's daemon, which is Go's ServeMux, answers an unknown path with a line of text."""
    app = make_app(telemetry=recording_telemetry()[0], max_body=10, errors="text")
    app.router.add_get("/healthz", healthz)
    async with serve(app, f"unix:{tmp_path}/multus.sock"):
        assert await probe(tmp_path / "multus.sock") is DaemonKind.OTHER


async def test_a_daemon_whose_answer_is_nested_too_deeply_is_another_one(tmp_path: Path) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=404, text='{"x":' + "[" * 5000)

    app = make_app(telemetry=recording_telemetry()[0], max_body=10, errors="text")
    app.router.add_get("/sandboxes/none", answer)
    async with serve(app, f"unix:{tmp_path}/multus.sock"):
        assert await probe(tmp_path / "multus.sock") is DaemonKind.OTHER


async def test_silence_and_nobody(tmp_path: Path) -> None:
    path = tmp_path / "multus.sock"
    assert await probe(path) is DaemonKind.NONE
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert await probe(path) is DaemonKind.NONE
        bound.listen()
        assert await probe(path) is DaemonKind.SILENT


def test_a_daemon_that_accepts_no_connection_is_not_nobody(tmp_path: Path) -> None:
    path = tmp_path / "multus.sock"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as waiting:
        stuck.bind(str(path))
        stuck.listen(0)
        waiting.connect(str(path))
        # Its queue is full: a further connection is refused with EAGAIN.
        assert probe_daemon(path) is DaemonKind.SILENT
