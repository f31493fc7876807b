"""Health endpoints of a process: ``/healthz``, ``/readyz`` with each named condition, ``/metrics``.

Ready means that the role can do its work from Kubernetes. A disconnected bus is a metric and a note, and no condition.
Next: :mod:`services.common.runtime.process`, which serves the endpoints while the process lives.
"""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from services.common.http.metrics_page import MetricsPage
from services.common.http.server import make_app, serve
from services.common.telemetry import Telemetry
from services.common.telemetry.logs import Log

LISTEN_AGAIN = 1.0
"""Seconds between two attempts to listen on an address that another process holds."""


class Readiness:
    """Named conditions of a process. It is ready if there is at least one and all are met, those of its parts too.

    :param on_change: called with name, state and reason when a condition changes.
    :ivar notes: what does not work although the process is ready, by name.
    :ivar parts: conditions of the roles that run in this process beside its own, by role.
    """

    def __init__(self, on_change: Callable[[str, bool, str], None] = lambda _name, _ok, _why: None) -> None:
        self._conditions: dict[str, tuple[bool, str]] = {}
        self._on_change = on_change
        self.notes: dict[str, str] = {}
        self.parts: dict[str, Readiness] = {}

    @property
    def ready(self) -> bool:
        """Whether every condition is met."""
        own = bool(self._conditions) and all(ok for ok, _ in self._conditions.values())
        return own and all(part.ready for part in self.parts.values())

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """Set whether a condition is met.

        :param why: reason if it is not.
        """
        before = self._conditions.get(name)
        self._conditions[name] = (ok, why)
        if before is None or before[0] != ok:
            self._on_change(name, ok, why)

    def note(self, name: str, why: str) -> None:
        """Show what does not work, without effect on the readiness; an empty text when it works."""
        self.notes[name] = why

    def text(self) -> str:
        """Return one line per condition, in the format of kube-apiserver's ``/readyz?verbose``."""
        lines = self._lines("")
        lines.append("readyz check passed" if self.ready else "readyz check failed")
        return "\n".join(lines) + "\n"

    def _lines(self, prefix: str) -> list[str]:
        lines = [
            f"[+]{prefix}{name} ok" if ok else f"[-]{prefix}{name} failed: {why or 'not yet'}"
            for name, (ok, why) in self._conditions.items()
        ]
        lines += [f"[!]{prefix}{name} unavailable: {why}" for name, why in self.notes.items() if why]
        for role, part in self.parts.items():
            lines += part._lines(f"{prefix}{role}/")
        return lines


def health_app(
    telemetry: Telemetry, readiness: Readiness, clock: Callable[[], float] = time.monotonic
) -> web.Application:
    """Return the application that serves the three paths.

    ``/healthz`` shows only that the event loop runs.

    :param clock: seconds of a monotonic clock.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text=readiness.text(), status=200 if readiness.ready else 503)

    # Untraced: the kubelet's probes belong to no operation.
    app = make_app(telemetry=telemetry, max_body=1024, errors="text", traced=False)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", MetricsPage(telemetry.metrics_text, clock).get)
    return app


@asynccontextmanager
async def serve_when_free(
    endpoints: str, make: Callable[[], web.Application], listen: str, readiness: Readiness, log: Log
) -> AsyncIterator[None]:
    """Serve while the context is open, but from the time on when no other process holds the address.

    Each pod with the node's network can hold a port of the node. The work of a role must not depend on that.

    :param endpoints: name of what is served, in the log and as a note of the readiness.
    :param make: returns the application, once for each attempt.
    :param listen: address, as of :func:`services.common.http.server.serve`.
    :raises OSError: the server cannot listen, for a reason that waiting does not change.
    :raises ValueError: the address is malformed.
    """
    async with AsyncExitStack() as stack:

        async def attempt() -> OSError | None:
            try:
                address = await stack.enter_async_context(serve(make(), listen, shutdown=1.0))
            except OSError as error:
                return error
            readiness.note(endpoints, "")
            log.info("listening", endpoints=endpoints, address=address)
            return None

        async def attempts() -> None:
            while True:
                await asyncio.sleep(LISTEN_AGAIN)
                if await attempt() is None:
                    return

        if error := await attempt():
            if error.errno != errno.EADDRINUSE:
                raise error
            readiness.note(endpoints, str(error))
            log.error("address held by another process", endpoints=endpoints, listen=listen, error=str(error))
            task = asyncio.create_task(attempts(), name=endpoints)
            stack.push_async_callback(asyncio.wait, {task})
            stack.callback(task.cancel)
        yield
