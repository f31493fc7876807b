"""Forward one request to an aggregated server, as kube-aggregator's proxy does.

The user's identity is sent in `X-Remote-*` headers, which the server trusts only together with the front proxy's
client certificate. Headers of these names in the client's request are dropped. Bodies are streamed in both directions.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import ssl
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from lab.apiserver.errors import timeout, unavailable
from lab.apiserver.identity.auth import User
from lab.apiserver.identity.pki import KeyPair

_log = logging.getLogger("hotnic.lab.apiserver")

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CREDENTIALS = frozenset({"authorization", "host", "content-length"})
_IDENTITY = ("x-remote-", "impersonate-")
UNAVAILABLE = "the server is currently unable to handle the request"


@dataclass(frozen=True, slots=True)
class AggregatedBackend:
    """Address of an aggregated server, and how to verify it."""

    host: str
    port: int
    server_name: str
    ca_bundle: str
    insecure: bool


class Forwarder:
    """The client side of the proxy, one for the whole API server.

    :param limit: seconds until a request that is not a watch must be complete.
    """

    def __init__(self, client: KeyPair, limit: float) -> None:
        self._client = client
        self._limit = limit
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    def _connect(self) -> aiohttp.ClientSession:
        # aiohttp's session needs a running event loop, so it is created on first use.
        if self._session is None:
            # No limit: each watch holds a connection, and by default the 101st request would wait for a free one.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                # The body is forwarded as it is, with the server's Content-Encoding.
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            )
        return self._session

    def _context(self, backend: AggregatedBackend) -> ssl.SSLContext:
        key = (backend.ca_bundle, backend.insecure)
        # A new TLS context per request would load the CA bundle each time.
        context = self._contexts.get(key)
        if context is None:
            if backend.insecure:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            else:
                authority = base64.b64decode(backend.ca_bundle, validate=True).decode()
                context = ssl.create_default_context(cadata=authority) if authority else ssl.create_default_context()
            context.load_cert_chain(self._client.cert, self._client.key)
            self._contexts[key] = context
        return context

    async def fetch(self, backend: AggregatedBackend, path: str, seconds: float) -> tuple[int, bytes]:
        """GET a path as the aggregator itself, for the availability probe; return status and body.

        :raises OSError: the server cannot be reached.
        :raises ValueError: its CA bundle is invalid.
        :raises aiohttp.ClientError: the exchange failed.
        """
        async with (
            asyncio.timeout(seconds),
            self._connect().get(
                _url(backend, path),
                ssl=self._context(backend),
                server_hostname=backend.server_name,
                headers={"X-Remote-User": "system:kube-aggregator", "X-Remote-Group": "system:masters"},
                allow_redirects=False,
            ) as response,
        ):
            return response.status, await response.read()

    async def forward(
        self, request: web.BaseRequest, backend: AggregatedBackend, user: User, *, endless: bool
    ) -> web.StreamResponse:
        """Forward the request and stream the response back.

        A response that exceeds the limit after its start ends as a broken connection.

        :param endless: apply no time limit, for a watch.
        :raises ApiError: 503 when the server cannot be reached or fails verification, 504 when it does not respond
            within the limit.
        """
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(None if endless else self._limit):
                async with self._connect().request(
                    request.method,
                    _url(backend, request.raw_path),
                    headers=_headers(request.headers, user, request.remote or ""),
                    data=request.content if request.can_read_body else None,
                    ssl=self._context(backend),
                    server_hostname=backend.server_name,
                    allow_redirects=False,
                ) as answer:
                    response = web.StreamResponse(status=answer.status, reason=answer.reason)
                    for name, value in answer.headers.items():
                        if name.lower() not in _HOP_BY_HOP:
                            response.headers.add(name, value)
                    await response.prepare(request)
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                    await response.write_eof()
                    return response
        except TimeoutError:
            _log.warning(
                "%s %s: aggregated server exceeded the limit of %s s", request.method, request.path, self._limit
            )
            if response is None:
                raise timeout("Timeout: request did not complete within the allotted timeout") from None
        except (aiohttp.ClientError, OSError, ValueError, binascii.Error) as error:
            _log.warning("%s %s: aggregated server failed: %s", request.method, request.path, error)
            if response is None:
                raise unavailable(f"{UNAVAILABLE}: error trying to reach service: {error}") from None
        # The headers are sent already, so the only way to report a failure is to break the connection.
        if request.transport is not None:
            request.transport.abort()
        assert response is not None
        return response

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


def _url(backend: AggregatedBackend, raw_path: str) -> URL:
    host = f"[{backend.host}]" if ":" in backend.host else backend.host
    return URL(f"https://{host}:{backend.port}{raw_path}", encoded=True)


def _headers(given: CIMultiDictProxy[str], user: User, remote: str) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in given.items():
        low = name.lower()
        if low in _HOP_BY_HOP or low in _CREDENTIALS or low.startswith(_IDENTITY):
            continue
        headers.add(name, value)
    headers["X-Remote-User"] = user.name
    if user.uid:
        headers["X-Remote-Uid"] = user.uid
    for group in user.groups:
        headers.add("X-Remote-Group", group)
    for key, values in user.extra.items():
        for value in values:
            headers.add(f"X-Remote-Extra-{quote(key, safe='')}", value)
    if remote:
        # Like a reverse proxy of net/http, append the client's address to the list.
        before = given.get("X-Forwarded-For")
        headers["X-Forwarded-For"] = f"{before}, {remote}" if before else remote
    return headers
