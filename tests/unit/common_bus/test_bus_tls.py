"""What a peer in the middle gets: nothing before TLS, and never a token without it."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.stored.reader import open_reader
from services.common.bus.protocol import BusUnavailable
from services.common.bus.settings import CALLOUT_TIMEOUT, BusSettings
from services.common.runtime.settings import SettingsError
from tests.support.kube.certs import Authority

INFO = {
    "server_id": "x",
    "version": "2.15.1",
    "max_payload": 1048576,
    "auth_required": True,
    "headers": True,
    "nonce": "abcdefghijk",
}


def info_line(info: dict[str, object]) -> bytes:
    return b"INFO " + json.dumps(info).encode() + b"\r\n"


@contextlib.asynccontextmanager
async def plain_peer(info: dict[str, object]) -> AsyncIterator[tuple[str, asyncio.Future[bytes]]]:
    """Listen without TLS; provide HOST:PORT, and all that the first client sends until it goes."""
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info_line(info))
        found = b""
        while line := await reader.readline():
            found += line
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        received.set_result(found)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", received


async def open_and_close(endpoint: Endpoint) -> None:
    connection = await BusConnection.open(
        endpoint, name="test", settings=BusSettings(), log=structlog.get_logger(), jetstream=False
    )
    await connection.close()


@pytest.mark.parametrize("claims", [{}, {"tls_required": False}, {"tls_available": True}], ids=repr)
@pytest.mark.parametrize(
    ("url", "files"),
    [
        ("tls://{}", ("ca", "token")),
        ("tls://{}", ("token",)),
        ("tls://me:secret@{}", ()),
        ("nats://me:secret@{}", ("ca",)),
        ("nats://me:secret@{}", ("cert", "key")),
        ("nats://127.0.0.1:1,tls://me:secret@{}", ()),
    ],
)
async def test_a_peer_that_offers_no_tls_gets_nothing(
    tmp_path: Path, url: str, files: tuple[str, ...], claims: dict[str, object]
) -> None:
    authority = Authority(tmp_path)
    pair = authority.client("me")
    token = tmp_path / "token"
    token.write_text("header.payload.signature")
    paths = {"ca": str(authority.ca), "token": str(token), "cert": str(pair.cert), "key": str(pair.key)}
    async with plain_peer({**INFO, **claims}) as (address, received):
        servers = tuple(url.format(address).split(","))
        with pytest.raises(OSError, match="TLS"):
            await open_and_close(Endpoint(servers, **{name: paths[name] for name in files}))
        async with asyncio.timeout(60):
            assert await received == b""


@pytest.mark.parametrize("variable", ["NATS_CA", "NATS_CERT"])
def test_a_websocket_without_tls_has_no_certificates(variable: str) -> None:
    """The client of a WebSocket sends the password of a URL before the server's first line."""
    with pytest.raises(SettingsError, match=rf"{variable}: .*wss://"):
        Endpoint.from_url("wss://a,ws://me:secret@b", {variable: "/file"})


async def test_the_error_of_a_peer_without_tls_has_no_password() -> None:
    async with plain_peer(INFO) as (address, _):
        with pytest.raises(OSError, match=f"{address} offers no TLS") as caught:
            await open_and_close(Endpoint((f"tls://me:secret@{address}",)))
        assert "secret" not in str(caught.value)


@contextlib.asynccontextmanager
async def encrypted_peer(info: dict[str, object], authority: Authority) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Begin TLS after the first line; provide HOST:PORT, and what a client sends after that."""
    received: list[bytes] = []
    pair = authority.server()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(info_line({**info, "tls_required": True}))
        await writer.start_tls(context)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                received.append(line)
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", received


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"headers": False}, "no headers"),
        ({"headers": "no"}, "no headers"),
        ({"max_payload": 10}, "max_payload: 10, which must be 81920 or more"),
        ({"max_payload": "x"}, "max_payload: 'x'"),
        ({"max_payload": None}, "max_payload: None"),
        ({"max_payload": 81920}, ""),
    ],
    ids=repr,
)
async def test_a_changed_first_line_ends_the_connection_instead_of_losing_events(
    tmp_path: Path, claims: dict[str, object], text: str
) -> None:
    authority = Authority(tmp_path)
    async with encrypted_peer({**INFO, **claims}, authority) as (address, received):
        endpoint = Endpoint((f"tls://me:secret@{address}",), ca=str(authority.ca))
        if not text:
            await open_and_close(endpoint)
            assert any(b"secret" in line for line in received)
            return
        with pytest.raises(OSError, match=f"server at {address} says .*{text}"):
            await open_and_close(endpoint)
        assert not received


async def test_without_tls_in_the_settings_a_plain_server_is_enough() -> None:
    async with plain_peer(INFO) as (address, received):
        await open_and_close(Endpoint((f"nats://me:secret@{address}",)))
        assert b"secret" in await received


@pytest.mark.parametrize("url", ["nats://a", "a:4222", "ws://a", "tls://a,nats://b", "TLS://a", "nats://tls://a"])
def test_a_token_needs_tls(url: str) -> None:
    with pytest.raises(SettingsError, match=r"NATS_TOKEN_FILE: .*tls:// or wss://"):
        Endpoint.from_url(url, {"NATS_TOKEN_FILE": "/t", "NATS_CA": "/ca"})


@pytest.mark.parametrize("url", ["tls://a,tls://b", "wss://a"])
def test_a_token_is_for_tls(url: str) -> None:
    assert Endpoint.from_url(url, {"NATS_TOKEN_FILE": "/t"}).token == "/t"


def test_a_seed_may_sign_a_challenge_without_tls() -> None:
    assert Endpoint.from_url("nats://a", {"NATS_NKEY": "/n"}).nkey == "/n"


async def test_a_command_says_that_a_token_needs_tls() -> None:
    with pytest.raises(BusUnavailable, match=r"NATS_TOKEN_FILE: .*tls://"):
        async with open_reader("nats://a", {"NATS_TOKEN_FILE": "/t"}, log=structlog.get_logger()):
            raise AssertionError


async def test_a_client_waits_longer_than_an_auth_callout_may_take() -> None:
    """Two seconds ended a connection that the server was about to let in."""
    settings = BusSettings()
    assert settings.connect_timeout >= CALLOUT_TIMEOUT + 1
    async with plain_peer(INFO) as (address, _):
        endpoint, log = Endpoint((f"nats://{address}",)), structlog.get_logger()
        connection = await BusConnection.open(endpoint, name="test", settings=settings, log=log, jetstream=False)
        assert connection.client.options["connect_timeout"] >= CALLOUT_TIMEOUT + 1
        await connection.close()
