"""Who creates consumers: the controller alone, those of the nodes on request; what a node could try, and what fails."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.errors import NotFoundError

from schemas.bus.consumers import decode_answer
from schemas.bus.encoding import PROJECTOR_CONSUMER, consumer_request, node_consumer, node_filter
from schemas.bus.events import MultusAttached, ObjectRef, PodAnnotated
from schemas.bus.permissions import API, CLIENT_API, STREAMS, BusRole, identity_name
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind
from services.common.bus.nats.jetstream import JetStreamBus
from services.common.bus.nats.streams import ensure_streams
from tests.support.bus.conformance import Inbox
from tests.support.bus.identities import EVERYBODY, Identity, IdentityServer, States, ask_controller, identity_server
from tests.support.bus.jetstream import QUICK
from tests.support.telemetry.spans import recording_telemetry

VMI, POD = ObjectRef("default", "vm1", "u1"), ObjectRef("default", "launcher", "u2")
CLIENTS = [identity for identity in EVERYBODY if identity[0] != BusRole.CONTROLLER]
HANDLER, OTHER = node_consumer("handler", "node1"), node_consumer("handler", "node2")
SECOND: tuple[Identity, ...] = (("networks", "node2"), ("handler", "node2"))


def attached(number: int = 1, node: str = "node1") -> MultusAttached:
    operation = Operation(f"op-{number}", OperationKind.PLUG, "blue")
    return MultusAttached(operation=operation, vmi=VMI, pod=POD, node=node, attempt=number)


def annotated(number: int) -> PodAnnotated:
    operation = Operation(f"op-{number}", OperationKind.PLUG, "blue")
    return PodAnnotated(operation=operation, vmi=VMI, pod=POD, node="node1")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[IdentityServer]:
    async with identity_server(tmp_path, (*EVERYBODY, *SECOND)) as running:
        yield running


@contextlib.asynccontextmanager
async def running(
    server: IdentityServer, role: str, node: str | None = None, **options: Any
) -> AsyncIterator[JetStreamBus]:
    bus = await server.bus(role, node, **options)
    try:
        async with asyncio.timeout(60):
            await bus.wait_connected()
        yield bus
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def consuming(
    bus: JetStreamBus, consumer: str = HANDLER, filters: str = node_filter("node1")
) -> AsyncIterator[Inbox]:
    inbox = Inbox()
    task = asyncio.create_task(bus.consume(consumer=consumer, filters=[filters], handler=inbox))
    try:
        yield inbox
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def administrating(server: IdentityServer) -> AsyncIterator[Client]:
    """A client of the controller's identity, after it has created the streams; it answers no requests."""
    client, _ = await server.client("controller")
    await ensure_streams(client.jetstream(), QUICK, structlog.get_logger())
    try:
        yield client
    finally:
        await client.close()


