"""When a started process is ready: its port accepts, its unix socket accepts, its /readyz says so.

Each probe tries again quickly until it succeeds; the deadline is the caller's. `before_exit` gives up at once when
the process has ended, so that a wrong flag does not look like a slow start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from services.lab.processes import Child, EarlyExitError

INTERVAL: Final = 0.02
"""Seconds between two tries."""

TRY: Final = 2.0
"""Seconds one try may take."""


async def port(number: int) -> None:
    """Return once 127.0.0.1:`number` accepts a connection."""
    while True:
        try:
            async with asyncio.timeout(TRY):
                _, writer = await asyncio.open_connection("127.0.0.1", number)
        except (OSError, TimeoutError):
            await asyncio.sleep(INTERVAL)
        else:
            writer.close()
            return


async def unix(path: Path) -> None:
    """Return once a process accepts on the unix socket `path`."""
    while True:
        try:
            async with asyncio.timeout(TRY):
                _, writer = await asyncio.open_unix_connection(str(path))
        except (OSError, TimeoutError):
            await asyncio.sleep(INTERVAL)
        else:
            writer.close()
            return


async def readyz(path: Path) -> None:
    """Return once GET /readyz on the unix socket `path` is answered with 200."""
    while True:
        status, _ = await ask(path, "/readyz")
        if status == 200:
            return
        await asyncio.sleep(INTERVAL)


async def ask(path: Path, resource: str) -> tuple[int, str]:
    """Return status and body of GET `resource` on the unix socket `path`; (0, why) when there is no answer."""
    try:
        async with asyncio.timeout(TRY):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(f"GET {resource} HTTP/1.0\r\nHost: lab\r\n\r\n".encode())
                answer = (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return 0, str(error) or type(error).__name__
    head, _, body = answer.partition("\r\n\r\n")
    words = head.split(" ", 2)
    return (int(words[1]), body.strip()) if len(words) > 1 and words[1].isdigit() else (0, "no HTTP answer")


async def before_exit(child: Child, probe: Coroutine[None, None, None]) -> None:
    """Await `probe`; raises EarlyExitError when `child` ends before."""
    probing = asyncio.ensure_future(probe)
    try:
        racing: set[asyncio.Future[Any]] = {probing, child.exit}
        await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        if child.exit.done():
            raise EarlyExitError(child)
        await probing
    finally:
        probing.cancel()
