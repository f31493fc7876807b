"""The daemon's memory under malformed requests: ``make test-long`` sends 10,000, every other run 2,000.

The daemon runs in a process of its own, so that only its memory is measured.
"""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.http.client import UnixHttpClient
from tests.bench.measure import rss
from tests.support.kube.node_kube import FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

LONG = os.environ.get("HOTNIC_HYPOTHESIS_PROFILE") == "long"
FIRST, ALL = (1000, 10_000) if LONG else (200, 2000)
GROWTH = 5.0
"""MiB by which memory may grow between the first requests and the last."""


@contextlib.asynccontextmanager
async def daemon(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Run the daemon as a process; yield it and its socket once the socket exists."""
    for name in ("conf", "bin"):
        (folder / name).mkdir()
    async with serving_kube(FakeKube()) as kube:
        environ = {
            **os.environ,
            "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
            "HOTNIC_SOCKET_DIR": str(folder / "run"),
            "HOTNIC_CNI_CONF_DIR": str(folder / "conf"),
            "HOTNIC_CNI_BIN_DIR": str(folder / "bin"),
            "HOTNIC_CNI_STATE_DIR": str(folder / "state"),
            "HOTNIC_LOG_LEVEL": "error",
        }
        # A file and not a pipe: nothing reads it, and a full pipe would block the daemon.
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.multus", env=environ, stderr=log
            )
        try:
            socket = folder / "run" / "multus.sock"
            async with asyncio.timeout(30):
                while not socket.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield process, socket
        finally:
            process.terminate()
            await process.wait()


def malformed(random_: random.Random) -> bytes:
    """Return a malformed request: random bytes, JSON that is not a call, an incomplete call, or no HTTP at all."""
    body = random_.choice(
        (
            random_.randbytes(random_.randrange(200)),
            b'{"env":{"CNI_COMMAND":"ADD"},"config":"!"}',
            b'{"env":{"CNI_COMMAND":"ADD","CNI_ARGS":"%s"}}' % (b"a=b;" * random_.randrange(500)),
            b'{"env":{"CNI_COMMAND":"%d"}}' % random_.randrange(10**9),
            b"[" * random_.randrange(3000),
            b"null",
            b'{"config":"' + b"QUJD" * random_.randrange(20_000) + b'"}',
        )
    )
    path = random_.choice((b"/cni", b"/delegate", b"/%d" % random_.randrange(10**9), b"/sandboxes/%ff"))
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % path
    return random_.choice(
        (
            head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
            head + b"Content-Length: %d\r\n\r\n" % (len(body) + 7) + body,
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
            random_.randbytes(60) + b"\r\n\r\n",
        )
    )


async def send(socket: Path, request: bytes) -> bytes:
    """Send a request, close the sending side, and return the response."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(request)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.timeout(600 if LONG else 60)
async def test_malformed_requests_do_not_grow_memory(tmp_path: Path) -> None:
    random_ = random.Random(20)
    async with daemon(tmp_path) as (process, socket):

        async def some(count: int) -> float:
            for _ in range(count // 20):
                answers = await asyncio.gather(*(send(socket, malformed(random_)) for _ in range(20)))
                assert not [answer for answer in answers if answer.startswith(b"HTTP/1.1 2")]
            return rss(process.pid)

        first = await some(FIRST)
        last = await some(ALL - FIRST)
        http = UnixHttpClient(str(socket), recording_telemetry("client")[0])
        assert (await http.request("GET", "/healthz"))[0] == 200
        await http.close()
    assert last - first <= GROWTH, f"{first:.1f} MiB after {FIRST}, {last:.1f} MiB after {ALL} requests"
