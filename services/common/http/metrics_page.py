"""``/metrics`` of a process: at a bounded cost, because whoever reaches the port may ask for it.

Rendering blocks the event loop for some milliseconds, so its result is used for a second.
Next: :mod:`services.common.runtime.health`, whose endpoints include it.
"""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from services.common.http.server import StatusError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_AGE = 1.0
"""Seconds for which metrics are used after they were rendered; Prometheus' intervals are longer."""
MAX_RUNNING = 8
"""Requests in progress; more than the Prometheus servers that scrape one process."""
READ_DEADLINE = 5.0
"""Seconds for a client to read its response. One that does not would keep others from the metrics."""


class MetricsPage:
    """The handler of ``/metrics``.

    :param render: returns all metrics in Prometheus' text format.
    :param clock: seconds of a monotonic clock.
    :param deadline: seconds for a client to read its response.
    :ivar running: how many requests are in progress.
    """

    def __init__(
        self,
        render: Callable[[], bytes],
        clock: Callable[[], float] = time.monotonic,
        *,
        deadline: float = READ_DEADLINE,
    ) -> None:
        self._render = render
        self._clock = clock
        self._deadline = deadline
        self._text = b""
        self._rendered: float | None = None
        self.running = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Respond with the metrics, and wait until the client has read them."""
        if self.running >= MAX_RUNNING:
            message = f"{self.running} requests for metrics are in progress"
            raise StatusError(503, None, message, headers={"Retry-After": "1"})
        response = web.Response(body=self._current(), headers={"Content-Type": METRICS_TYPE})
        self.running += 1
        try:
            async with asyncio.timeout(self._deadline):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            # The client has left; aiohttp, which gets the response, finds that too.
            return response
        finally:
            self.running -= 1
        return response

    def _current(self) -> bytes:
        now = self._clock()
        if self._rendered is None or now - self._rendered >= MAX_AGE:
            self._text = self._render()
            self._rendered = now
        return self._text
