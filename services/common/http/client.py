"""Call a server on a unix socket: deadline, classified errors, CLIENT span, trace context in the headers.

A new connection for every call: it costs 50 µs, and a kept one would fail the first call after the server's restart.
"""

from typing import Any

import aiohttp
import msgspec
from opentelemetry.trace import SpanKind, StatusCode

from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import inject

DEADLINE = 30.0
MAX_ANSWER = 16 * 1024 * 1024


class HttpFailure(Exception):
    """There is no answer."""


class ConnectFailed(HttpFailure):
    """Nobody listens there: the request was not sent."""


class TimedOut(HttpFailure):
    """No answer before the deadline: the request may have had its effect."""


class BadAnswer(HttpFailure):
    """The connection broke, or what came is not HTTP: the request may have had its effect."""


class UnixHttp:
    """The server behind one unix socket."""

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
        """Send a request; gives status and body, whatever the status.

        :param json: sent as JSON. :param body: sent as it is.
        :raises HttpFailure: of the class that tells whether the request can have had an effect.
        """
        headers: dict[str, str] = {}
        if json is not None:
            body = msgspec.json.encode(json)
            headers["Content-Type"] = "application/json"
        with self._tracer.start_as_current_span(
            f"{method} {path}",
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": method, "url.path": path, "server.address": self._path},
            record_exception=False,
        ) as span:
            inject(headers)
            try:
                status, answer = await self._exchange(method, path, body, headers, timeout)
            except HttpFailure as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR, str(error))
                raise
            span.set_attribute("http.response.status_code", status)
            if status >= 400:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)
            return status, answer

    async def close(self) -> None:
        """Release the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> tuple[int, bytes]:
        if self._session is None:
            connector = aiohttp.UnixConnector(self._path, force_close=True, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        limits = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._session.request(
                method, f"http://localhost{path}", data=body, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                answer = await response.content.read(MAX_ANSWER + 1)
                while not response.content.at_eof() and len(answer) <= MAX_ANSWER:
                    answer += await response.content.read(MAX_ANSWER + 1 - len(answer))
        except TimeoutError as error:
            raise TimedOut(f"{self._path}: no answer within {timeout:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ConnectFailed(f"{self._path}: {error.os_error.strerror or error.os_error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BadAnswer(f"{self._path}: {error or type(error).__name__}") from error
        if len(answer) > MAX_ANSWER:
            raise BadAnswer(f"{self._path}: answer larger than {MAX_ANSWER} bytes")
        return response.status, answer
