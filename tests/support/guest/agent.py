"""A fake guest agent on a unix socket, with the responses that the test sets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class FakeAgent:
    """The state of a fake guest agent.

    :ivar nics: the NICs of the response.
    :ivar silent: whether the agent reads requests without a response, like the agent of a booting guest.
    :ivar noise: bytes before the response to a sync, as if left from an earlier client.
    :ivar error: the error of the response, in place of the NICs.
    :ivar raw: the response, a line, in place of the NICs.
    :ivar requested: set at the first request.
    :ivar connections: the number of clients so far.
    """

    def __init__(self) -> None:
        self.nics: list[dict[str, Any]] = []
        self.silent = False
        self.noise = b""
        self.error: dict[str, str] | None = None
        self.raw: bytes | None = None
        self.requested = asyncio.Event()
        self.connections = 0

    def add_nic(self, name: str, mac: str, *ips: str) -> None:
        """Add a NIC to the response."""
        addresses = [{"ip-address": ip, "ip-address-type": "ipv4", "prefix": 24} for ip in ips]
        self.nics.append({"name": name, "hardware-address": mac, "ip-addresses": addresses})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        self.connections += 1
        try:
            while line := await reader.readline():
                self.requested.set()
                if self.silent:
                    continue
                request = json.loads(line.lstrip(b"\xff"))
                if request["execute"] == "guest-sync-delimited":
                    writer.write(self.noise + b"\xff" + _line({"return": request["arguments"]["id"]}))
                elif self.raw is not None:
                    writer.write(self.raw + b"\n")
                elif self.error is not None:
                    writer.write(_line({"error": self.error}))
                else:
                    writer.write(_line({"return": self.nics}))
        finally:
            writer.close()


def _line(response: object) -> bytes:
    return json.dumps(response).encode() + b"\n"


@asynccontextmanager
async def fake_agent(path: Path) -> AsyncIterator[FakeAgent]:
    """Serve a fake agent on a socket for the duration of the context."""
    agent = FakeAgent()
    tasks: set[asyncio.Task[None]] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await agent.serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            tasks.discard(task)

    server = await asyncio.start_unix_server(client, path)
    try:
        yield agent
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await server.wait_closed()
