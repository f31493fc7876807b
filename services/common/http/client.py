"""HTTP client for a unix socket: deadlines, classified errors, CLIENT spans, trace context in the headers.

Every call opens a new connection, which costs 50 µs. A reused one would fail the first call after a restart of the
server. Next: :mod:`services.common.http.server`, the other side.
"""

from typing import Any

import aiohttp
import msgspec
from opentelemetry.trace import SpanKind, StatusCode

from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import inject
from services.common.telemetry.tracer import fail_span

DEADLINE = 30.0
MAX_RESPONSE = 16 * 1024 * 1024


class HttpFailure(Exception):
    """A request without a usable response."""


class ConnectFailed(HttpFailure):
    """Nothing listens on the socket. The request was not sent."""


class TimedOut(HttpFailure):
    """No response before the deadline. The request may have taken effect."""


class BadResponse(HttpFailure):
    """The connection broke, or the response is not HTTP or too large. The request may have taken effect."""


class UnixHttpClient:
    """Client of the server on one unix socket."""

    def __init__(self, path: str, telemetry: Telemetry) -> None:
        self._path = path
        self._tracer = telemetry.tracer
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        timeout: float = DEADLINE,
    ) -> tuple[int, bytes]:
        """Send a request and return status and body, whatever the status.

        :param json: body that is sent as JSON.
        :param body: body that is sent unchanged.
        :param timeout: seconds.
        :raises HttpFailure: there is no response; the subclass says whether the request may have taken effect.
        """
        headers: dict[str, str] = {}
        if json is not None:
            body = msgspec.json.encode(json)
            headers["Content-Type"] = "application/json"
        with self._tracer.start_as_current_span(
            f"{method} {path}",
            kind=SpanKind.CLIENT,
            # For a unix socket OpenTelemetry defines server.address as its path, and no port.
            attributes={"http.request.method": method, "url.path": path, "server.address": self._path},
            record_exception=False,
        ) as span:
            inject(headers)
            try:
                status, content = await self._exchange(method, path, body, headers, timeout)
            except HttpFailure as error:
                span.set_attribute("error.type", type(error).__name__)
                fail_span(span, str(error))
                raise
            span.set_attribute("http.response.status_code", status)
            if status >= 400:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
            return status, content

    async def close(self) -> None:
        """Close the session. A later request opens a new one."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> tuple[int, bytes]:
        if self._session is None:
            # No limit of connections: a CNI ADD may take a minute, and no other call may wait for it.
            connector = aiohttp.UnixConnector(self._path, force_close=True, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        limits = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._session.request(
                method, f"http://localhost{path}", data=body, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                # `read(n)` returns what has arrived, up to n bytes. One byte more reveals a response over the limit.
                content = await response.content.read(MAX_RESPONSE + 1)
                while not response.content.at_eof() and len(content) <= MAX_RESPONSE:
                    content += await response.content.read(MAX_RESPONSE + 1 - len(content))
        except TimeoutError as error:
            raise TimedOut(f"{self._path}: no response within {timeout:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ConnectFailed(f"{self._path}: {error.os_error.strerror or error.os_error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BadResponse(f"{self._path}: {error or type(error).__name__}") from error
        if len(content) > MAX_RESPONSE:
            raise BadResponse(f"{self._path}: response larger than {MAX_RESPONSE} bytes")
        return response.status, content
