"""A watch whose API server disappears without closing the connection, as a machine that loses its power does."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from schemas.kubernetes.objects import PODS
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.session.auth import ClusterAccess
from services.common.kube.session.transport import Transport
from services.common.telemetry.logs import logger
from tests.support.kube.node_kube import write_kubeconfig
from tests.support.node import netns
from tests.support.telemetry.spans import recording_telemetry

HERE = Path("/proc/self/ns/net")
SERVER, CLIENT = "198.51.100.1", "198.51.100.2"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    """Return the namespace of the API server's machine, which one link connects with this one."""
    with netns.namespace(tmp_path) as inner:
        netns.veth(inner, "eth0", HERE, "to-server")
        netns.ip(inner, "link", "set", "eth0", "up")
        netns.ip(inner, "address", "add", f"{SERVER}/24", "dev", "eth0")
        netns.ip(HERE, "address", "add", f"{CLIENT}/24", "dev", "to-server")
        try:
            yield inner
        finally:
            netns.ip(HERE, "link", "delete", "to-server")


@asynccontextmanager
async def serving(machine: Path) -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """Serve an empty list and endless watches; yield the address and the versions that watches begin with."""
    opened: asyncio.Queue[str] = asyncio.Queue()

    async def handle(request: web.Request) -> web.StreamResponse:
        if not request.query.get("watch"):
            return web.json_response({"kind": "PodList", "metadata": {"resourceVersion": "7"}})
        response = web.StreamResponse()
        await response.prepare(request)
        opened.put_nowait(request.query["resourceVersion"])
        await asyncio.Event().wait()
        return response

    def listen() -> socket.socket:
        return socket.create_server((SERVER, 0))

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = netns.run_in_netns(machine, listen)
    await web.SockSite(runner, listener).start()
    try:
        yield f"http://{SERVER}:{listener.getsockname()[1]}", opened
    finally:
        await runner.cleanup()


async def test_a_watch_notices_that_the_machine_is_gone(tmp_path: Path, machine: Path) -> None:
    async with serving(machine) as (url, opened):
        access = ClusterAccess(write_kubeconfig(tmp_path / "kubeconfig", url))
        await access.load()
        states: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        async with Kube(Transport.open(access, recording_telemetry()[0], "test", peer_deadline=2)) as kube:
            reflector = Reflector(
                kube,
                PODS,
                on_change=lambda _key, _pod: None,
                on_state=lambda ok, why: states.put_nowait((ok, why)),
                log=logger("test"),
            )
            task = asyncio.create_task(reflector.run())
            try:
                async with asyncio.timeout(45):
                    assert (await opened.get(), await states.get()) == ("7", (True, ""))
                    netns.ip(machine, "link", "set", "eth0", "down")
                    ok, why = await states.get()
                    assert not ok
                    assert "Connection timed out" in why
                    netns.ip(machine, "link", "set", "eth0", "up")
                    # The version is still good: no list.
                    assert (await opened.get(), await states.get()) == ("7", (True, ""))
            finally:
                task.cancel()
                await asyncio.wait([task])
