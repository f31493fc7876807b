"""``default-route``: the network that carries the pod's default routes, in the kernel and in network-status."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_network_status
from tests.support.node import netns as namespaces
from tests.support.node.cni import bridge_config, leases
from tests.support.node.multus_daemon import Daemon


def defaults(netns: Path, family: str = "-4") -> list[tuple[str, str]]:
    """Return next hop and link of the default routes."""
    routes = json.loads(namespaces.ip(netns, "-j", family, "route", "show", "default") or "[]")
    return [(route["gateway"], route["dev"]) for route in routes]


def network(daemon: Daemon, number: int, bridge: str, *, default: bool) -> dict[str, Any]:
    """Return a real bridge network with an IPv4 and an IPv6 range; its gateways are the bridge's own addresses."""
    ranges = [[{"subnet": f"10.{number}.0.0/24"}], [{"subnet": f"fd00:{number}::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] if default else []
    ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(daemon.folder / "leases")}
    config = bridge_config(daemon.folder, name=f"n{number}", bridge=bridge, isGateway=True)
    return {**config, "ipam": ipam}


@pytest.fixture
def routed(daemon: Daemon) -> Daemon:
    """A primary network with default routes of both families; NAD ``blue`` has none, NAD ``green`` both."""
    primary = network(daemon, 77, "br-pods", default=True)
    (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(primary))
    daemon.nad("blue", network(daemon, 55, "br-blue", default=False))
    daemon.nad("green", network(daemon, 66, "br-green", default=True))
    return daemon


async def add(daemon: Daemon, netns: Path, *elements: dict[str, Any]) -> list[list[str] | None]:
    """Create a sandbox with these elements; return the gateways of each entry of network-status."""
    daemon.pod({NETWORKS: json.dumps(elements)})
    status, answer = await daemon.cni("ADD", netns)
    assert status == 200, answer
    return [entry.gateway for entry in parse_network_status(daemon.annotations()[NETWORK_STATUS])]


async def test_the_chosen_network_replaces_the_default_route(routed: Daemon, sandbox_netns: Path) -> None:
    """Upstream fault: since v4.2.2, the old default route silently stays (multus-cni PR 1552)."""
    gateways = await add(routed, sandbox_netns, {"name": "blue", "default-route": ["10.55.0.1"]})
    assert defaults(sandbox_netns) == [("10.55.0.1", "net1")]
    # The other family stays as it is; upstream deletes every default route of the link.
    assert defaults(sandbox_netns, "-6") == [("fd00:77::1", "eth0")]
    assert gateways == [["fd00:77::1"], ["10.55.0.1"]]
    # CHECK compares with the changed routes; a repeated ADD changes nothing.
    assert await routed.cni("CHECK", sandbox_netns) == (200, None)
    assert (await routed.cni("ADD", sandbox_netns))[0] == 200
    assert defaults(sandbox_netns) == [("10.55.0.1", "net1")]
    assert await routed.cni("DEL", sandbox_netns) == (200, None)
    assert leases(routed.folder, "n55") == leases(routed.folder, "n77") == []


async def test_each_family_can_use_another_network(routed: Daemon, sandbox_netns: Path) -> None:
    await add(
        routed,
        sandbox_netns,
        {"name": "blue", "default-route": ["fd00:55::1"]},
        {"name": "green", "default-route": ["10.66.0.1"]},
    )
    assert defaults(sandbox_netns) == [("10.66.0.1", "net2")]
    assert defaults(sandbox_netns, "-6") == [("fd00:55::1", "net1")]
    await routed.cni("DEL", sandbox_netns)


async def test_an_empty_list_leaves_the_default_route_of_eth0(routed: Daemon, sandbox_netns: Path) -> None:
    """Upstream fault: an empty default-route deletes every default route (multus-cni 1011)."""
    gateways = await add(routed, sandbox_netns, {"name": "blue", "default-route": []})
    assert defaults(sandbox_netns) == [("10.77.0.1", "eth0")]
    assert gateways == [["10.77.0.1", "fd00:77::1"], None]
    await routed.cni("DEL", sandbox_netns)


async def test_an_empty_list_keeps_the_networks_own_gateway(routed: Daemon, sandbox_netns: Path) -> None:
    """If another network requests a gateway of the same family, ADD is refused."""
    await add(routed, sandbox_netns, {"name": "green", "default-route": []})
    assert ("10.66.0.1", "net1") in defaults(sandbox_netns)
    await routed.cni("DEL", sandbox_netns)
    elements = [{"name": "green", "default-route": []}, {"name": "blue", "default-route": ["10.55.0.1"]}]
    routed.pod({NETWORKS: json.dumps(elements)})
    status, error = await routed.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 7)
    assert "another network keeps its default route" in error["msg"]
    assert leases(routed.folder, "n66") == []


async def test_an_unreachable_gateway_rolls_the_sandbox_back(routed: Daemon, sandbox_netns: Path) -> None:
    routed.pod({NETWORKS: json.dumps([{"name": "blue", "default-route": ["192.0.2.1"]}])})
    status, error = await routed.cni("ADD", sandbox_netns)
    assert (status, error["code"]) == (400, 7)
    assert "default-route of net1" in error["msg"]
    assert leases(routed.folder, "n55") == leases(routed.folder, "n77") == []
    assert routed.record() is None
