"""What NATS permits to each identity: the whole table on a real server, and what a node could try beyond it."""

import json
from pathlib import Path

import pytest
import structlog
from nats.aio.client import Client
from nats.js.errors import APIError

from schemas.bus.encoding import consumer_request, node_consumer, node_filter
from schemas.bus.permissions import (
    API,
    CLIENT_API,
    IMPORTING_ACCOUNTS,
    STREAMS,
    identity_name,
    imports_of,
    inbox_prefix,
    role_permissions,
)
from services.common.bus.nats.streams import ensure_streams
from tests.support.bus.identities import EVERYBODY, Identity, IdentityServer, States, ask_controller, identity_server
from tests.support.bus.jetstream import QUICK
from tests.support.bus.memory import matches

OTHERS: tuple[Identity, ...] = (("networks", "node2"), ("handler", "node2"))
VERBS = (
    "CREATE",
    "UPDATE",
    "DELETE",
    "PURGE",
    "INFO",
    "MSG.GET",
    "MSG.DELETE",
    "SNAPSHOT",
    "RESTORE",
    "LEADER.STEPDOWN",
)
CREATIONS = [
    request
    for stream in STREAMS
    for name in ("x", "projector", node_consumer("handler", "node1"), node_consumer("handler", "node2"))
    for request in (
        f"CREATE.{stream}",
        f"CREATE.{stream}.{name}",
        f"CREATE.{stream}.{name}.{node_filter('node1')}",
        f"DURABLE.CREATE.{stream}.{name}",
        f"DELETE.{stream}.{name}",
    )
]
"""Every way to create, change or delete a consumer."""


def literal(pattern: str) -> str:
    """Return a subject that the pattern covers."""
    tokens = pattern.split(".")
    return ".".join("x" if token == "*" else "y.z" if token == ">" else token for token in tokens)


def subjects() -> list[str]:
    """Return one subject of everything that anybody may use, and all of JetStream's administration."""
    found = [pattern for identity in (*EVERYBODY, *OTHERS) for pattern in role_permissions(*identity).publish]
    for imported in (one for account in IMPORTING_ACCOUNTS for one in imports_of(account)):
        found += [imported.subject, imported.local]
    for api in (API, CLIENT_API):
        found += [f"{api}.STREAM.{verb}.{stream}" for verb in VERBS for stream in (*STREAMS, "OTHER")]
        found += [f"{api}.{request}" for request in ("INFO", "STREAM.NAMES", "STREAM.LIST", "ACCOUNT.PURGE.HOTNIC")]
        found += [f"{api}.CONSUMER.{request}.HOTPLUG" for request in ("NAMES", "LIST")]
        found += [f"{api}.CONSUMER.{request}" for request in CREATIONS]
        found += [f"{api}.DIRECT.GET.{stream}" for stream in STREAMS]
    found += ["$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.AUTH", "anything", "_INBOX.x.y", f"{inbox_prefix('api')}.x"]
    return sorted({literal(pattern) for pattern in found})


async def settle(client: Client) -> None:
    """Wait until the server has handled what the client has sent: it answers in order."""
    # nats-py writes the ping of a flush before what waits to be written.
    await client.flush()
    await client.flush()


@pytest.mark.parametrize("identity", EVERYBODY, ids=lambda identity: identity_name(*identity))
async def test_server_permits_what_the_table_says_and_nothing_else(tmp_path: Path, identity: Identity) -> None:
    permissions = role_permissions(*identity)
    async with identity_server(tmp_path) as server:
        client, denied = await server.client(*identity)
        wrong = []
        for subject in subjects():
            denied.clear()
            await client.publish(subject, b"", reply=f"{inbox_prefix(*identity)}.nobody")
            await settle(client)
            if bool(denied) is any(matches(pattern, subject) for pattern in permissions.publish):
                wrong.append((subject, list(denied)))
        everything = {pattern for other in (*EVERYBODY, *OTHERS) for pattern in role_permissions(*other).subscribe}
        for pattern in sorted(everything | {">", "hotplug.>", "hotnic.>", "hotnic.stored.>", "$KV.>"}):
            denied.clear()
            await client.subscribe(pattern)
            await settle(client)
            if bool(denied) is (pattern in permissions.subscribe):
                wrong.append((pattern, list(denied)))
        assert wrong == []
        await client.close()


async def prepare(server: IdentityServer) -> tuple[Client, dict[str, int]]:
    """Return a controller's client after it has created the streams, and how many messages each has."""
    controller, _ = await server.client("controller")
    js = controller.jetstream()
    await js.add_stream(name="HOTPLUG", subjects=["hotplug.>"], allow_direct=True)
    await js.add_stream(name="HOTPLUG_DEAD", subjects=["hotplug-dead.>"], allow_direct=True)
    await js.create_key_value(bucket="hotplug-status", direct=True)
    await js.publish("$KV.hotplug-status.default.vm1.h", b"status")
    return controller, await counts(controller)


async def counts(client: Client) -> dict[str, int]:
    return {stream: (await client.jetstream().stream_info(stream)).state.messages for stream in STREAMS}


