"""Watches that deliver nothing, as those of a real API server on a quiet type, over hours of virtual time."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from structlog.testing import LogCapture

from schemas.kubernetes.objects import PODS
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.session.auth import ClusterAccess
from services.common.kube.session.transport import Transport
from tests.support.telemetry.spans import recording_telemetry

HOUR = 3600.0


@dataclass
class QuietServer:
    """An API server that sends neither events nor bookmarks.

    :ivar obeys: whether it ends a watch after ``timeoutSeconds``.
    :ivar compacts: whether the version of the first watch has expired when the second one asks for it, and so on.
    :ivar answers: whether it answers watches at all.
    """

    obeys: bool = True
    compacts: bool = False
    answers: bool = True
    lists: int = 0
    watches: list[tuple[float, str, int]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if not request.query.get("watch"):
            self.lists += 1
            return web.json_response({"kind": "PodList", "metadata": {"resourceVersion": f"{self.lists}0"}})
        version, timeout = request.query["resourceVersion"], int(request.query["timeoutSeconds"])
        expired = self.compacts and any(version == seen for _, seen, _ in self.watches)
        self.watches.append((asyncio.get_running_loop().time(), version, timeout))
        if expired:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.json_response(status, status=410)
        if not self.answers:
            await asyncio.Event().wait()
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(timeout if self.obeys else 100 * HOUR)
        return response


@dataclass
class Reflected:
    """What a reflector did."""

    states: list[bool] = field(default_factory=list)
    logs: LogCapture = field(default_factory=LogCapture)


@asynccontextmanager
async def reflecting(server: QuietServer, folder: Path, kubeconfig: bytes) -> AsyncIterator[Reflected]:
    # A unix socket delivers at once, so the clock cannot overtake a response.
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "api.sock")).start()
    (folder / "kubeconfig").write_bytes(kubeconfig)
    access = ClusterAccess(str(folder / "kubeconfig"))
    await access.load()
    session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(folder / "api.sock")))
    seen = Reflected()
    reflector = Reflector(
        Kube(Transport(access, session, session, recording_telemetry()[0], "test")),
        PODS,
        on_change=lambda _key, _pod: None,
        on_state=lambda ok, _why: seen.states.append(ok),
        log=structlog.wrap_logger(None, processors=[seen.logs]),
    )
    task = asyncio.create_task(reflector.run())
    try:
        yield seen
        assert not task.done(), "the reflector ended by itself"
    finally:
        task.cancel()
        await asyncio.wait([task])
        await session.close()
        await runner.cleanup()


@pytest.mark.looptime
async def test_an_idle_watch_is_no_fault(tmp_path: Path, make_kubeconfig: Any) -> None:
    server = QuietServer()
    async with reflecting(server, tmp_path, make_kubeconfig("http://api")) as seen:
        await asyncio.sleep(4 * HOUR)
    assert (seen.logs.entries, seen.states, server.lists) == ([], [True], 1)
    assert {version for _, version, _ in server.watches} == {"10"}
    opened = [at for at, _, _ in server.watches]
    asked = [timeout for _, _, timeout in server.watches]
    # As client-go: between 5 and 10 minutes, not always the same, and the server ends the watch.
    assert all(300 <= timeout <= 600 for timeout in asked)
    assert len(set(asked)) > len(asked) // 2
    assert [later - earlier for earlier, later in itertools.pairwise(opened)] == pytest.approx(asked[:-1], abs=1)


@pytest.mark.looptime
async def test_every_expired_version_of_an_idle_watch_is_listed_again_at_once(
    tmp_path: Path, make_kubeconfig: Any
) -> None:
    server = QuietServer(compacts=True)
    async with reflecting(server, tmp_path, make_kubeconfig("http://api")) as seen:
        await asyncio.sleep(4 * HOUR)
    assert (seen.logs.entries, seen.states) == ([], [True])
    assert server.lists > 10


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("server", "first", "last"),
    [(QuietServer(obeys=False), 300, 660), (QuietServer(answers=False), 1, 60)],
    ids=["never ends", "never answers"],
)
async def test_a_watch_that_the_server_neither_answers_nor_ends_is_given_up(
    tmp_path: Path, make_kubeconfig: Any, server: QuietServer, first: float, last: float
) -> None:
    async with reflecting(server, tmp_path, make_kubeconfig("http://api")) as seen:
        await asyncio.sleep(700)
    (started, _, asked), (again, version, _) = server.watches[:2]
    assert first <= again - started <= last
    assert (version, server.lists) == ("10", 1)
    if server.answers:
        # The server has the time that it was given.
        assert again - started > asked
    assert seen.logs.entries[0]["reason"] == "Timeout"
