"""An API server on loopback, in the test's event loop, and clients of it."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from lab.apiserver.app import RunningServer, Settings, serving
from lab.apiserver.identity import pki
from tests.cluster.tools import Api


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tokens = tmp_path / "tokens.csv"
    tokens.write_text('secret-token,jane,uid-7,"developers,testers"\n')
    return Settings(tmp_path / "state", tokens=tokens, event_log=20, bookmark_after=0.05, request_timeout=0.3)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[RunningServer]:
    async with serving(settings) as found:
        yield found


def client_context(directory: Path, user: pki.KeyPair | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the server, with or without a client certificate."""
    context = ssl.create_default_context(cafile=pki.ca_file(directory))
    if user is not None:
        context.load_cert_chain(user.cert, user.key)
    return context


@pytest.fixture
async def api(server: RunningServer, settings: Settings) -> AsyncIterator[Api]:
    context = client_context(settings.directory, pki.pair(settings.directory, "admin"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        found = Api(server.url, session, "default")
        yield found
        await found.close()


@pytest.fixture
async def unauthenticated(server: RunningServer, settings: Settings) -> AsyncIterator[Api]:
    """A client without a certificate."""
    context = client_context(settings.directory, None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Api(server.url, session, "default")