async def wait_pull(client: Client, name: str = HANDLER) -> None:
    """Wait until a consumer has a pull request."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NotFoundError):
                if (await client.jetstream().consumer_info("HOTPLUG", name)).num_waiting:
                    return


async def settle(client: Client) -> None:
    await client.flush()
    await client.flush()


@pytest.mark.parametrize("identity", CLIENTS, ids=lambda identity: identity_name(*identity))
async def test_no_client_creates_or_deletes_a_consumer(server: IdentityServer, identity: Identity) -> None:
    async with running(server, "controller") as controller, administrating(server) as administrator:
        await controller.kv("hotplug-status").put("default.vm1.h", b"status")
        async with consuming(controller, "projector", "hotplug.>"):
            await wait_pull(administrator, "projector")
            client, denied = await server.client(*identity)
            tried = 0
            for api in (API, CLIENT_API):
                for stream in STREAMS:
                    for name in ("projector", HANDLER, "mine"):
                        config = {"name": name, "ack_policy": "none", "deliver_subject": f"{API}.STREAM.PURGE.HOTPLUG"}
                        for subject in (
                            f"CREATE.{stream}",
                            f"CREATE.{stream}.{name}",
                            f"CREATE.{stream}.{name}.{node_filter('node1')}",
                            f"DURABLE.CREATE.{stream}.{name}",
                            f"DELETE.{stream}.{name}",
                        ):
                            body = {"stream_name": stream, "config": config | {"durable_name": name}}
                            await client.publish(f"{api}.CONSUMER.{subject}", json.dumps(body).encode())
                            tried += 1
                            await settle(client)
            assert sum("permissions violation for publish" in text for text in denied) == tried
            await client.close()
            js = administrator.jetstream()
            assert [(await js.stream_info(stream)).state.consumer_count for stream in STREAMS] == [1, 0, 0]
            assert (await js.consumer_info("HOTPLUG", "projector")).config.deliver_subject is None


async def test_a_node_cannot_have_its_consumer_pull_for_another_node(server: IdentityServer) -> None:
    """The finding of the audit: a push consumer that delivers to the next subject of another one took its events."""
    stolen = f"{API}.CONSUMER.MSG.NEXT.HOTPLUG.{OTHER}"
    config = {
        "name": HANDLER,
        "filter_subject": node_filter("node1"),
        "deliver_subject": stolen,
        "ack_policy": "explicit",
    }
    body = json.dumps({"stream_name": "HOTPLUG", "config": config, **config, "since": None}).encode()
    async with (
        running(server, "controller") as controller,
        administrating(server) as administrator,
        running(server, "networks", "node2") as networks,
        running(server, "handler", "node2") as victim,
        consuming(victim, OTHER, node_filter("node2")) as inbox,
    ):
        await wait_pull(administrator, OTHER)
        attacker, denied = await server.client("handler", "node1")
        for subject in (f"HOTPLUG.{HANDLER}.{node_filter('node1')}", f"HOTPLUG.{HANDLER}", "HOTPLUG"):
            await attacker.publish(f"{CLIENT_API}.CONSUMER.CREATE.{subject}", body)
        await attacker.publish(consumer_request("handler", "node2"), body)
        await attacker.publish(consumer_request("networks", "node1"), body)
        await settle(attacker)
        assert len(denied) == 5
        # What the body of its own request says has no effect on the consumer.
        answer = await ask_controller(attacker, consumer_request("handler", "node1"), body)
        assert decode_answer(answer).error == ""
        created = (await administrator.jetstream().consumer_info("HOTPLUG", HANDLER)).config
        assert (created.deliver_subject, created.filter_subject) == (None, node_filter("node1"))
        for number in range(20):
            await attacker.publish("hotplug.guest-attached.node1.default.vm1", b"x", reply=stolen)
            await networks.publish(attached(number, "node2"))
        assert await inbox.wait(20) == [attached(number, "node2") for number in range(20)]
        found = await administrator.jetstream().consumer_info("HOTPLUG", OTHER)
        assert found.delivered is not None
        # All of them to the one who received them.
        assert (found.delivered.consumer_seq, found.num_waiting) == (20, 1)
        await attacker.close()
        assert controller.connected


@pytest.mark.parametrize(
    "target",
    [
        f"{API}.CONSUMER.MSG.NEXT.HOTPLUG.{OTHER}",
        f"{CLIENT_API}.CONSUMER.MSG.NEXT.HOTPLUG.{OTHER}",
        "hotplug.guest-attached.node2.default.vm1",
        consumer_request("handler", "node2"),
    ],
)
async def test_a_node_cannot_have_a_trace_of_its_message_sent_for_it(server: IdentityServer, target: str) -> None:
    """The server publishes where a message passes to the subject in this header, if its publisher may do so."""
    async with (
        running(server, "controller"),
        administrating(server) as administrator,
        running(server, "handler", "node2") as victim,
        consuming(victim, OTHER, node_filter("node2")) as inbox,
    ):
        await wait_pull(administrator, OTHER)
        attacker, denied = await server.client("handler", "node1")
        for subject in ("hotplug.guest-attached.node1.default.vm1", consumer_request("handler", "node1")):
            await attacker.publish(subject, b"x", headers={"Nats-Trace-Dest": target})
            await settle(attacker)
        assert [target.lower() in text for text in denied] == [True, True]
        last = await administrator.jetstream().publish("hotplug.pod-annotated.node1.default.vm1", b"x")
        found = await administrator.jetstream().consumer_info("HOTPLUG", OTHER)
        assert found.delivered is not None
        assert (last.seq <= 2, found.num_waiting, found.delivered.consumer_seq, inbox.events) == (True, 1, 0, [])
        await attacker.close()


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"since":1}',
        b'{"since":"2026-11-30T03:00:00"}',
        b'{"since":"0001-01-01T00:00:00+14:00"}',
        b'{"since":"9999-12-31T23:59:59-14:00"}',
        b'{"since":"' + b"x" * 2000 + b'"}',
    ],
)
async def test_a_request_that_cannot_be_read_is_refused(server: IdentityServer, body: bytes) -> None:
    async with running(server, "controller"), administrating(server) as administrator:
        client, _ = await server.client("handler", "node1")
        assert decode_answer(await ask_controller(client, consumer_request("handler", "node1"), body)).error
        with pytest.raises(NotFoundError):
            await administrator.jetstream().consumer_info("HOTPLUG", HANDLER)
        answer = await ask_controller(client, consumer_request("handler", "node1"), b"")
        assert decode_answer(answer).error == ""
        await client.close()


async def test_a_flood_of_requests_of_one_node_does_not_keep_another_waiting(server: IdentityServer) -> None:
    async with running(server, "controller"), administrating(server) as administrator:
        flooder, _ = await server.client("handler", "node1")
        created = administrator.jetstream().consumer_info
        await ask_controller(flooder, consumer_request("handler", "node1"), b"")
        answered = await flooder.subscribe("_INBOX_hotnic.handler.node1.flood")
        for _ in range(5000):
            await flooder.publish(consumer_request("handler", "node1"), b"", reply="_INBOX_hotnic.handler.node1.flood")
        await flooder.flush()
        async with running(server, "handler", "node2") as handler, consuming(handler, OTHER, node_filter("node2")):
            await wait_pull(administrator, OTHER)
        # Only the newest of those that wait is answered, a few each second.
        assert answered.pending_msgs < 500
        assert (await created("HOTPLUG", HANDLER)).name == HANDLER
        await flooder.close()


async def test_a_role_that_starts_before_any_controller_says_so_and_gets_its_consumer(server: IdentityServer) -> None:
    states = States()
    async with (
        administrating(server) as administrator,
        running(server, "handler", "node1", on_state=states.add) as handler,
        consuming(handler) as inbox,
    ):
        text = await states.wait(f"no controller creates consumer {HANDLER}")
        assert "none is connected, or it is of an earlier version" in text
        assert handler.connected
        async with running(server, "controller") as controller:
            await wait_pull(administrator)
            await controller.publish(annotated(1))
            assert await inbox.wait(1) == [annotated(1)]
            assert states.seen[-1] == ""


async def test_a_deleted_consumer_is_created_again_and_no_event_is_lost(server: IdentityServer) -> None:
    async with (
        running(server, "controller") as controller,
        administrating(server) as administrator,
        running(server, "handler", "node1") as handler,
        consuming(handler) as inbox,
    ):
        await wait_pull(administrator)
        for number in range(1, 6):
            await controller.publish(annotated(2 * number))
            await inbox.wait(2 * number - 1)
            await administrator.jetstream().delete_consumer("HOTPLUG", HANDLER)
            # Stored while there is no consumer, or after it is there again.
            await controller.publish(annotated(2 * number + 1))
            await inbox.wait(2 * number)
        assert sorted({event.operation.id for event in inbox.events}) == sorted(f"op-{n}" for n in range(2, 12))


async def test_events_of_a_flood_do_not_keep_those_of_other_nodes_waiting(server: IdentityServer) -> None:
    """The events of all nodes wait in one row: 50,000 of one node delayed those of another one by 25 s."""
    telemetry, _ = recording_telemetry()
    settings = msgspec.structs.replace(QUICK, max_behind=500)
    async with (
        running(server, "controller", settings=settings, telemetry=telemetry) as controller,
        running(server, "networks", "node2") as networks,
        administrating(server) as administrator,
    ):
        async with consuming(controller, PROJECTOR_CONSUMER, "hotplug.>") as inbox:
            await wait_pull(administrator, PROJECTOR_CONSUMER)
            await networks.publish(attached(1, "node2"))
            assert await inbox.wait(1) == [attached(1, "node2")]
        client, _ = await server.client("handler", "node1")
        for _ in range(2000):
            await client.publish("hotplug.failed.node1.default.vm1", b"x")
        await settle(client)
        await networks.publish(attached(2, "node2"))
        async with consuming(controller, PROJECTOR_CONSUMER, "hotplug.>") as inbox:
            async with asyncio.timeout(60):
                while b"hotnic_bus_excess_total" not in telemetry.metrics_text():  # noqa: ASYNC110 - a metric
                    await asyncio.sleep(0.01)
            await wait_pull(administrator, PROJECTOR_CONSUMER)
            # What waited is left out, and what comes now is received.
            await networks.publish(attached(3, "node2"))
            assert await inbox.wait(1) == [attached(3, "node2")]
        await client.close()


async def test_the_controller_is_replaced_while_events_flow_and_consumers_vanish(server: IdentityServer) -> None:
    states = States()
    async with (
        administrating(server) as administrator,
        running(server, "networks", "node1") as networks,
        running(server, "handler", "node1", on_state=states.add) as handler,
    ):
        first = await server.bus("controller")
        async with consuming(handler) as inbox:
            await wait_pull(administrator)
            await networks.publish(attached(1))
            await inbox.wait(1)
            await first.close()
            await networks.publish(attached(2))
            # Receiving needs no controller.
            await inbox.wait(2)
            await administrator.jetstream().delete_consumer("HOTPLUG", HANDLER)
            await states.wait("no controller creates consumer")
            for number in range(3, 20):
                await networks.publish(attached(number))
            second = await server.bus("controller")
            assert {event.attempt for event in await inbox.wait(19)} == set(range(1, 20))
            assert states.seen[-1] == ""
            await second.close()


async def test_of_several_controllers_one_answers(server: IdentityServer) -> None:
    async with running(server, "controller"), running(server, "controller"), administrating(server) as administrator:
        client, _ = await server.client("handler", "node1")
        answers = await client.subscribe("_INBOX_hotnic.handler.node1.x")
        await client.publish(consumer_request("handler", "node1"), b"", reply="_INBOX_hotnic.handler.node1.x")
        assert decode_answer((await answers.next_msg(60)).data).error == ""
        await settle(client)
        assert answers.pending_msgs == 0
        # A role has its consumer of an earlier version replaced, too.
        js = administrator.jetstream()
        await js.delete_consumer("HOTPLUG", HANDLER)
        await js.add_consumer("HOTPLUG", name=HANDLER, filter_subject="hotplug.old.>")
        async with running(server, "handler", "node1") as handler, consuming(handler):
            await wait_pull(administrator)
        assert (await js.consumer_info("HOTPLUG", HANDLER)).config.filter_subject == node_filter("node1")
        await client.close()


async def test_a_server_with_the_configuration_of_an_earlier_version_is_named(server: IdentityServer) -> None:
    """A new role on a server, or with an auth callout, that knows no requests for consumers."""
    config = server._config.read_text()
    server._config.write_text(config.replace(f'"{consumer_request("handler", "node1")}"', '"nothing"'))
    await server.stop()
    await server.start()
    states = States()
    settings = msgspec.structs.replace(QUICK, api_timeout=0.5)
    async with (
        running(server, "controller") as controller,
        administrating(server) as administrator,
        running(server, "handler", "node1", settings=settings, on_state=states.add) as handler,
        consuming(handler) as inbox,
    ):
        text = await states.wait(f"NATS denies to request consumer {HANDLER} on {consumer_request('handler', 'node1')}")
        assert "docs/upgrade.md" in text
        # Beside it a consumer that the role of the earlier version has created goes on to serve.
        await administrator.jetstream().add_consumer(
            "HOTPLUG", name=HANDLER, filter_subject=node_filter("node1"), ack_policy="explicit", deliver_policy="new"
        )
        await wait_pull(administrator)
        await controller.publish(annotated(1))
        assert await inbox.wait(1) == [annotated(1)]


async def test_without_a_controller_there_is_no_answer(server: IdentityServer) -> None:
    """The server says at once that nobody answers, through the import, too."""
    async with administrating(server):
        client, _ = await server.client("handler", "node1")
        with pytest.raises(NoRespondersError):
            await client.request(consumer_request("handler", "node1"), b"", timeout=60)
        await client.close()


async def test_other_roles_have_no_consumer(server: IdentityServer) -> None:
    async with (
        running(server, "controller"),
        running(server, "api") as api,
        running(server, "handler", "node1") as handler,
    ):
        for bus, name in ((api, "api"), (handler, OTHER)):
            with pytest.raises(ValueError, match="has no consumer"):
                await bus.consume(consumer=name, filters=["hotplug.>"], handler=Inbox())
