"""Forwarding one request to an aggregated server, as kube-aggregator's proxy does.

The caller's identity travels in `X-Remote-*` headers, which are believed only together with the front proxy's
client certificate; whatever the caller itself sent under those names is thrown away. Bodies stream both ways.
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

from services.lab.apiserver.auth import User
from services.lab.apiserver.errors import timeout, unavailable
from services.lab.apiserver.pki import KeyPair

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
class Backend:
    """Where an aggregated server listens and how to know it."""

    host: str
    port: int
    server_name: str
    ca_bundle: str
    insecure: bool


class Forwarder:
    """The client side of the proxy; one for the whole server, closed with it."""

    def __init__(self, client: KeyPair, limit: float) -> None:
        self._client = client
        self._limit = limit
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    def _connect(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            )
        return self._session

    def _context(self, backend: Backend) -> ssl.SSLContext:
        key = (backend.ca_bundle, backend.insecure)
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

    async def fetch(self, backend: Backend, path: str, seconds: float) -> tuple[int, bytes]:
        """GET a path as the proxy itself (the probe of availability). Raises `OSError`, `ValueError`, client errors."""
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
        self, request: web.BaseRequest, backend: Backend, user: User, *, endless: bool
    ) -> web.StreamResponse:
        """Send the request on and stream the answer back.

        Raises `ApiError` 503 when the server cannot be reached or does not prove its name, 504 when it has not
        answered within the limit. An answer cut off by the limit half way is a broken connection.
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
            _log.warning("%s %s took longer than %s s", request.method, request.path, self._limit)
            if response is None:
                raise timeout("Timeout: request did not complete within the allotted timeout") from None
        except (aiohttp.ClientError, OSError, ValueError, binascii.Error) as error:
            _log.warning("%s %s: aggregated server: %s", request.method, request.path, error)
            if response is None:
                raise unavailable(f"{UNAVAILABLE}: error trying to reach service: {error}") from None
        if request.transport is not None:
            request.transport.abort()
        assert response is not None
        return response

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _url(backend: Backend, raw_path: str) -> URL:
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
        before = given.get("X-Forwarded-For")
        headers["X-Forwarded-For"] = f"{before}, {remote}" if before else remote
    return headers
