"""TLS: client certificates are requested, verified, and name the client."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

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


def rotation(tmp_path: Path) -> tuple[Authority, Authority, Pair, ServerTls, web.Application]:
    """Return the CA of clients and the one that follows it, a serving certificate, and a server's settings and app."""
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    server = before.server()
    settings = ServerTls(client_ca=before.ca.read_text())
    settings.use(server.cert.read_bytes(), server.key.read_bytes())
    app = make_app(telemetry=recording_telemetry()[0], max_body=10)
    app.router.add_get("/", who)
    return before, after, server, settings, app


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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_cas_of_clients_can_be_replaced(tmp_path: Path, version: ssl.TLSVersion) -> None:
    before, after, server, settings, app = rotation(tmp_path)
    old, new = before.client("old"), after.client("new")

    async def request(pair: Pair) -> str:
        context = ssl.create_default_context(cafile=str(before.ca))
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(pair.cert, pair.key)
        async with aiohttp.ClientSession() as client, client.get(f"https://{address}/", ssl=context) as response:
            return await response.text()

    async with serve(app, "127.0.0.1:0", ssl=settings.context) as address:
        assert await request(old) == "old"
        for garbage in ("", "no certificate", "ü"):
            with pytest.raises((ssl.SSLError, ValueError)):
                settings.trust(garbage)
        assert await request(old) == "old"
        settings.trust(before.ca.read_text() + after.ca.read_text())
        assert [await request(old), await request(new)] == ["old", "new"]
        settings.trust(after.ca.read_text())
        assert await request(new) == "new"
        with pytest.raises((aiohttp.ClientError, OSError)):
            await request(old)
        # Another serving certificate keeps them.
        settings.use(server.cert.read_bytes(), server.key.read_bytes())
        assert await request(new) == "new"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_kept_session_does_not_outlive_the_ca_of_its_client(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A session that is resumed has the certificate of its first handshake, which is not verified again."""
    before, after, _server, settings, app = rotation(tmp_path)
    old = before.client("old")
    context = ssl.create_default_context(cafile=str(before.ca))
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(old.cert, old.key)

    def request(port: int, session: ssl.SSLSession | None) -> tuple[str, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=50) as tcp,
            context.wrap_socket(tcp, server_hostname="127.0.0.1", session=session) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
            return answer.rpartition(b"\r\n\r\n")[2].decode(), client.session

    async with serve(app, "127.0.0.1:0", ssl=settings.context) as address:
        port = int(address.rpartition(":")[2])
        name, session = await asyncio.to_thread(request, port, None)
        assert name == "old"
        settings.trust(after.ca.read_text())
        try:
            name, _ = await asyncio.to_thread(request, port, session)
        except OSError:
            # It was not resumed, and the certificate is refused.
            return
        assert name in ("", "nobody")


async def test_an_open_connection_ends_soon_after_its_ca_was_replaced(tmp_path: Path) -> None:
    before, after, server, settings, app = rotation(tmp_path)
    old = before.client("old")
    context = ssl.create_default_context(cafile=str(before.ca))
    context.load_cert_chain(old.cert, old.key)
    async with serve(app, "127.0.0.1:0", ssl=settings.context) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)

        async def request() -> bytes:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(3) == b"old"
            return head.lower()

        async with asyncio.timeout(50):
            # Another serving certificate changes nothing for clients.
            settings.use(server.cert.read_bytes(), server.key.read_bytes())
            assert b"connection: close" not in await request()
            with pytest.raises(ssl.SSLError):
                settings.trust("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
            assert b"connection: close" not in await request()
            settings.trust(after.ca.read_text())
            assert b"connection: close" in await request()
            assert await reader.read() == b""
        writer.close()


def test_a_subject_with_several_common_names_names_nobody() -> None:
    """Others read the last of them."""

    class Peer:
        def get_extra_info(self, name: str) -> object:
            names = ((("commonName", "front-proxy-client"),), (("commonName", "somebody"),))
            return {"subject": names} if name == "peercert" else None

    class Request:
        transport = Peer()

    assert peer_common_name(cast("web.Request", Request())) is None


async def test_a_certificate_can_be_required(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with tls(tmp_path, authority, required=True) as url:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await get(url, authority, None)
