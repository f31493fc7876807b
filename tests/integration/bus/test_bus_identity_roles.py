"""The roles on a server with identities: they work, forge nothing, wait for the controller, and follow their files."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import structlog
from nats.js.errors import NotFoundError
from structlog.testing import capture_logs

from schemas.bus.encoding import node_consumer, node_filter
from schemas.bus.events import Event, Failed, GuestAttached, MultusAttached, ObjectRef, PodAnnotated, Requested
from schemas.bus.hotplug_status import BUCKET
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.cli.doctor.collect.bus import read_bus
from services.cli.doctor.snapshot import NotVisible
from services.common.bus.envelope import DEAD_REASON, BusMessage, encode_message
from services.common.bus.nats.connection import BusConnection
from services.common.bus.nats.jetstream import JetStreamBus, connect
from services.common.bus.nats.stored.reader import open_reader
from services.common.bus.nkeys import KeyKind, make_seed
from services.common.bus.protocol import BusDenied, BusUnavailable, KeyValueEntry
from tests.support.bus.conformance import Inbox
from tests.support.bus.identities import EVERYBODY, Identity, IdentityServer, States, identity_server
from tests.support.bus.jetstream import QUICK
from tests.support.bus.nats import nats_server
from tests.support.kube.certs import Authority
from tests.support.telemetry.spans import recording_telemetry

VMI, POD = ObjectRef("default", "vm1", "u1"), ObjectRef("default", "launcher", "u2")
SECOND: tuple[Identity, ...] = (("networks", "node2"), ("handler", "node2"))


def plug(number: int = 1) -> Operation:
    return Operation(f"op-{number}", OperationKind.PLUG, "blue")


def attached(number: int = 1, node: str = "node1") -> MultusAttached:
    return MultusAttached(operation=plug(number), vmi=VMI, pod=POD, node=node, attempt=number)


def failed(node: str) -> Failed:
    return Failed(operation=plug(), vmi=VMI, pod=POD, node=node, at=Stage.GUEST_ATTACHED, reason="X")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[IdentityServer]:
    async with identity_server(tmp_path, (*EVERYBODY, *SECOND)) as running:
        yield running


@contextlib.asynccontextmanager
async def connected(*buses: JetStreamBus) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(60):
            for bus in buses:
                await bus.wait_connected()
        yield
    finally:
        for bus in buses:
            await bus.close()


@contextlib.asynccontextmanager
async def consuming(bus: JetStreamBus, consumer: str, *filters: str) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    task = asyncio.create_task(bus.consume(consumer=consumer, filters=filters, handler=inbox))
    try:
        yield inbox
    finally:
        task.cancel()
        await asyncio.wait({task})


async def wait_pull(bus: JetStreamBus, name: str) -> None:
    """Wait until a consumer of the bus has a pull request."""
    connection = bus._session.connection
    assert connection is not None
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NotFoundError):
                if (await connection.js.consumer_info("HOTPLUG", name)).num_waiting:
                    return


async def wait_other_connection(bus: JetStreamBus, earlier: BusConnection | None) -> None:
    """Wait until the bus has another connection than the earlier one."""
    async with asyncio.timeout(60):
        while bus._session.connection in (earlier, None):  # noqa: ASYNC110 - nothing signals a replacement
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("identity", ["own", "node"])
async def test_roles_do_their_work_with_their_identities(server: IdentityServer, identity: str) -> None:
    shared: Identity | None = ("node", "node1") if identity == "node" else None
    controller, api = await server.bus("controller"), await server.bus("api")
    networks = await server.bus("networks", "node1", identity=shared)
    handler = await server.bus("handler", "node1", identity=shared)
    async with connected(controller, api, networks, handler):
        stages = ["hotplug.requested.>", "hotplug.multus-attached.>", "hotplug.guest-attached.>"]
        async with (
            consuming(controller, "controller", *stages) as all_stages,
            consuming(controller, "projector", "hotplug.>") as everything,
            consuming(networks, node_consumer("networks", "node1"), node_filter("node1")) as at_networks,
            consuming(handler, node_consumer("handler", "node1"), node_filter("node1")) as at_handler,
        ):
            for bus, name in (
                (networks, node_consumer("networks", "node1")),
                (handler, node_consumer("handler", "node1")),
                (controller, "controller"),
                (controller, "projector"),
            ):
                await wait_pull(bus, name)
            sent: list[tuple[JetStreamBus, Event]] = [
                (api, Requested(operation=plug(), vmi=VMI, node="node1", network="default/bridge")),
                (controller, PodAnnotated(operation=plug(), vmi=VMI, pod=POD, node="node1")),
                (networks, attached()),
                (handler, GuestAttached(operation=plug(), vmi=VMI, pod=POD, node="node1")),
                (
                    handler,
                    Failed(operation=plug(), vmi=VMI, pod=POD, node="node1", at=Stage.GUEST_ATTACHED, reason="X"),
                ),
            ]
            for bus, event in sent:
                await bus.publish(event)
            events = [event for _, event in sent]
            for inbox, expected in (
                (everything, events),
                (at_networks, events),
                (at_handler, events),
                (all_stages, [events[0], *events[2:4]]),
            ):
                assert sorted(await inbox.wait(len(expected)), key=repr) == sorted(expected, key=repr)
        with pytest.raises(BusUnavailable, match="the controller creates it"):
            await api.kv(BUCKET).get("default.vm1.h")
        revision = await controller.kv(BUCKET).put("default.vm1.h", b"status")
        assert await api.kv(BUCKET).get("default.vm1.h") == KeyValueEntry("default.vm1.h", b"status", revision)
        async with contextlib.aclosing(api.kv(BUCKET).watch("default.vm1.>")) as watched:
            assert await anext(watched) == KeyValueEntry("default.vm1.h", b"status", revision)
            assert await anext(watched) is None
            await controller.kv(BUCKET).delete("default.vm1.h")
            assert (deleted := await anext(watched)) is not None
            assert deleted.value is None
        with pytest.raises(BusUnavailable):
            await api.kv(BUCKET).put("default.vm1.h", b"forged")


@pytest.mark.parametrize(
    ("role", "forged"),
    [
        # Another node's event, another role's stage, and the own stage in another's name.
        ("handler", encode_message(attached(node="node2"), role="networks", node="node2", start_id="x")),
        ("handler", encode_message(attached(), role="networks", node="node1", start_id="x")),
        (
            "networks",
            encode_message(failed("node1"), role="handler", node="node2", start_id="x"),
        ),
        (
            "networks",
            encode_message(Requested(operation=plug(), vmi=VMI, node="node1"), role="api", node="_", start_id="x"),
        ),
    ],
)
async def test_a_forged_event_reaches_nobody(server: IdentityServer, role: str, forged: BusMessage) -> None:
    """Finding 11 of the security audit: publishers named themselves."""
    controller = await server.bus("controller")
    async with connected(controller), consuming(controller, "projector", "hotplug.>") as inbox:
        await wait_pull(controller, "projector")
        client, denied = await server.client(role, "node1")
        await client.publish(forged.subject, forged.payload, headers=forged.headers)
        await client.flush()
        await client.flush()
        await controller.publish(PodAnnotated(operation=plug(2), vmi=VMI, pod=POD, node="node1"))
        (event,) = await inbox.wait(1)
        assert event.operation.id == "op-2"
        if not denied:
            # On its own subject the server lets it through, and the receiver finds the wrong name.
            reader, _ = await server.client("reader")
            letter = await reader.jetstream(prefix="$JS.hotnic.API").get_last_msg(
                "HOTPLUG_DEAD", "hotplug-dead.failed.node1.default.vm1"
            )
            assert letter.headers is not None
            assert letter.headers[DEAD_REASON] == "ForbiddenPublisher"
            await reader.close()
        await client.close()


async def test_a_role_waits_for_the_controller_and_says_so(server: IdentityServer) -> None:
    states = {role: States() for role in ("api", "handler")}
    api = await server.bus("api", on_state=states["api"].add)
    handler = await server.bus("handler", "node1", on_state=states["handler"].add)
    for role in states:
        await states[role].wait("stream HOTPLUG does not exist; the controller creates it")
    await api.publish(Requested(operation=plug(), vmi=VMI, node="node1"))
    controller = await server.bus("controller")
    async with connected(controller, api, handler):
        assert [states[role].seen[-1] for role in states] == ["", ""]
        connection = controller._session.connection
        assert connection is not None
        async with asyncio.timeout(60):
            while not (await connection.js.stream_info("HOTPLUG")).state.messages:
                pass


async def test_a_missing_permission_is_said_once_and_stops_nothing(server: IdentityServer) -> None:
    telemetry, _ = recording_telemetry()
    states = States()
    controller = await server.bus("controller")
    # The networks role has the key of a handler.
    wrong = await server.bus(
        "networks", "node1", identity=("handler", "node1"), telemetry=telemetry, on_state=states.add
    )
    async with connected(controller):
        text = await states.wait("denies identity networks@node1 to subscribe")
        assert "_inbox_hotnic.networks.node1.>; check that its credentials are those of this role and node" in text
        assert "hotnic nats config" in text
        assert not wrong.connected
    await wrong.close()
    assert b'hotnic_bus_denials_total{operation="subscribe"}' in telemetry.metrics_text()


async def test_a_denied_event_does_not_block_those_behind_it(server: IdentityServer) -> None:
    telemetry, _ = recording_telemetry()
    states = States()
    controller = await server.bus("controller")
    # The process of node1 believes that it is on node2 for one event.
    networks = await server.bus("networks", "node1", telemetry=telemetry, on_state=states.add)
    async with connected(controller, networks), consuming(controller, "projector", "hotplug.>") as inbox:
        await wait_pull(controller, "projector")
        await networks.publish(attached(1, node="node2"))
        await networks.publish(attached(2))
        assert await inbox.wait(1) == [attached(2)]
        await states.wait("denies identity networks@node1 to publish to hotplug.multus-attached.node2.default.vm1")
    assert b'hotnic_bus_denials_total{operation="publish"} ' in telemetry.metrics_text()
    assert b"hotnic_bus_dropped_total 1.0" in telemetry.metrics_text()


async def test_a_key_is_replaced_while_events_flow(server: IdentityServer) -> None:
    settings = msgspec.structs.replace(QUICK, files_interval=0.1, pull_expires=1.0, ack_wait=1.0)
    controller = await server.bus("controller", settings=settings)
    networks = await server.bus("networks", "node1", settings=settings)
    handler = await server.bus("handler", "node1", settings=settings)
    identities: list[Identity] = [("networks", "node1"), ("handler", "node1"), ("controller", None)]
    buses = [networks, handler, controller]
    count = 0
    async with (
        connected(*buses),
        consuming(handler, node_consumer("handler", "node1"), node_filter("node1")) as at_handler,
        consuming(controller, "projector", "hotplug.>") as at_controller,
    ):
        await wait_pull(controller, "projector")
        stop = asyncio.Event()

        async def publish() -> None:
            nonlocal count
            while not stop.is_set():
                count += 1
                await networks.publish(attached(count))
                # Below the share of a node (EVENTS_PER_SECOND), however long the replacement takes.
                await asyncio.sleep(0.02)

        publishing = asyncio.create_task(publish())
        for _ in range(2):
            before = [bus._session.connection for bus in buses]
            for identity in identities:
                server.replace_seed(identity)
            # The files change first, so the first attempts are refused and the earlier connections stay.
            await asyncio.sleep(0.3)
            assert [bus._session.connection for bus in buses] == before
            await server.reload()
            for bus, earlier in zip(buses, before, strict=True):
                await wait_other_connection(bus, earlier)
        stop.set()
        await publishing
        for inbox in (at_handler, at_controller):
            await inbox.wait_until(lambda events: {event.attempt for event in events} == set(range(1, count + 1)))
        # The earlier keys are removed: those who still had a connection with them would lose it.
        for identity in identities:
            server.forget_keys(identity, keep=1)
        await server.reload()
        await networks.publish(attached(count + 1))
        await at_handler.wait_until(lambda events: count + 1 in {event.attempt for event in events})


@pytest.mark.parametrize("other", ["unknown", "another role"])
async def test_refused_new_credentials_leave_the_state_of_the_bus(server: IdentityServer, other: str) -> None:
    """The earlier connection works; nothing would correct the state once the files are as before."""
    states = States()
    settings = msgspec.structs.replace(QUICK, files_interval=0.1)
    controller = await server.bus("controller")
    networks = await server.bus("networks", "node1", settings=settings, on_state=states.add)
    async with connected(controller, networks), consuming(controller, "projector", "hotplug.>") as inbox:
        await wait_pull(controller, "projector")
        before = list(states.seen)
        assert before[-1] == ""
        seed = server.seeds["networks", "node1"]
        earlier = seed.read_bytes()
        handler = server.seeds["handler", "node1"].read_bytes()
        others = {"unknown": make_seed(KeyKind.USER).encode(), "another role": handler}
        with capture_logs() as lines:
            seed.write_bytes(others[other])
            async with asyncio.timeout(60):
                # Nothing else says that the new credentials were refused.
                while not any("the earlier connection stays" in line["event"] for line in lines):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        seed.write_bytes(earlier)
        await networks.publish(attached(1))
        assert await inbox.wait(1) == [attached(1)]
        assert states.seen == before


async def test_a_role_whose_user_is_removed_says_so_and_comes_back(server: IdentityServer) -> None:
    states = States()
    controller = await server.bus("controller")
    settings = msgspec.structs.replace(QUICK, files_interval=60.0)
    networks = await server.bus("networks", "node1", on_state=states.add, settings=settings)
    async with connected(controller, networks):
        server.forget_keys(("networks", "node1"), keep=0)
        await server.reload()
        await states.wait("NATS connection lost: ")
        await states.wait("cannot connect to NATS: nats: 'Authorization Violation'")
        server.replace_seed(("networks", "node1"))
        await server.reload()
        async with asyncio.timeout(60):
            await networks.wait_connected()
        assert states.seen[-1] == ""


async def test_people_read_and_replay_with_their_identities(server: IdentityServer) -> None:
    controller = await server.bus("controller")
    async with connected(controller), consuming(controller, "projector", "hotplug.>") as inbox:
        await wait_pull(controller, "projector")
        await controller.publish(PodAnnotated(operation=plug(), vmi=VMI, pod=POD, node="node1"))
        await inbox.wait(1)
        dead = encode_message(attached(), role="networks", node="node1", start_id="x")
        connection = controller._session.connection
        assert connection is not None
        # As a dead letter of a bug in the handler of an event: it can be replayed.
        headers = dead.headers | {DEAD_REASON: "HandlerFailed", "Hotnic-Dead-Subject": dead.subject}
        await connection.js.publish(
            f"hotplug-dead{dead.subject.removeprefix('hotplug')}", dead.payload, headers=headers
        )
        log = structlog.get_logger()
        for role in ("reader", "administrator"):
            environ = {"NATS_NKEY": str(server.seeds[role, None])}
            async with open_reader(server.url, environ, log=log, settings=QUICK) as reader:
                assert len([one async for one in reader.list_messages("hotplug.*.*.default.vm1")]) == 1
                (letter,) = [one async for one in reader.list_dead_letters()]
                assert await reader.get_dead_letter(letter.sequence) == letter
                assert [one.used is not None for one in await reader.read_usage()] == [True, True]
                if role == "reader":
                    with pytest.raises(BusDenied, match="administrator to replay dead letters"):
                        await reader.replay(letter, keep=False)
                else:
                    await reader.replay(letter, keep=False)
                    assert [one async for one in reader.list_dead_letters()] == []
        assert (await inbox.wait(2))[-1] == attached()


async def test_doctor_says_which_identity_it_needs(server: IdentityServer, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await server.bus("controller")
    async with connected(controller):
        await controller.kv(BUCKET).put("default.vm1.h", b"status")
        monkeypatch.setenv("NATS_NKEY", str(server.seeds["handler", "node1"]))
        found = await read_bus(server.url)
        assert isinstance(found, NotVisible)
        assert "the file of identity reader" in found.message
        monkeypatch.setenv("NATS_NKEY", str(server.seeds["reader", None]))
        usage = await read_bus(server.url)
        assert not isinstance(usage, NotVisible)
        assert [one.used is not None for one in usage.streams] == [True, True, True]


async def test_a_token_is_followed(tmp_path: Path) -> None:
    """The server compares it itself here; an auth callout would examine it."""
    config, token = tmp_path / "server.conf", tmp_path / "token"
    authority = Authority(tmp_path)
    pair = authority.server()
    # Not as options of the server, which reads its configuration again without them.
    tls = f'tls {{ cert_file: "{pair.cert}", key_file: "{pair.key}" }}\n'
    config.write_text(f'{tls}authorization {{ token: "first" }}')
    token.write_text("first\n")
    settings = msgspec.structs.replace(QUICK, files_interval=0.1)
    async with nats_server(tmp_path / "store", "-c", str(config)) as running:
        bus = await connect(
            running.url.replace("nats://", "tls://"),
            role="controller",
            node="_",
            telemetry=recording_telemetry()[0],
            log=structlog.get_logger(),
            settings=settings,
            environ={"NATS_TOKEN_FILE": str(token), "NATS_CA": str(authority.ca)},
        )
        async with connected(bus):
            earlier = bus._session.connection
            # As a kubelet does, by a rename: the earlier connection stays until the server accepts the new token.
            (tmp_path / "new").write_text("second\n")
            (tmp_path / "new").replace(token)
            config.write_text(f'{tls}authorization {{ token: "second" }}')
            os.kill(running.pid, signal.SIGHUP)
            await wait_other_connection(bus, earlier)
