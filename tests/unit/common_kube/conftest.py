"""A scripted API server over plain HTTP, and a client connected to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from services.common.kube.client import Kube
from tests.support.telemetry.spans import recording_telemetry

Response = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Script:
    """A server that responds from two queues, one for watches and one for other requests, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.arrived = asyncio.Semaphore(0)
        self.responses: asyncio.Queue[Response] = asyncio.Queue()
        self.watches: asyncio.Queue[Response] = asyncio.Queue()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        self.arrived.release()
        queue = self.watches if request.query.get("watch") else self.responses
        return await (await queue.get())(request)

    def respond(self, body: Any, status: int = 200, **headers: str) -> None:
        async def respond(_request: web.Request) -> web.StreamResponse:
            raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
            return web.Response(status=status, body=raw, content_type="application/json", headers=headers)

        self.responses.put_nowait(respond)

    def listing(self, *objects: dict[str, Any], version: str = "10") -> None:
        self.respond({"kind": "PodList", "metadata": {"resourceVersion": version}, "items": list(objects)})

    def watch(self) -> "Stream":
        stream = Stream()
        self.watches.put_nowait(stream.serve)
        return stream

    def refuse_watch(self, status: int, reason: str, message: str = "") -> None:
        async def refuse(_request: web.Request) -> web.StreamResponse:
            return web.json_response(failure(status, reason, message), status=status)

        self.watches.put_nowait(refuse)


class Stream:
    """A watch that the test controls."""

    def __init__(self) -> None:
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.opened = asyncio.Event()
        self._drop = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.opened.set()
        while (chunk := await self._out.get()) is not None:
            await response.write(chunk)
        if self._drop and request.transport is not None:
            request.transport.abort()
        return response

    def raw(self, chunk: bytes) -> None:
        self._out.put_nowait(chunk)

    def send(self, kind: str, obj: Any) -> None:
        self.raw(msgspec.json.encode({"type": kind, "object": obj}) + b"\n")

    def end(self) -> None:
        self._out.put_nowait(None)

    def drop(self) -> None:
        self._drop = True
        self._out.put_nowait(None)


def failure(code: int, reason: str, message: str = "", **details: Any) -> dict[str, Any]:
    """Return a Status as an API server sends it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message or reason,
        "reason": reason,
        "details": details,
        "code": code,
    }


def pod(name: str, version: str, *, uid: str = "", node: str = "n1", namespace: str = "ns") -> dict[str, Any]:
    """Return a pod as the API server sends it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}", "resourceVersion": version},
        "spec": {"nodeName": node, "containers": [{"name": "compute"}]},
        "status": {"phase": "Running"},
    }


def kubeconfig(server: str, user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None) -> bytes:
    """Return a kubeconfig for one server."""
    return msgspec.yaml.encode(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
            "users": [{"name": "u", "user": user or {}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "from-context"}}],
            "current-context": "test",
        }
    )


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """Run the scripted server."""
    server = Script()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def recorded() -> Any:
    """Return a recording telemetry and its finished spans."""
    return recording_telemetry()


@pytest.fixture
async def kube(script: Script, tmp_path: Path, recorded: Any) -> AsyncIterator[Kube]:
    """Return a client of the scripted server."""
    path = tmp_path / "kubeconfig"
    path.write_bytes(kubeconfig(script.url, {"token": "t0ken"}))
    async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="hotnic-test/1") as client:
        yield client


@pytest.fixture
def make_pod() -> Callable[..., dict[str, Any]]:
    """Return a function that creates pods."""
    return pod


@pytest.fixture
def make_failure() -> Callable[..., dict[str, Any]]:
    """Return a function that creates Status objects."""
    return failure


@pytest.fixture
def make_kubeconfig() -> Callable[..., bytes]:
    """Return a function that creates kubeconfigs."""
    return kubeconfig
