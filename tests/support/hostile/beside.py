"""A hostile tenant beside the caller: started, let loose, and sent away, each by one call."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

import msgspec

from lab.layout import NODE_NAME
from tests.support.hostile.tenant import DEADLINE, Attacked, Options
from tests.support.lab.running import SAMPLE_VM, Lab


class TenantProcess:
    """The process of a tenant that has settled; created by :func:`hostile_tenant`."""

    def __init__(self, process: asyncio.subprocess.Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    async def attack(self) -> Attacked:
        """Have it attack, and return what it did once it is done."""
        self._tell()
        return msgspec.json.decode(await self._line(self._seconds + DEADLINE), type=Attacked)

    async def leave(self) -> None:
        """Have it delete everything of its own, and wait for its end."""
        self._tell()
        async with asyncio.timeout(2 * DEADLINE):
            assert await self._process.wait() == 0, "the hostile tenant could not delete its namespace"

    def _tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self._process.stdout.readline()
        assert line, "the hostile tenant has failed; its error is above"
        return line


@contextlib.asynccontextmanager
async def hostile_tenant(lab: Lab, seconds: float, *, seed: str) -> AsyncIterator[TenantProcess]:
    """Start a tenant that attacks for some seconds, and wait until it has settled; it ends with the block."""
    options = Options(
        kubeconfig=str(lab.layout.kubeconfig),
        nats=lab.unrestricted_nats,
        socket=str(lab.layout.run / "silent.sock"),
        node=NODE_NAME,
        victim=("default", SAMPLE_VM),
        seconds=seconds,
        seed=seed,
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.hostile.tenant", msgspec.json.encode(options).decode()),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    tenant = TenantProcess(process, seconds)
    try:
        assert await tenant._line(DEADLINE) == b"ready\n"
        yield tenant
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
