"""``hotnic healthcheck`` against the real health endpoints, and against what is no role at all."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.cli.__main__ import main
from services.cli.commands.healthcheck import MAX_RESPONSE, parse, reason
from services.common.http.server import serve
from services.common.runtime.health import Readiness, health_app
from services.common.telemetry import configure


@asynccontextmanager
async def served(listen: str, **conditions: str) -> AsyncIterator[str]:
    """Serve the health endpoints; a condition with a text is not met for this reason."""
    readiness = Readiness()
    for name, why in conditions.items():
        readiness.set(name, not why, why)
    async with serve(health_app(configure("test"), readiness), listen) as address:
        yield address


async def check(monkeypatch: pytest.MonkeyPatch, address: str, *arguments: str) -> int:
    """Run the command in a thread, because this one serves."""
    monkeypatch.setenv("HOTNIC_HEALTH_LISTEN", address)
    return await asyncio.to_thread(main, ["healthcheck", *arguments])


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{}/health.sock"])
async def test_ready_role(
    listen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(listen.format(tmp_path), kube="") as address:
        assert await check(monkeypatch, address) == 0
    assert capsys.readouterr() == ("ready\n", "")


async def test_of_several_addresses_the_socket_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may hold the port: whoever it is, it must not answer in place of the role."""
    async with served("127.0.0.1:0", kube="held") as port, served(f"unix:{tmp_path}/health.sock", kube="") as socket:
        assert await check(monkeypatch, f"{port},{socket}") == 0
        assert await check(monkeypatch, f"{port} , {socket}") == 0
        assert await check(monkeypatch, port) == 1


async def test_role_that_listens_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served("0.0.0.0:0", kube="") as address:
        port = address.rpartition(":")[2]
        assert address.startswith("0.0.0.0:")
        assert [await check(monkeypatch, form + port) for form in ("0.0.0.0:", ":", "localhost:")] == [0, 0, 0]


async def test_unmet_conditions_are_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served("127.0.0.1:0", started="", kube="no list yet", lease="not the leader") as address:
        assert await check(monkeypatch, address) == 1
        shown = capsys.readouterr()
        assert await check(monkeypatch, address, "--live") == 0
    assert shown.out == ""
    assert shown.err == (
        f"Error: the role at {address} is not ready: kube failed: no list yet; lease failed: not the leader\n"
    )
    assert capsys.readouterr().out == "live\n"


async def test_nothing_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
        for address in (closed, f"unix:{tmp_path}/none.sock"):
            assert await check(monkeypatch, address) == 1
            assert f"cannot check the role at {address}: " in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "  ", "nonsense", "127.0.0.1:http", "fd:3:x"])
async def test_address_that_is_none(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await check(monkeypatch, address) == 1
    assert "HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param(b"", "not HTTP", id="closed at once"),
        pytest.param(b"+OK NATS\r\n", "not HTTP", id="another protocol"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * MAX_RESPONSE, "longer than", id="endless"),
    ],
)
async def test_listener_that_is_no_role(
    answer: bytes,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await check(monkeypatch, f"127.0.0.1:{port}") == 1
    assert problem in capsys.readouterr().err


def test_listener_that_never_responds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HOTNIC_HEALTH_LISTEN", f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert main(["healthcheck", "--timeout", "100ms"]) == 1
    assert time.monotonic() - began >= 0.1
    assert "timed out" in capsys.readouterr().err


def test_responses() -> None:
    assert parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n[-]kube failed\n") == (503, "[-]kube failed\n")
    assert reason(500, "something broke\n") == "HTTP status 500"
