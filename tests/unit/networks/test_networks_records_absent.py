"""Upstream's multus daemon serves no records: it is asked once, and again when another daemon has the socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.cri.sandbox import Sandbox
from services.common.http.client import UnixHttpClient
from services.networks.multus_client import MultusClient
from tests.support.node.fake_multus import FakeMultus, recorded, serving_multus
from tests.support.node.networks_node import Node
from tests.support.telemetry.spans import recording_telemetry

SANDBOX, OTHER = Sandbox("sandbox-p1", "/var/run/netns/p1", 1), Sandbox("sandbox-p2", "/var/run/netns/p2", 2)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "multus.sock"


@pytest.fixture
async def client(socket: Path) -> AsyncIterator[MultusClient]:
    http = UnixHttpClient(str(socket), recording_telemetry("networks")[0])
    yield MultusClient(http, str(socket))
    await http.close()


async def test_a_daemon_without_records_is_asked_once(client: MultusClient, socket: Path) -> None:
    async with serving_multus(str(socket), FakeMultus(serves_records=False)) as upstream:
        for sandbox in (SANDBOX, OTHER, SANDBOX):
            assert await client.record(sandbox) is None
        assert upstream.record_requests == 1


async def test_a_daemon_without_a_record_is_asked_again(client: MultusClient, socket: Path) -> None:
    async with serving_multus(str(socket), FakeMultus()) as daemon:
        assert await client.record(SANDBOX) is None
        daemon.record(SANDBOX.id, "uid-p1", recorded("net1", "blue", "networks"))
        record = await client.record(SANDBOX)
        assert record is not None
        assert [one.interface for one in record.attachments] == ["net1"]
        assert daemon.record_requests == 2


async def test_the_next_daemon_of_the_socket_is_asked(client: MultusClient, socket: Path) -> None:
    async with serving_multus(str(socket), FakeMultus(serves_records=False)) as upstream:
        assert await client.record(SANDBOX) is None
    async with serving_multus(str(socket), FakeMultus(serves_records=False)) as restarted:
        assert await client.record(SANDBOX) is None
        assert await client.record(OTHER) is None
    async with serving_multus(str(socket), FakeMultus()) as hotnic:
        hotnic.record(SANDBOX.id, "uid-p1")
        assert await client.record(SANDBOX) is not None
        assert await client.record(SANDBOX) is not None
    assert (upstream.record_requests, restarted.record_requests, hotnic.record_requests) == (1, 1, 2)


async def test_the_role_asks_upstreams_daemon_once_for_all_pods(node: Node) -> None:
    node.multus.serves_records = False
    for name in ("p1", "p2", "p3"):
        node.pod(name, networks=[])
    await node.idle()
    await node.idle()
    assert node.multus.record_requests == 1
