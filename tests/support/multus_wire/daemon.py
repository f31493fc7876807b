"""A daemon that answers requests with upstream's recorded responses, byte by byte, and keeps the requests.

:mod:`tests.support.node.fake_multus` is the daemon for tests whose responses were not recorded.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.multus_wire.recording import V4_3_0, HttpMessage, WireExchange, response_of

_HEALTHY = response_of(V4_3_0.exchange("healthz-get"))
_NO_SUCH_PATH = response_of(V4_3_0.exchange("no-such-path"))
_ADDED = response_of(V4_3_0.exchange("delegate-add"))
_DELETED = response_of(V4_3_0.exchange("delegate-del"))


def call_of(request: HttpMessage) -> str:
    """Return command, link name and network of a CNI request, such as ``ADD net1 net-a``."""
    env, config = request.environment, json.loads(request.cni_config or b"{}")
    return f"{env['CNI_COMMAND']} {env.get('CNI_IFNAME') or '(nameless)'} {config.get('name')}"


@dataclass
class RecordedDaemon:
    """The daemon.

    :ivar requests: the CNI requests, in order.
    :ivar others: all other requests.
    :ivar next: the responses to the next CNI requests, whatever they are; ``None`` closes the connection.
    """

    requests: list[HttpMessage] = field(default_factory=list)
    others: list[HttpMessage] = field(default_factory=list)
    next: list[HttpMessage | None] = field(default_factory=list)
    _recorded: dict[str, HttpMessage | None] = field(default_factory=dict)

    def answer(self, exchanges: Iterable[WireExchange]) -> None:
        """From now on, answer the calls of these exchanges as they were answered."""
        self._recorded |= {call_of(exchange.request): exchange.response for exchange in exchanges}

    @property
    def calls(self) -> list[str]:
        """The CNI requests as :func:`call_of` names them."""
        return [call_of(request) for request in self.requests]

    def _response(self, request: HttpMessage) -> HttpMessage | None:
        if not (request.start.startswith("POST ") and request.path in ("/cni", "/delegate")):
            self.others.append(request)
            return _HEALTHY if request.path == "/healthz" else _NO_SUCH_PATH
        self.requests.append(request)
        if self.next:
            return self.next.pop(0)
        if (call := call_of(request)) in self._recorded:
            return self._recorded[call]
        # Not recorded: a link name that only hotnic gives, or a DEL that only hotnic sends.
        link = request.environment["CNI_IFNAME"]
        if request.environment["CNI_COMMAND"] != "ADD":
            return _DELETED
        return replace(_ADDED, body=_ADDED.body.replace(b'"x1"', f'"{link}"'.encode()))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(HttpMessage.parse_head(head).headers.get("content-length", "0"))
            response = self._response(HttpMessage.parse(head + await reader.readexactly(length)))
            if response is not None:
                writer.write(response.encode())
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def serving_recorded(socket: Path) -> AsyncIterator[RecordedDaemon]:
    """Serve on a unix socket while the context is open."""
    daemon = RecordedDaemon()
    server = await asyncio.start_unix_server(daemon._handle, socket)
    try:
        yield daemon
    finally:
        server.close()
        await server.wait_closed()
