"""A QMP socket that a test serves in its own process, and the driver that is connected to it.

Not QEMU itself: :mod:`tests.support.guest.qemu`, which is next.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from lab.guest.double import listener, serve_sequentially
from services.common.guest.qmp import QmpGuest
from tests.support.telemetry.spans import recording_telemetry


@contextlib.asynccontextmanager
async def served_guest(
    serve_client: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[QmpGuest]:
    """Serve a QMP socket for the duration of the context, and yield a driver of the guest behind it.

    :param serve_client: serves one client, until it disconnects.
    """
    # The system's temporary directory, for a path that is short enough for a unix socket.
    with tempfile.TemporaryDirectory(prefix="hn-") as folder:
        path = str(Path(folder) / "qmp.sock")
        with listener(path) as listening:
            serving = asyncio.create_task(serve_sequentially(listening, serve_client))
            guest = QmpGuest(path, recording_telemetry()[0].tracer)
            try:
                yield guest
            finally:
                await guest.close()
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
