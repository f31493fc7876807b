"""The auth callout with a real nats-server: who gets in, with which permissions, and what a refusal costs."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from tests.support.bus.auth_callout import Callout, Denials, reviewing_kube, running_callout, server_config, write_keys
from tests.support.bus.auth_tokens import NAMESPACE, make_token
from tests.support.bus.nats import nats_server, tls_options
from tests.support.kube.certs import Authority

INBOX = b"_INBOX_hotnic.networks.node1"


async def test_a_role_of_a_node_gets_the_permissions_of_its_node(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        token = callout.reviews.accept(make_token("hotnic-networks"), node="node1")
        denials = Denials()
        client = await callout.connect(token, error_cb=denials.add, inbox_prefix=INBOX)
        await client.publish("hotplug.multus-attached.node1.default.vm1", b"{}")
        await client.flush()
        assert denials == []
        # Another node, another role's stage, the streams, and the requests of other connections.
        for subject in (
            "hotplug.multus-attached.node2.default.vm1",
            "hotplug.guest-attached.node1.default.vm1",
            "$JS.API.STREAM.DELETE.HOTPLUG",
            "$SYS.REQ.USER.AUTH",
        ):
            await client.publish(subject, b"{}")
        await client.subscribe("$SYS.REQ.USER.AUTH")
        await client.subscribe("_INBOX_hotnic.networks.node2.>")
        await client.flush()
        await denials.wait(publish=4, subscription=2)
        await client.close()


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (make_token(), "NotAuthenticated"),
        (make_token(audience="https://kubernetes.default.svc"), "WrongAudience"),
        (make_token(namespace="tenant"), "ForeignAccount"),
        (make_token("default"), "ForeignAccount"),
        (make_token(lifetime=-1), "TokenExpired"),
        ("password", "MalformedToken"),
    ],
    ids=["unknown", "audience", "namespace", "account", "expired", "password"],
)
async def test_a_connection_without_a_token_of_a_role_is_refused(tmp_path: Path, token: str, reason: str) -> None:
    async with running_callout(tmp_path) as callout:
        assert await callout.refusal(token) == reason
        assert not any(token in line for line in callout.server.log)


async def test_a_huge_token_is_refused_by_the_server_itself(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        assert not await attempt(callout, make_token(padding="x" * 100_000))
        assert callout.reviews.received == []


async def test_no_credential_at_all_is_refused(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        client = Client()
        with pytest.raises(NatsError, match="Authorization Violation"):
            await client.connect(callout.url, tls=callout.tls, allow_reconnect=False, connect_timeout=30)
        await client.close()
        assert any("NoToken" in line for line in callout.server.log)


async def test_a_connection_ends_with_its_token(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        ended = asyncio.Event()

        async def on_disconnected() -> None:
            ended.set()

        token = callout.reviews.accept(make_token(lifetime=2))
        client = await callout.connect(token, disconnected_cb=on_disconnected)
        async with asyncio.timeout(60):
            await ended.wait()
        await client.close()
        assert await callout.refusal(token) == "TokenExpired"
        renewed = await callout.connect(callout.reviews.accept(make_token()))
        await renewed.close()


async def test_one_of_two_replicas_is_enough(tmp_path: Path) -> None:
    async with running_callout(tmp_path, replicas=2) as callout:
        for number in range(4):
            if number == 2:
                callout.replicas[0].cancel()
                await asyncio.wait([callout.replicas[0]])
            client = await callout.connect(callout.reviews.accept(make_token(lifetime=600 + number)))
            await client.close()
        # Each request is answered once.
        assert len(callout.reviews.received) == 4


async def test_a_callout_that_nobody_answers_lets_nobody_in(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        token = callout.reviews.accept(make_token())
        callout.replicas[0].cancel()
        await asyncio.wait(callout.replicas)
        assert not await attempt(callout, token)


async def test_the_callout_reconnects_after_a_restart_of_the_server(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        await callout.server.stop()
        await callout.server.start()
        token = callout.reviews.accept(make_token())
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(NatsError, OSError):
                    client = await callout.connect(token)
                    break
        await client.close()


async def test_the_user_of_the_callout_can_only_answer(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        denials = Denials()
        client = await nats.connect(
            callout.url,
            tls=callout.tls,
            nkeys_seed=str(callout.keys / "user.nk"),
            error_cb=denials.add,
            allow_reconnect=False,
        )
        # A request that no server has signed cannot even be sent.
        for subject in ("$SYS.REQ.USER.AUTH", "hotplug.requested._.default.vm1", "$JS.API.STREAM.NAMES"):
            await client.publish(subject, b"{}")
        for subject in (">", "hotplug.>", "_INBOX.>"):
            await client.subscribe(subject)
        await client.flush()
        await denials.wait(publish=3, subscription=3)
        await client.close()


async def test_a_role_gets_in_beside_a_flood_of_refused_clients(tmp_path: Path) -> None:
    async with running_callout(tmp_path) as callout:
        flood = [asyncio.create_task(attempt(callout, make_token(lifetime=700 + number))) for number in range(200)]
        token = callout.reviews.accept(make_token())
        # The flood comes from the same address, so the role may be refused at first. It tries again, as roles do.
        async with asyncio.timeout(60):
            while not await attempt(callout, token):
                pending = [task for task in flood if not task.done()]
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        assert not any(await asyncio.gather(*flood))


async def attempt(callout: Callout, token: str) -> bool:
    """Return whether a client is let in."""
    try:
        client = await callout.connect(token)
    except (NatsError, OSError):
        return False
    # The client may take the end of a connection for an answer.
    let_in = client.is_connected
    await client.close()
    return let_in


async def test_the_api_answers_the_callout_as_its_settings_say(tmp_path: Path, unused_tcp_port: int) -> None:
    keys = write_keys(tmp_path / "keys")
    config = tmp_path / "nats.conf"
    config.write_text(server_config(keys))
    authority = Authority(tmp_path)
    pair = authority.server()
    async with (
        nats_server(tmp_path / "nats", "-c", str(config), *tls_options(pair)) as server,
        reviewing_kube(tmp_path) as (_, reviews),
    ):
        reviews.kube.put(
            "configmaps",
            "kube-system",
            "extension-apiserver-authentication",
            data={"requestheader-client-ca-file": authority.ca.read_text()},
        )
        callout = Callout(server, reviews, keys, [], authority.ca)
        environ = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "NATS_URL": callout.url,
            "NATS_CA": str(authority.ca),
            "HOTNIC_HEALTH_LISTEN": f"unix:{tmp_path}/health.sock",
            "HOTNIC_LISTEN": f"127.0.0.1:{unused_tcp_port}",
            "HOTNIC_VM_OWNER": "hotnic",
            "HOTNIC_NAMESPACE": NAMESPACE,
            "HOTNIC_TLS_CERT": str(pair.cert),
            "HOTNIC_TLS_KEY": str(pair.key),
            "HOTNIC_BUS_AUTH_KEYS": str(keys),
            "HOTNIC_BUS_AUTH_ACCOUNTS": "hotnic-api=api,hotnic-multus=node",
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.api", env=environ)
        token = reviews.accept(make_token("hotnic-multus"), node="node1")
        async with asyncio.timeout(60):
            while not await attempt(callout, token):
                assert process.returncode is None
        denials = Denials()
        client = await callout.connect(token, error_cb=denials.add)
        await client.publish("hotplug.guest-attached.node1.default.vm1", b"{}")
        await client.publish("hotplug.multus-attached.node1.default.vm1", b"{}")
        await client.publish("hotplug.multus-attached.node2.default.vm1", b"{}")
        await client.flush()
        await denials.wait(publish=1, subscription=0)
        await client.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 50) == 0
