"""Addresses from a DHCP server, through the daemon of the reference plugin `dhcp`, and without that daemon.

The plugin fails every command if its daemon does not run. Then a network is refused at once, and a pod that has one is
deleted all the same: the leases were in the daemon's memory.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORKS
from services.multus.cni.dhcp import REMEDY
from tests.support.interop.dhcp import BRIDGE, DhcpServer, dhcp_daemon, dhcp_server
from tests.support.interop.reference_plugins import (
    HOST,
    PluginSet,
    assert_nothing_left,
    network_config,
    write_primary,
)
from tests.support.kube.node_kube import EVENTS
from tests.support.node import netns as namespaces
from tests.support.node.multus_daemon import Daemon

SECONDS = 30
"""Much longer than any call here takes, and shorter than a plugin's deadline in production."""


@pytest.fixture
def server(tmp_path: Path, node: None) -> Iterator[DhcpServer]:
    with dhcp_server(tmp_path / "dhcp") as running:
        yield running


@pytest.fixture(params=["bridge", "macvlan"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A network with addresses by DHCP."""
    ipam = {"type": "dhcp", "daemonSocketPath": str(tmp_path / "dhcp.sock")}
    made = network_config(request.param, 1, "1.0.0", ipam)
    return made | ({"bridge": BRIDGE} if request.param == "bridge" else {})


def prepare_pod(daemon: Daemon, config: dict[str, Any]) -> set[str]:
    """Create a pod that requests the network; return the links that the node has before."""
    write_primary(daemon, "1.0.0")
    daemon.nad("net", config)
    daemon.pod({NETWORKS: "net@net1"})
    return set(namespaces.links(HOST))


async def given_up(daemon: Daemon) -> list[str]:
    """Return the messages of the Events about addresses that were not released."""
    await daemon.parts.pod_events.flush()
    return [body["message"] for body in daemon.kube.of(EVENTS) if body["reason"] == "NetworkCleanupFailed"]


async def test_addresses_are_leased_and_released(
    server: DhcpServer, daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    before = prepare_pod(daemon, config)

    def kept(address: str) -> set[str]:
        """Return the address if the server keeps it until it expires.

        The DEL of `bridge` removes the link first, and then dhcp cannot release the lease.
        """
        return {address} if config["type"] == "bridge" else set()

    with dhcp_daemon(plugin_set.folder / "dhcp", Path(config["ipam"]["daemonSocketPath"])):
        async with asyncio.timeout(SECONDS):
            status, answer = await daemon.cni("ADD", sandbox_netns)
            assert status == 200, answer
            status, answer = await daemon.delegate("ADD", sandbox_netns, "hot", config)
            assert status == 200, answer
            hot = answer["Result"]["ips"][0]["address"].removesuffix("/24")
            [net1] = [one.removesuffix("/24") for one in namespaces.addresses(sandbox_netns, "net1")]
            assert server.leases() == {net1, hot}
            assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
            assert await daemon.delegate("DEL", sandbox_netns, "hot", config) == (200, None)
            assert server.leases() == {net1, *kept(hot)}
            assert await daemon.cni("DEL", sandbox_netns) == (200, None)
            assert server.leases() == {*kept(net1), *kept(hot)}
    assert await given_up(daemon) == []
    assert_nothing_left(daemon, sandbox_netns, before)


@pytest.mark.parametrize("config", ["bridge", "macvlan", "ptp"], indirect=True)
async def test_without_the_daemon_a_network_is_refused_at_once(
    daemon: Daemon, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    before = prepare_pod(daemon, config)
    async with asyncio.timeout(SECONDS):
        status, error = await daemon.delegate("ADD", sandbox_netns, "hot", config)
        assert status == 400
        assert "error dialing DHCP daemon" in error["msg"]
        assert error["msg"].endswith(REMEDY)
        assert daemon.record() is None
        status, error = await daemon.cni("ADD", sandbox_netns)
        assert status == 400
        assert error["msg"].endswith(REMEDY)
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    # Nothing was leased, so there is nothing to report.
    assert await given_up(daemon) == []
    assert_nothing_left(daemon, sandbox_netns, before)


async def test_a_pod_is_deleted_after_the_daemon_has_ended(
    server: DhcpServer, daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path, config: dict[str, Any]
) -> None:
    before = prepare_pod(daemon, config)
    socket = config["ipam"]["daemonSocketPath"]
    with dhcp_daemon(plugin_set.folder / "dhcp", Path(socket)) as process:
        assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
        assert (await daemon.delegate("ADD", sandbox_netns, "hot", config))[0] == 200
        process.send_signal(signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        # A killed daemon leaves its socket, which refuses connections.
        status, error = await daemon.cni("CHECK", sandbox_netns)
        assert (status, error["msg"].endswith(REMEDY)) == (400, True)
        assert await daemon.delegate("DEL", sandbox_netns, "hot", config) == (200, None)
        assert namespaces.links(sandbox_netns).keys() == {"lo", "eth0", "net1"}
        os.unlink(socket)
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    messages = await given_up(daemon)
    assert [message.partition(":")[0] for message in messages] == [
        f"network {config['name']} on interface hot",
        "network default/net on interface net1",
    ]
    assert all(message.endswith(REMEDY) for message in messages)
    assert_nothing_left(daemon, sandbox_netns, before)
