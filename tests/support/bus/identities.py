"""A real nats-server with hotnic's identities, and the buses and clients of them."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats
import structlog
from nats.aio.client import Client
from nats.errors import NoRespondersError

from schemas.bus.permissions import NODE_ROLES, BusRole, inbox_prefix
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.nats.session import OnState
from services.common.bus.nats_config import NatsUser, render_accounts
from services.common.bus.nkeys import KeyKind, make_seed, read_public_key
from services.common.bus.settings import BusSettings
from services.common.telemetry import Telemetry
from tests.support.bus.jetstream import QUICK
from tests.support.bus.nats import NatsServer
from tests.support.telemetry.spans import recording_telemetry

Identity = tuple[str, str | None]
EVERYBODY: tuple[Identity, ...] = tuple((role, "node1" if role in NODE_ROLES else None) for role in BusRole)


class States:
    """The states that a bus has reported."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._changed = asyncio.Event()

    def add(self, state: str) -> None:
        """Add a state."""
        self.seen.append(state)
        self._changed.set()

    async def wait(self, text: str) -> str:
        """Wait for a state that contains the text."""
        async with asyncio.timeout(60):
            while not (found := [state for state in self.seen if text.lower() in state.lower()]):
                self._changed.clear()
                await self._changed.wait()
        return found[-1]


class IdentityServer(NatsServer):
    """A server whose users are identities of hotnic.

    :ivar seeds: the file with the seed of each identity.
    """

    def __init__(self, directory: Path, identities: Sequence[Identity], *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "server.conf"
        super().__init__(directory / "store", "-c", str(config), *options)
        self._config = config
        self._keys: dict[Identity, list[str]] = {}
        self.seeds: dict[Identity, Path] = {}
        for number, identity in enumerate(identities):
            self.seeds[identity] = directory / f"{number}.nk"
            self.replace_seed(identity)
        self.write_config()

    def replace_seed(self, identity: Identity) -> None:
        """Make a new key of an identity; the server lets it in once its configuration is written and read again."""
        seed = make_seed(KeyKind.USER).encode()
        self.seeds[identity].write_bytes(seed)
        self._keys.setdefault(identity, []).append(read_public_key(seed))

    def forget_keys(self, identity: Identity, *, keep: int) -> None:
        """Remove all but the newest keys of an identity."""
        self._keys[identity] = self._keys[identity][len(self._keys[identity]) - keep :]

    def write_config(self) -> None:
        """Write the server's configuration."""
        users = [NatsUser(*identity, key) for identity, keys in self._keys.items() for key in keys]
        self._config.write_text(render_accounts(users))

    async def reload(self) -> None:
        """Write the configuration and have the server read it."""
        self.write_config()
        before = sum("Reloaded server configuration" in line for line in self.log)
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while sum("Reloaded server configuration" in line for line in self.log) == before:  # noqa: ASYNC110 - a log
                await asyncio.sleep(0.01)

    async def client(self, role: str, node: str | None = None) -> tuple[Client, list[str]]:
        """Return a client of an identity, and the list to which it adds what the server denies."""
        denied: list[str] = []

        async def on_error(error: Exception) -> None:
            denied.append(str(error))

        client = await nats.connect(
            self.url,
            nkeys_seed=str(self.seeds[role, node]),
            inbox_prefix=inbox_prefix(role, node),
            error_cb=on_error,
            allow_reconnect=False,
        )
        return client, denied

    async def bus(
        self,
        role: str,
        node: str | None = None,
        *,
        identity: Identity | None = None,
        telemetry: Telemetry | None = None,
        settings: BusSettings = QUICK,
        on_state: OnState = lambda _state: None,
    ) -> JetStreamBus:
        """Return a bus, connected or not.

        :param identity: whose key it has; its own by default.
        :param on_state: gets the states that the bus reports.
        """
        return await connect(
            self.url,
            role=role,
            node=node or "_",
            telemetry=telemetry or recording_telemetry()[0],
            log=structlog.get_logger(),
            settings=settings,
            environ={"NATS_NKEY": str(self.seeds[identity or (role, node)])},
            on_state=on_state,
        )


async def ask_controller(client: Client, subject: str, body: bytes = b"") -> bytes:
    """Return the answer of a controller, as soon as there is one.

    For some milliseconds after a controller's subscription, the server may not have it in the other account yet.
    """
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NoRespondersError):
                return (await client.request(subject, body, timeout=60)).data
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def identity_server(
    directory: Path, identities: Sequence[Identity] = EVERYBODY, *options: str
) -> AsyncIterator[IdentityServer]:
    """Provide a running server and stop it at the end."""
    server = IdentityServer(directory, identities, *options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
