"""A multus daemon on a unix socket that answers ``/delegate`` as the test scripted, and keeps what it was sent."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from schemas.multus import InterfaceAttributes, RecordedAttachment, SandboxRecord

Answer = tuple[int, Any]
"""Status and body: a JSON value, text, or ``None`` for no body."""


@dataclass
class Call:
    """One request."""

    env: dict[str, str]
    config: bytes
    attributes: dict[str, Any] | None
    traceparent: str | None

    @property
    def verb(self) -> str:
        """``ADD pod7e0055a6880``."""
        return f"{self.env['CNI_COMMAND']} {self.env['CNI_IFNAME']}"


@dataclass
class FakeMultus:
    """The daemon.

    :ivar script: answers for the next calls, in order; when it is empty, :meth:`succeed` answers.
    :ivar during: awaited before each answer.
    :ivar records: by sandbox id, what ``GET /sandboxes/<id>`` answers; without one it answers 404, as upstream's does.
    :ivar looked: how often it was asked for one.
    """

    calls: list[Call] = field(default_factory=list)
    script: list[Answer] = field(default_factory=list)
    during: Callable[[Call], Awaitable[None]] | None = None
    records: dict[str, SandboxRecord] = field(default_factory=dict)
    looked: int = 0

    def record(self, sandbox_id: str, pod_uid: str, *attachments: RecordedAttachment) -> None:
        """Have a record of a sandbox."""
        self.records[sandbox_id] = SandboxRecord(sandbox_id=sandbox_id, pod_uid=pod_uid, attachments=list(attachments))

    @property
    def verbs(self) -> list[str]:
        """What was asked, in order."""
        return [call.verb for call in self.calls]

    def succeed(self, call: Call) -> Answer:
        """An ADD's result with one link in the sandbox, an address, a route; nothing for other verbs."""
        if call.env["CNI_COMMAND"] != "ADD":
            return 200, None
        link = {
            "name": call.env["CNI_IFNAME"],
            "mac": "02:00:00:00:00:0A",
            "mtu": 1450,
            "sandbox": call.env["CNI_NETNS"],
        }
        host = {"name": "veth0", "mac": "02:00:00:00:00:0b"}
        ips = [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 1}]
        return 200, {"Result": {"cniVersion": "1.1.0", "interfaces": [host, link], "ips": ips}}

    async def _delegate(self, request: web.Request) -> web.Response:
        body = await request.json()
        call = Call(
            body["env"],
            base64.b64decode(body.get("config", "")),
            body.get("interfaceAttributes"),
            request.headers.get("traceparent"),
        )
        self.calls.append(call)
        if self.during is not None:
            await self.during(call)
        status, answer = self.script.pop(0) if self.script else self.succeed(call)
        if answer is None:
            return web.Response(status=status)
        # Upstream's answers are labelled text/plain, whatever they hold.
        return web.Response(status=status, text=answer if isinstance(answer, str) else json.dumps(answer))

    async def _sandbox(self, request: web.Request) -> web.Response:
        self.looked += 1
        record = self.records.get(request.match_info["id"])
        return web.Response(status=404) if record is None else web.Response(body=msgspec.json.encode(record))


def recorded(interface: str, network: str, owner: str, **requested: Any) -> RecordedAttachment:
    """An attachment in a record; ``requested``: ``mac``, ``ips``, ``cni_args``."""
    return RecordedAttachment(
        interface=interface,
        network=network,
        owner=owner,
        hot_plugged=owner == "delegate",
        config_digest="d",
        requested=InterfaceAttributes(**requested),
    )


def cni_error(code: int, msg: str, details: str = "") -> Answer:
    """A CNI error as the daemon answers it."""
    return 400, {"code": code, "msg": msg, "details": details}


@asynccontextmanager
async def serving_multus(path: str, daemon: FakeMultus) -> AsyncIterator[FakeMultus]:
    """Serve it on a unix socket."""
    app = web.Application()
    app.router.add_post("/delegate", daemon._delegate)
    app.router.add_get("/sandboxes/{id}", daemon._sandbox)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    try:
        yield daemon
    finally:
        await runner.cleanup()
