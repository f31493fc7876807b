"""What tells the api to read the bucket: nobody else can send it, and many of it are bearable."""

import asyncio
import contextlib
from pathlib import Path

import pytest
import structlog
from nats.aio.msg import Msg

from schemas.bus.encoding import CONSUMER_ROOT, consumer_request, stored_notice
from schemas.bus.hotplug_status import BUCKET
from schemas.bus.permissions import BUCKET_KEYS, CLIENT_API, identity_name, inbox_prefix, role_permissions
from schemas.inputs import REJECTED, Edge, RejectReason
from services.common.bus.nats.streams import ensure_streams, notices_of
from tests.support.bus.identities import EVERYBODY, Identity, ask_controller, identity_server
from tests.support.bus.jetstream import QUICK, jetstream
from tests.support.bus.nats import NatsServer

OTHERS = [identity for identity in EVERYBODY if identity[0] not in ("api", "controller", "node")]
"""The process of a node does what networks and handler do."""
KEY = "$KV.hotplug-status.default.vm1.h"


@pytest.mark.parametrize("identity", OTHERS, ids=lambda identity: identity_name(*identity))
async def test_no_answer_to_another_identity_reaches_the_api(tmp_path: Path, identity: Identity) -> None:
    """The server checks no subject of an answer: in the account of the api, each of these arrives as a notice."""
    async with identity_server(tmp_path) as server:
        controller, _ = await server.client("controller")
        js = controller.jetstream()
        await ensure_streams(js, QUICK, structlog.get_logger())
        bucket = await js.create_key_value(bucket="hotplug-status", direct=True, republish=notices_of(BUCKET_KEYS))
        bus = await server.bus("controller")
        await bus.wait_connected()
        api, _ = await server.client("api")
        received: list[str] = []
        arrived = asyncio.Event()

        async def on_message(msg: Msg) -> None:
            received.append(msg.subject)
            arrived.set()

        inbox = f"{inbox_prefix('api')}.x"
        await api.subscribe(stored_notice(BUCKET_KEYS), cb=on_message)
        await api.subscribe(inbox, cb=on_message)
        await api.flush()
        client, denied = await server.client(*identity)
        roles = [subject.split(".")[2] for subject in role_permissions(*identity).publish if CONSUMER_ROOT in subject]
        for role in roles:
            assert await ask_controller(client, consumer_request(role, "node1")) == b"{}"
        for target in (stored_notice(KEY), inbox):
            # Twice: the first ones publish what the second ones pull.
            for pattern in role_permissions(*identity).publish * 2:
                subject = pattern.replace("*", "x").replace(">", "default.vm1")
                for payload in (b"", b'{"batch":9,"no_wait":true}', b'{"seq":1,"batch":9}'):
                    headers = {"Nats-Sequence": "9" * 30} if subject.startswith("hotplug") else None
                    await client.publish(subject, payload, reply=target, headers=headers)
                await client.publish(subject, b"", headers={"Nats-Trace-Dest": target, "Nats-Trace-Only": "1"})
        # Behind those that are answered at the targets.
        if roles:
            assert await ask_controller(client, consumer_request(roles[0], "node1")) == b"{}"
        else:
            await client.request(f"{CLIENT_API}.STREAM.INFO.HOTPLUG", timeout=60)
        # It checks the destination of a trace.
        assert {text.split('"')[1] for text in denied} == {stored_notice(KEY).lower(), inbox.lower()}
        await bucket.put("default.vm1.h", b"status")
        async with asyncio.timeout(60):
            while stored_notice(KEY) not in received:
                arrived.clear()
                await arrived.wait()
        await api.flush()
        await api.flush()
        assert received == [stored_notice(KEY)]
        await bus.close()
        for one in (client, api, controller):
            await one.close()


async def test_a_flood_of_notices_arrives_once_whoever_watches(server: NatsServer) -> None:
    """On a server without identities anybody can send them; each watch multiplied them."""
    watches, notices = 20, 5000
    async with jetstream(server) as harness, contextlib.AsyncExitStack() as stack:
        controller, api = await harness.bus("controller", "_"), await harness.bus("api", "_")
        bucket = controller.kv(BUCKET)
        await bucket.put("default.vm1.h", b"0")
        watched = [
            await stack.enter_async_context(contextlib.aclosing(api.kv(BUCKET).watch("default.vm1.>")))
            for _ in range(watches)
        ]
        async with asyncio.timeout(60):
            for watch in watched:
                assert [entry and entry.value for entry in (await anext(watch), await anext(watch))] == [b"0", None]
        connection = api._session.connection
        assert connection is not None
        before, rejected = connection.client.stats["in_msgs"], REJECTED.counts()
        following = [asyncio.ensure_future(anext(watch)) for watch in watched]
        for number in range(notices):
            value = "x" if number % 2 else str(10**17 + number)
            await harness.client.publish(stored_notice(KEY), b"x" * 1000, headers={"Nats-Sequence": value})
        await harness.client.flush()
        await bucket.put("default.vm1.h", b"1")
        async with asyncio.timeout(60):
            assert {entry and entry.value for entry in await asyncio.gather(*following)} == {b"1"}
        assert api._session.connection is connection
        # The notices, and what the watches have read because of them.
        assert connection.client.stats["in_msgs"] - before < 2 * notices
        malformed = (Edge.BUS, RejectReason.MALFORMED)
        assert REJECTED.counts().get(malformed, 0) > rejected.get(malformed, 0)
