"""Process 1 of a container: starts a part of the lab, marks it ready, and stops it at SIGTERM.

It reaps orphans, such as containerd's shims. When one of its processes ends by itself, it exits with code 1, so that
Docker restarts the container as a whole. Their output is the container's.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from lab.supervisor.processes import Processes

OUTPUT: Final = Path("/dev/stdout")
"""The log of every process: the container's own."""

READY: Final = Path("/tmp/ready")
"""File that exists while the part is ready; docker-compose.yml checks it."""


async def run(start: Callable[[Processes], Awaitable[None]]) -> int:
    """Start a part and run it until SIGTERM or SIGINT; return the exit code.

    :param start: starts the part's processes and returns once it is ready.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Process 1 of a PID namespace ignores signals for which it has no handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    READY.unlink(missing_ok=True)
    processes = Processes()
    stopping = asyncio.ensure_future(stop.wait())
    try:
        starting = asyncio.ensure_future(_start(start, processes))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            # Until it has ended, it changes the processes, which are stopped below.
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        await starting
        exits: set[asyncio.Future[Any]] = {child.exit for child in processes.children.values()}
        await asyncio.wait({stopping, *exits}, return_when=asyncio.FIRST_COMPLETED)
        ended = [child for child in processes.children.values() if child.exit.done()]
        for child in ended:
            sys.stderr.write(f"{child.spec.name} ended with code {child.code}\n")
        return 1 if ended else 0
    finally:
        stopping.cancel()
        READY.unlink(missing_ok=True)
        for name in reversed(processes.children):
            await processes.stop(name)
        processes.close()


async def _start(start: Callable[[Processes], Awaitable[None]], processes: Processes) -> None:
    await start(processes)
    READY.touch()
