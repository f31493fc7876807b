"""A process that serves its own QMP socket sends messages without end, or a text without end."""

import asyncio
import contextlib
import io
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from lab.guest.double import GREETING, listener, read_requests
from services.common.guest.port import GuestNotReachable, GuestRefused
from services.common.guest.qmp_client import MAX_ERROR_TEXT, MAX_UNREQUESTED, QmpClient
from services.common.telemetry.logs import configure

RUNNING = msgspec.Raw(b'"running"')


class FloodingMachine:
    """A machine that answers each command by what the test sets, which it repeats.

    :ivar answer: the answer to a command after the negotiation.
    :ivar endless: whether it sends the answer without end.
    :ivar connections: the number of clients so far.
    """

    def __init__(self) -> None:
        self.answer = b'{"return": "running", "id": "__qmp#00000"}\n'
        self.endless = False
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        self.connections += 1
        try:
            writer.write(json.dumps(GREETING).encode() + b"\n")
            async for request in read_requests(reader):
                if request["execute"] == "qmp_capabilities":
                    writer.write(b'{"return": {}}\n')
                    continue
                writer.write(self.answer)
                while self.endless:
                    writer.write(self.answer * 1000)
                    await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(folder: str, name: str) -> AsyncIterator[tuple[FloodingMachine, QmpClient]]:
    """Serve a machine for the duration of the context."""
    machine = FloodingMachine()
    path = str(Path(folder) / f"{name}.sock")
    with listener(path) as listening:
        server = await asyncio.start_unix_server(machine.serve, sock=listening)
        client = QmpClient(path, deadline=60)
        yield machine, client
        await client.close()
        machine.endless = False
        server.close()


@pytest.fixture
def folder() -> Iterator[str]:
    # The system's temporary directory, for a path that is short enough for a unix socket.
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield path


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a role logs, with the libraries' lines."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    configure("handler", form="json", stream=stream)
    yield stream
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("unit", [b"{}\n", b'{"event":"X","data":{}}\n', b'{"return":1,"id":"__qmp#77777"}\n'])
async def test_a_machine_that_sends_without_end_is_left_alone_and_delays_nothing_else(
    folder: str, log: io.StringIO, unit: bytes
) -> None:
    turns: list[int] = []

    async def sibling() -> None:
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    async with serving(folder, "a") as (flooding, client), serving(folder, "b") as (_, neighbour):
        await neighbour.connect()
        flooding.answer, flooding.endless = unit, True
        other = asyncio.create_task(sibling())
        flooded = asyncio.create_task(client.execute("query-status"))
        assert await neighbour.execute("query-status") == RUNNING
        with pytest.raises(GuestNotReachable, match="too many messages"):
            await flooded
        other.cancel()
        assert len(turns) >= MAX_UNREQUESTED
        for _ in range(3):
            with pytest.raises(GuestNotReachable, match="too many messages"):
                await client.connect()
        assert flooding.connections == 1
        flooding.answer, flooding.endless = FloodingMachine().answer, False
        # The pause is over.
        client._flooded_until = client._unrequested = 0.0
        assert await client.execute("query-status") == RUNNING
    assert log.getvalue() == ""


async def test_a_new_connection_is_no_new_allowance(folder: str) -> None:
    async with serving(folder, "a") as (machine, client):
        machine.answer = b"{}\n" * (MAX_UNREQUESTED - 10) + machine.answer
        assert await client.execute("query-status") == RUNNING
        await client.close()
        with pytest.raises(GuestNotReachable, match="too many messages"):
            await client.execute("query-status")
        assert machine.connections == 2


async def test_a_watch_of_a_machine_that_sends_without_end_ends(folder: str) -> None:
    async with serving(folder, "a") as (flooding, client):
        flooding.answer, flooding.endless = b'{"event":"X","data":{}}\n', True
        async with asyncio.TaskGroup() as group:
            group.create_task(start_flood(client))
            seen = [event async for event in client.events(lambda message: message["event"])]
        assert set(seen) == {"X"}
        assert len(seen) <= MAX_UNREQUESTED + 1000


async def start_flood(client: QmpClient) -> None:
    """Execute the command that starts the flood."""
    with pytest.raises(GuestNotReachable, match="too many messages"):
        await client.execute("query-status")


@pytest.mark.parametrize("kind", ["GenericError", "DeviceNotFound"])
async def test_the_text_of_a_refusal_is_cut(folder: str, kind: str) -> None:
    error = {"class": kind, "desc": "out of order\x1b\n" + "x" * 1_000_000}
    async with serving(folder, "a") as (machine, client):
        machine.answer = json.dumps({"error": error, "id": "__qmp#00000"}).encode() + b"\n"
        with pytest.raises(GuestRefused, match="out of order") as caught:
            await client.execute("device_add")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2 * MAX_ERROR_TEXT


@pytest.mark.parametrize(
    "answer", [b'{"error": {"class": "GenericError", "desc": "%s"}}', b'{"id": "__qmp#00000", "x": "%s"}']
)
async def test_the_text_of_a_malformed_answer_is_cut(folder: str, answer: bytes) -> None:
    async with serving(folder, "a") as (machine, client):
        machine.answer = answer % (b"x" * 1_000_000) + b"\n"
        with pytest.raises(GuestNotReachable) as caught:
            await client.execute("query-status")
    assert len(str(caught.value)) < 2 * MAX_ERROR_TEXT