@pytest.mark.parametrize(
    "target",
    [
        "hotplug.guest-attached.node2.default.vm1",
        "hotplug-dead.guest-attached.node2.default.vm1",
        "$KV.hotplug-status.default.vm1.h",
        "$JS.API.STREAM.DELETE.HOTPLUG",
        "$JS.API.STREAM.PURGE.KV_hotplug-status",
        "$JS.API.CONSUMER.DELETE.HOTPLUG.projector",
        "$JS.hotnic.API.CONSUMER.MSG.NEXT.HOTPLUG.projector",
    ],
)
@pytest.mark.parametrize("identity", [("handler", "node1"), ("api", None), ("reader", None)], ids=lambda i: i[0])
async def test_answers_to_requests_reach_no_stream(tmp_path: Path, identity: Identity, target: str) -> None:
    """The server does not check the subject of an answer: in one account this test deletes streams and writes keys."""
    async with identity_server(tmp_path) as server:
        controller, before = await prepare(server)
        await controller.request(
            f"{API}.CONSUMER.CREATE.HOTPLUG.projector.hotplug.>",
            json.dumps(
                {"stream_name": "HOTPLUG", "config": {"name": "projector", "filter_subject": "hotplug.>"}}
            ).encode(),
        )
        client, denied = await server.client(*identity)
        own = 0
        if identity[0] == "handler":
            name = node_consumer("handler", "node1")
            bus = await server.bus("controller")
            await bus.wait_connected()
            request = consumer_request("handler", "node1")
            assert await ask_controller(client, request) == b"{}"
            await client.publish(request, b"", reply=target)
            await client.publish("hotplug.guest-attached.node1.default.vm1", b"mine", reply=target)
            for pull in (b'{"batch":1}', b'{"batch":9,"no_wait":true}', b'{"batch":9,"no_wait":true}'):
                await client.publish(f"{CLIENT_API}.CONSUMER.MSG.NEXT.HOTPLUG.{name}", pull, reply=target)
            await client.publish(f"{CLIENT_API}.CONSUMER.INFO.HOTPLUG.{name}", reply=target)
            # Behind the one that is answered at the target.
            assert await ask_controller(client, request) == b"{}"
            await bus.close()
            own = 1
        else:
            await client.publish(f"{CLIENT_API}.STREAM.INFO.KV_hotplug-status", reply=target)
            await client.publish(f"{CLIENT_API}.STREAM.INFO.HOTPLUG", reply=target)
            stream = "HOTPLUG" if identity[0] == "reader" else "KV_hotplug-status"
            await client.publish(f"{CLIENT_API}.DIRECT.GET.{stream}", b'{"seq":1,"batch":9}', reply=target)
        if identity[0] == "api":
            await client.publish("hotplug.requested.node2.default.vm1", b"mine", reply=target)
            await client.publish(
                f"{CLIENT_API}.DIRECT.GET.KV_hotplug-status.$KV.hotplug-status.default.vm1.h", reply=target
            )
            own = 1
        await settle(client)
        # What arrives, arrives in milliseconds; a message behind it shows that the server has handled it.
        await controller.jetstream().publish("hotplug.pod-annotated.node2.default.vm1", b"after")
        assert await counts(controller) == before | {"HOTPLUG": before["HOTPLUG"] + own + 1}
        projector = await controller.jetstream().consumer_info("HOTPLUG", "projector")
        assert projector.delivered is not None
        # Nobody has pulled for it.
        assert (projector.num_waiting, projector.delivered.consumer_seq) == (0, 0)
        assert [text for text in denied if "permissions violation" in text] == []
        await client.close()
        await controller.close()


async def test_keys_of_nobody_and_no_key_are_refused(tmp_path: Path) -> None:
    async with identity_server(tmp_path, [("controller", None), ("api", None)]) as server:
        server.replace_seed(("api", None))
        states = States()
        bus = await server.bus("api", on_state=states.add)
        await states.wait("Authorization Violation")
        assert not bus.connected
        await bus.close()


@pytest.mark.parametrize("header", ["Nats-Rollup", "Nats-TTL", "Nats-Schedule"])
async def test_headers_of_a_node_remove_no_dead_letter(tmp_path: Path, header: str) -> None:
    async with identity_server(tmp_path) as server:
        controller, _ = await server.client("controller")
        await ensure_streams(controller.jetstream(), QUICK, structlog.get_logger())
        await controller.jetstream().publish("hotplug-dead.failed.node2.default.vm1", b"evidence")
        client, _ = await server.client("handler", "node1")
        for subject in ("hotplug-dead.failed.node1.default.vm1", "hotplug.failed.node1.default.vm1"):
            value = {"Nats-Rollup": "all", "Nats-TTL": "1s", "Nats-Schedule": "@every 1s"}[header]
            with pytest.raises(APIError):
                await client.jetstream().publish(subject, b"", headers={header: value})
        for stream, count in (("HOTPLUG", 0), ("HOTPLUG_DEAD", 1)):
            assert (await controller.jetstream().stream_info(stream)).state.messages == count
        await client.close()
        await controller.close()
