"""What the NATS server keeps in its memory for one connection of an identity: few subscriptions, no large message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from schemas.bus.permissions import ANSWER_SECONDS, MAX_PAYLOAD, MAX_SUBSCRIPTIONS, inbox_prefix
from services.common.bus.nats_config import render_accounts
from services.common.bus.settings import BusSettings
from tests.support.bus.auth_callout import running_callout
from tests.support.bus.auth_tokens import make_token
from tests.support.bus.identities import identity_server
from tests.support.bus.nats import NatsServer

INBOX = inbox_prefix("networks", "node1").encode()


@contextlib.asynccontextmanager
async def connected(directory: Path, how: str, ended: asyncio.Event) -> AsyncIterator[tuple[Client, NatsServer]]:
    """Connect as a role of a node; the event is set when the server ends the connection."""

    async def on_disconnected() -> None:
        ended.set()

    async def on_error(_error: Exception) -> None:
        """The server's log has it, too."""

    options = {"disconnected_cb": on_disconnected, "error_cb": on_error, "inbox_prefix": INBOX}
    if how == "key":
        async with identity_server(directory) as server:
            seed = str(server.seeds["networks", "node1"])
            client = await nats.connect(server.url, nkeys_seed=seed, allow_reconnect=False, **options)
            yield client, server
            await client.close()
        return
    async with running_callout(directory) as callout:
        token = callout.reviews.accept(make_token("hotnic-networks"), node="node1")
        client = await callout.connect(token, **options)
        yield client, callout.server
        await client.close()


def lines(what: str) -> list[bytes]:
    """Return what the server takes, and at the end what it does not."""
    if what == "subscriptions":
        return [b"SUB %s.%d %d\r\n" % (INBOX, number, number + 1) for number in range(MAX_SUBSCRIPTIONS + 1)]
    subject = b"hotplug.failed.node1.default.vm1"
    return [b"PUB %s %d\r\n%s\r\n" % (subject, size, b"x" * size) for size in (MAX_PAYLOAD, MAX_PAYLOAD + 1)]


@pytest.mark.parametrize("what", ["subscriptions", "payload"])
@pytest.mark.parametrize("how", ["key", "token"])
async def test_a_connection_ends_at_its_limits(tmp_path: Path, how: str, what: str) -> None:
    """388,000 subscriptions of one node took 231 MiB of the server's memory in 4 s."""
    ended = asyncio.Event()
    async with asyncio.timeout(60), connected(tmp_path, how, ended) as (client, server):
        permitted, excess = lines(what)[:-1], lines(what)[-1]
        client._transport.write(b"".join(permitted))
        await client.flush(timeout=60)
        assert not ended.is_set()
        client._transport.write(excess)
        await ended.wait()
        while not any(f"maximum {what}" in line.lower() for line in server.log):  # noqa: ASYNC110 - a log
            await asyncio.sleep(0.01)


def test_every_message_of_hotnic_may_be_published() -> None:
    settings = BusSettings()
    assert max(settings.max_message_bytes, settings.dead_max_message_bytes) <= MAX_PAYLOAD


def test_requests_that_nobody_answers_are_soon_forgotten() -> None:
    """100,000 of them took 86 MiB of the server's memory for two minutes. A pull request must not be forgotten."""
    services = [line for line in render_accounts([]).splitlines() if "service:" in line and "accounts:" in line]
    assert len(services) > 10
    assert all(f'response_threshold: "{ANSWER_SECONDS}s"' in line for line in services)
    settings = BusSettings()
    assert max(settings.pull_heartbeat, settings.api_timeout, settings.publish_timeout) <= ANSWER_SECONDS / 2
