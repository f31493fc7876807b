"""As what a client may connect to NATS with the key of an identity: as a client, and not as a server."""

import asyncio
import socket
from pathlib import Path

import pytest

from schemas.bus.permissions import identity_name
from services.common.bus.nats_config import NatsCallout, NatsUser, render_accounts
from services.common.bus.nkeys import KeyKind, SigningKey, make_seed, read_public_key
from tests.support.bus.client import nats_client
from tests.support.bus.identities import EVERYBODY, Identity
from tests.support.bus.nats import NatsServer, nats_server

CALLOUT: Identity = ("callout", None)
ACCEPTED, REFUSED = "Leafnode Ping Timer", "authentication error"
"""The server pings a leaf node only once it has let it in."""


async def wait_line(server: NatsServer, *texts: str) -> str:
    """Return the first of the texts that is in a line of the server's log."""
    async with asyncio.timeout(60):
        while not (found := [text for text in texts for line in server.log if text in line]):  # noqa: ASYNC110 - a log
            await asyncio.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("identity", [("handler", "node1"), ("controller", None), CALLOUT], ids=lambda i: i[0])
async def test_no_identity_may_be_a_leaf_node(tmp_path: Path, identity: Identity) -> None:
    """A server that joins passes on what others publish, and whatever its own clients do is done by the identity."""
    keys = {one: make_seed(KeyKind.USER).encode() for one in (*EVERYBODY, CALLOUT)}
    users = [NatsUser(*one, read_public_key(seed)) for one, seed in keys.items() if one != CALLOUT]
    callout = NatsCallout(SigningKey(make_seed(KeyKind.ACCOUNT)).public, [read_public_key(keys[CALLOUT])])
    text = render_accounts(users, callout if identity == CALLOUT else None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hub, leaf, seed = tmp_path / "hub.conf", tmp_path / "leaf.conf", tmp_path / "seed.nk"
    hub.write_text(f'{text}leafnodes {{ listen: "127.0.0.1:{port}" }}\n')
    seed.write_bytes(keys[identity])
    leaf.write_text(
        f'leafnodes {{ remotes: [ {{ url: "nats-leaf://127.0.0.1:{port}", nkey: "{keys[identity].decode()}" }} ] }}\n'
    )
    async with nats_server(tmp_path / "hub", "-c", str(hub), "-D") as server:
        async with nats_client({"NATS_URL": server.url, "NATS_NKEY": str(seed)}):
            pass
        async with nats_server(tmp_path / "leaf", "-c", str(leaf)):
            assert await wait_line(server, ACCEPTED, REFUSED) == REFUSED, identity_name(*identity)
