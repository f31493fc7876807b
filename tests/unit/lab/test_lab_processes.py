"""The supervisor's child processes, its control socket and the relay, with real processes and sockets."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.namespaces import control
from lab.supervisor import readiness, relay, requests
from lab.supervisor.processes import EarlyExitError, Processes, ProcessSpec, last_lines


@pytest.fixture
async def processes() -> AsyncIterator[Processes]:
    """A set of no children; it stops the processes that a test starts."""
    supervised = Processes()
    yield supervised
    for name in list(supervised.children):
        await supervised.stop(name)
    supervised.close()


def spec(tmp_path: Path, code: str, name: str = "child", grace: float = 5.0) -> ProcessSpec:
    """A Python one-liner as a process."""
    return ProcessSpec(name, (sys.executable, "-I", "-S", "-c", code), tmp_path / f"{name}.log", {}, grace=grace)


async def test_ended_child_is_listed_as_exited(processes: Processes, tmp_path: Path) -> None:
    child = processes.start(spec(tmp_path, "print('last words'); raise SystemExit(7)"))
    assert await child.exit == 7
    assert (child.state, child.code) == ("exited", 7)
    assert last_lines(child.spec.log, 3) == ["last words"]


async def test_child_can_be_stopped_and_restarted(processes: Processes, tmp_path: Path) -> None:
    forever = spec(tmp_path, "import time; time.sleep(60)")
    child = processes.start(forever)
    with pytest.raises(ValueError, match="is already running"):
        processes.start(forever)
    await processes.stop("child")
    assert (child.state, child.code) == ("stopped", -15)
    assert processes.start(forever).state == "running"


async def test_child_that_ignores_sigterm_is_killed(processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    ignore_sigterm = (
        f"import signal,socket; signal.signal(15, 1); s = socket.socket(1); s.bind({str(path)!r}); s.listen(); "
    )
    child = processes.start(spec(tmp_path, ignore_sigterm + "signal.pause()\nwhile True: signal.pause()", grace=0.05))
    await readiness.wait_unless_exited(child, readiness.wait_for_socket(path))
    await processes.stop("child")
    assert child.code == -9


async def test_failed_run_raises_with_log_tail(processes: Processes, tmp_path: Path) -> None:
    await processes.run(spec(tmp_path, "pass"), timeout=10)
    with pytest.raises(EarlyExitError, match=r"code 3(.|\n)*no such image"):
        await processes.run(spec(tmp_path, "print('no such image'); raise SystemExit(3)"), timeout=10)
    with pytest.raises(TimeoutError):
        await processes.run(spec(tmp_path, "import time; time.sleep(60)"), timeout=0.05)


async def test_waiting_for_readiness_ends_when_child_exits(processes: Processes, tmp_path: Path) -> None:
    child = processes.start(spec(tmp_path, "print('bad flag'); raise SystemExit(2)"))
    with pytest.raises(EarlyExitError, match="bad flag"):
        await readiness.wait_unless_exited(child, readiness.wait_for_socket(tmp_path / "never.sock"))


async def test_control_socket_works_below_long_directory(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    descriptor = os.open(folder, os.O_PATH)

    async def answer(request: control.Message) -> AsyncIterator[control.Message]:
        yield {"half": 1}
        yield {"ok": True, "echo": request["verb"]}

    server = await requests.serve(Path(f"/proc/self/fd/{descriptor}/control.sock"), answer)
    async with server:
        path = folder / "control.sock"
        answers = await asyncio.to_thread(lambda: list(control.request(path, {"verb": "hello"})))
        assert answers == [{"half": 1}, {"ok": True, "echo": "hello"}]
        assert path.stat().st_mode & 0o777 == 0o600
    os.close(descriptor)
    with pytest.raises(control.UnreachableError):
        list(control.request(folder / "nobody.sock", {"verb": "hello"}))


async def test_relay_copies_both_ways_and_closes() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    inner = await asyncio.start_server(echo, "127.0.0.1", 0)
    outer = socket.create_server(("127.0.0.1", 0))
    relayed = await relay.serve_inwards(outer, inner.sockets[0].getsockname()[1])
    async with inner, relayed:
        reader, writer = await asyncio.open_connection(*outer.getsockname())
        writer.write(b"PING\n")
        assert await reader.read() == b"PING\n"
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_relay_closes_connection_when_server_is_down() -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    outer = socket.create_server(("127.0.0.1", 0))
    async with await relay.serve_inwards(outer, port):
        reader, writer = await asyncio.open_connection(*outer.getsockname())
        assert await reader.read() == b""
        writer.close()
