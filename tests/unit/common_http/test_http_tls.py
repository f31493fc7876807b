"""TLS: client certificates are requested, verified, and name the client."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from services.common.http.server import make_app, serve
from services.common.http.tls import ServerTls, peer_common_name
from tests.support.kube.certs import Authority, Pair
from tests.support.telemetry.spans import recording_telemetry


async def who(request: web.Request) -> web.Response:
    return web.Response(text=peer_common_name(request) or "nobody")


@asynccontextmanager
async def tls(tmp_path: Path, authority: Authority, *, required: bool) -> AsyncIterator[str]:
    pair = authority.server()
    settings = ServerTls(client_ca=authority.ca.read_text(), client_cert_required=required)
    settings.use(pair.cert.read_bytes(), pair.key.read_bytes())
    app = make_app(telemetry=recording_telemetry()[0], max_body=10)
    app.router.add_get("/", who)
    async with serve(app, "127.0.0.1:0", ssl=settings.context) as address:
        yield f"https://{address}/"


async def get(url: str, authority: Authority, pair: Pair | None) -> str:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    async with aiohttp.ClientSession() as client, client.get(url, ssl=context) as response:
        return await response.text()


async def test_a_client_certificate_names_the_client(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls(tmp_path, authority, required=False) as url:
        assert await get(url, authority, authority.client("front-proxy-client")) == "front-proxy-client"
        assert await get(url, authority, None) == "nobody"


async def test_a_certificate_of_an_unknown_ca_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    foreign = Authority(tmp_path, "other-ca").client("front-proxy-client")
    async with tls(tmp_path, authority, required=False) as url:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await get(url, authority, foreign)


async def test_a_certificate_can_be_required(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls(tmp_path, authority, required=True) as url:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await get(url, authority, None)
