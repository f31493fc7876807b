"""A fake multus daemon on a unix socket; it answers ``/delegate`` as scripted and records the requests."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from schemas.multus import InterfaceAttributes, RecordedAttachment, SandboxRecord

Response = tuple[int, Any]
"""Status and body: a JSON value, text, or ``None`` for no body."""


@dataclass
class Call:
    """One request."""

    env: dict[str, str]
    config: bytes
    attributes: dict[str, Any] | None
    traceparent: str | None
    network: str | None = None

    @property
    def verb(self) -> str:
        """Command and interface, such as ``ADD pod7e0055a6880``."""
        return f"{self.env['CNI_COMMAND']} {self.env['CNI_IFNAME']}"


@dataclass
class FakeMultus:
    """The daemon.

    :ivar script: responses for the next calls, in order; without one, :meth:`succeed` makes the response.
    :ivar during: awaited before each response.
    :ivar records: responses of ``GET /sandboxes/<id>``, by sandbox id; without one it is 404.
    :ivar unreadable: messages of the next responses of ``GET /sandboxes/<id>``, in order, which are 500.
    :ivar serves_records: whether 404 has a CNI error, as hotnic's; upstream's daemon knows no such path.
    :ivar record_requests: number of requests for a record.
    """

    calls: list[Call] = field(default_factory=list)
    script: list[Response] = field(default_factory=list)
    during: Callable[[Call], Awaitable[None]] | None = None
    records: dict[str, SandboxRecord] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    serves_records: bool = True
    record_requests: int = 0

    def record(self, sandbox_id: str, pod_uid: str, *attachments: RecordedAttachment) -> None:
        """Add a record of a sandbox."""
        self.records[sandbox_id] = SandboxRecord(sandbox_id=sandbox_id, pod_uid=pod_uid, attachments=list(attachments))

    @property
    def verbs(self) -> list[str]:
        """The commands of the calls, in order."""
        return [call.verb for call in self.calls]

    def succeed(self, call: Call) -> Response:
        """Return a result with one link in the sandbox and an address for ADD, and no body for other commands."""
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
            body.get("network"),
        )
        self.calls.append(call)
        if self.during is not None:
            await self.during(call)
        status, response = self.script.pop(0) if self.script else self.succeed(call)
        if response is None:
            return web.Response(status=status)
        # The content type of upstream's responses is always text/plain.
        return web.Response(status=status, text=response if isinstance(response, str) else json.dumps(response))

    async def _sandbox(self, request: web.Request) -> web.Response:
        self.record_requests += 1
        if self.unreadable:
            error = {"cniVersion": "1.1.0", "code": 5, "msg": self.unreadable.pop(0)}
            return web.json_response(error, status=500)
        record = self.records.get(request.match_info["id"])
        if not self.serves_records:
            return web.Response(status=404)
        if record is None:
            return web.json_response(cni_error(3, "sandbox has no record")[1], status=404)
        return web.Response(body=msgspec.json.encode(record))


def recorded(interface: str, network: str, owner: str, *, ifindex: int = 5, **requested: Any) -> RecordedAttachment:
    """Return an attachment for a record.

    :param ifindex: index of its link; 0: it has none.
    :param requested: ``mac``, ``ips`` and ``cni_args``.
    """
    return RecordedAttachment(
        interface=interface,
        network=network,
        owner=owner,
        hot_plugged=owner == "delegate",
        config_digest="d",
        ifindex=ifindex,
        requested=InterfaceAttributes(**requested),
    )


def cni_error(code: int, msg: str, details: str = "") -> Response:
    """Return a CNI error response of the daemon."""
    return 400, {"code": code, "msg": msg, "details": details}


@asynccontextmanager
async def serving_multus(path: str, daemon: FakeMultus) -> AsyncIterator[FakeMultus]:
    """Serve the daemon on a unix socket."""
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
