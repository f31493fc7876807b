"""A guest agent on a unix socket that answers as it is told: for the conversation with one, not for a guest."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class FakeAgent:
    """What the agent answers. ``silent`` agents read and say nothing, as a guest that boots."""

    def __init__(self) -> None:
        self.nics: list[dict[str, Any]] = []
        self.silent = False
        self.noise = b""
        self.error: dict[str, str] | None = None
        self.asked = asyncio.Event()
        self.connections = 0

    def shows(self, name: str, mac: str, *ips: str) -> None:
        """Add a NIC."""
        addresses = [{"ip-address": ip, "ip-address-type": "ipv4", "prefix": 24} for ip in ips]
        self.nics.append({"name": name, "hardware-address": mac, "ip-addresses": addresses})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        self.connections += 1
        try:
            while line := await reader.readline():
                self.asked.set()
                if self.silent:
                    continue
                request = json.loads(line.lstrip(b"\xff"))
                if request["execute"] == "guest-sync-delimited":
                    writer.write(self.noise + b"\xff" + _line({"return": request["arguments"]["id"]}))
                elif self.error is not None:
                    writer.write(_line({"error": self.error}))
                else:
                    writer.write(_line({"return": self.nics}))
        finally:
            writer.close()


def _line(answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"


@asynccontextmanager
async def fake_agent(path: Path) -> AsyncIterator[FakeAgent]:
    """An agent behind a socket for as long as the context lasts."""
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
