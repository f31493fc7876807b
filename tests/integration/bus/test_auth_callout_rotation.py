"""Roles whose connections to NATS end with the tokens of their ServiceAccounts: none of them loses an event."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog
from nats.errors import Error as NatsError

from schemas.bus.encoding import node_consumer, node_filter
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.nats_config import NatsCallout, render_accounts
from services.common.bus.nkeys import KeyKind, SigningKey, make_seed
from services.common.bus.settings import BusSettings
from tests.support.bus.auth_callout import Callout, running_callout
from tests.support.bus.auth_tokens import make_token
from tests.support.bus.conformance import Inbox, annotated
from tests.support.bus.jetstream import QUICK
from tests.support.telemetry.spans import recording_telemetry

NODE = "node1"


class Role:
    """A role that connects with the token in a file.

    :ivar bus: its bus.
    """

    def __init__(self, callout: Callout, directory: Path, role: str) -> None:
        self._callout = callout
        self._role = role
        self._node = NODE if role == "networks" else "_"
        self._file = directory / f"{role}.token"
        self.bus: JetStreamBus

    def replace_token(self, lifetime: float) -> None:
        """Put a new token into the file, as the kubelet does."""
        token = make_token(f"hotnic-{self._role}", lifetime=lifetime)
        self._callout.reviews.accept(token, pod=f"{self._role}-1", node=NODE)
        self._file.write_text(f"{token}\n")

    @contextlib.asynccontextmanager
    async def connected(self, settings: BusSettings) -> AsyncIterator[None]:
        """Keep the bus open in this block."""
        self.bus = await connect(
            self._callout.url,
            role=self._role,
            node=self._node,
            telemetry=recording_telemetry(self._role)[0],
            log=structlog.get_logger(),
            settings=settings,
            environ={"NATS_TOKEN_FILE": str(self._file), "NATS_CA": str(self._callout.ca)},
        )
        try:
            async with asyncio.timeout(60):
                await self.bus.wait_connected()
            yield
        finally:
            await self.bus.close()


@contextlib.asynccontextmanager
async def flowing(tmp_path: Path, settings: BusSettings, lifetime: float) -> AsyncIterator[list[Role]]:
    """Publish events from the controller to the networks role of a node during the block; then expect every one."""
    async with running_callout(tmp_path) as callout:
        controller, networks = roles = [Role(callout, tmp_path, role) for role in ("controller", "networks")]
        for role in roles:
            role.replace_token(lifetime)
        inbox, stop, count = Inbox(), asyncio.Event(), 0

        async def publish() -> None:
            nonlocal count
            while not stop.is_set():
                count += 1
                await controller.bus.publish(annotated(node=NODE, attempt=count))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.02)

        async with controller.connected(settings), networks.connected(settings):
            consumer = node_consumer("networks", NODE)
            consuming = asyncio.create_task(
                networks.bus.consume(consumer=consumer, filters=[node_filter(NODE)], handler=inbox)
            )
            publishing = asyncio.create_task(publish())
            # A consumer gets what is published after its creation.
            [first, *_] = await inbox.wait(1)
            yield roles
            stop.set()
            await publishing
            expected = set(range(first.attempt, count + 1))
            async with asyncio.timeout(60):
                while not expected <= {event.attempt for event in inbox.events}:
                    await inbox.wait(len(inbox.events) + 1)
            consuming.cancel()
            await asyncio.wait([consuming])


async def test_no_event_is_lost_when_a_token_is_replaced_after_the_connection_has_ended(tmp_path: Path) -> None:
    # The files are not compared: a connection ends with its token only.
    settings = msgspec.structs.replace(QUICK, files_interval=600.0)
    async with flowing(tmp_path, settings, 3) as roles:
        await asyncio.gather(*map(renew, roles))


async def renew(role: Role) -> None:
    """Replace the token of a role twice, each time when its connection has ended."""
    for lifetime in (3, 600):
        async with asyncio.timeout(60):
            await role.bus.wait_disconnected()
            connected = False
            while not connected:
                # Again if it has expired before the role has connected.
                role.replace_token(lifetime)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(role.bus.wait_connected(), 10)
                    connected = True


async def test_no_event_is_lost_when_a_token_is_replaced_before_it_expires(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, files_interval=0.1, pull_expires=1.0)
    async with flowing(tmp_path, settings, 600) as roles:
        before = [role.bus._session.connection for role in roles]
        for role in roles:
            role.replace_token(700)
        async with asyncio.timeout(60):
            # The session sets no event for this.
            while any(  # noqa: ASYNC110
                role.bus._session.connection in (None, old) for role, old in zip(roles, before, strict=True)
            ):
                await asyncio.sleep(0.01)


async def test_the_keys_of_the_callout_are_replaced_while_roles_connect(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        keys, config = callout.keys, tmp_path / "nats.conf"
        issuer, user = (SigningKey((keys / name).read_text()) for name in ("issuer.nk", "user.nk"))
        next_issuer, next_user = (make_seed(kind) for kind in (KeyKind.ACCOUNT, KeyKind.USER))
        following = SigningKey(next_issuer).public, SigningKey(next_user).public

        async def role_connects() -> None:
            token = callout.reviews.accept(make_token())
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(NatsError, OSError):
                        client = await callout.connect(token)
                        if client.is_connected:
                            await client.close()
                            return
                        await client.close()

        async def restart() -> None:
            await callout.server.stop()
            await callout.server.start()

        # As docs/install.md says: the api gets the second key first, then the server expects it.
        (keys / "issuer-next.nk").write_text(next_issuer)
        await role_connects()
        config.write_text(render_accounts([], NatsCallout(following[0], [user.public, following[1]])))
        # The server cannot reload its callout.
        await restart()
        await role_connects()
        (keys / "issuer.nk").write_text(next_issuer)
        (keys / "issuer-next.nk").unlink()
        (keys / "user.nk").write_text(next_user)
        await role_connects()
        config.write_text(render_accounts([], NatsCallout(following[0], [following[1]])))
        # The server cannot reload its callout.
        await restart()
        await role_connects()
        assert issuer.public != following[0]
