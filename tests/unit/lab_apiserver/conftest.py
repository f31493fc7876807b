"""A running server of our own on loopback, in the test's loop, and clients for it."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from services.lab.apiserver import pki
from services.lab.apiserver.app import Running, Settings, running
from tests.cluster.tools import Api


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('secret-token,jane,uid-7,"developers,testers"\n')
    return Settings(tmp_path / "state", tokens=tokens, event_log=20, bookmark_after=0.05, request_timeout=0.3)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as found:
        yield found


def client_context(directory: Path, user: pki.KeyPair | None) -> ssl.SSLContext:
    """TLS that trusts the server, with a client certificate or without."""
    context = ssl.create_default_context(cafile=pki.ca_file(directory))
    if user is not None:
        context.load_cert_chain(user.cert, user.key)
    return context


@pytest.fixture
async def api(server: Running, settings: Settings) -> AsyncIterator[Api]:
    context = client_context(settings.directory, pki.pair(settings.directory, "admin"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        found = Api(server.url, session, "default")
        yield found
        await found.close()


@pytest.fixture
async def stranger(server: Running, settings: Settings) -> AsyncIterator[Api]:
    """A client without a certificate."""
    context = client_context(settings.directory, None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Api(server.url, session, "default")
