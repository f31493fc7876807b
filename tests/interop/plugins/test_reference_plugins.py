"""The life of a pod on the reference plugins of two releases, with every kind of link and every CNI version.

A pod gets two networks at its creation and a third one while it runs; the third one is removed again, and the pod is
deleted. Nothing is left: no link, lease, rule or record. A kernel without a kind of link refuses it, and nothing is
left of that either. The protocol itself is the subject of `tests/integration/multus`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_network_status
from tests.support.interop.reference_plugins import (
    DEVICES,
    HOST,
    NEWEST,
    SETS,
    PluginSet,
    all_leases,
    assert_nothing_left,
    host_local,
    kernel_lacks,
    network_config,
    packet_filter,
    write_primary,
)
from tests.support.node import netns as namespaces
from tests.support.node.cni import leases
from tests.support.node.multus_daemon import SANDBOX, Daemon

RATES = {"ingressRate": 1000000, "ingressBurst": 8000000, "egressRate": 1000000, "egressBurst": 8000000}
PORTS = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]
LIVES = [
    pytest.param(chosen, version, kind, id=f"{chosen}-{version}-{kind}")
    for chosen in SETS
    for kind in chosen.kinds
    for version in chosen.cni_versions
    # What a version changes does not depend on the kind of link.
    if kind == "bridge" or version in (chosen.cni_versions[0], chosen.cni_versions[-1])
]


def chain(plugin_set: PluginSet, version: str) -> dict[str, Any]:
    """Return a bridge with the plugins that change its link; firewall supports CNI 0.4.0 and later.

    CHECK of Debian's portmap fails for every pod without IPv6; its ADD and DEL are tested in `tests/integration`.
    """
    static = {"type": "static", "addresses": [{"address": "10.55.7.7/24"}]}
    bridge = {**network_config("bridge", 7, version, static), "isGateway": True}
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400}
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    portmap = [{"type": "portmap", "capabilities": {"portMappings": True}}] if plugin_set is NEWEST else []
    firewall = [{"type": "firewall", "backend": "iptables"}] if version != "0.3.1" else []
    return {"cniVersion": version, "name": "chain", "plugins": [bridge, tuning, bandwidth, *portmap, *firewall]}


@pytest.mark.parametrize(("plugin_set", "version", "kind"), LIVES)
async def test_life_of_a_pod(
    daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path, version: str, kind: str
) -> None:
    write_primary(daemon, version)
    daemon.nad("chain", chain(plugin_set, version))
    daemon.nad("second", network_config(kind, 1, version, host_local(daemon.folder, 1)))
    elements = [{"name": "chain", "bandwidth": RATES, "portMappings": PORTS}, {"name": "second"}]
    daemon.pod({NETWORKS: json.dumps(elements)})
    before = set(namespaces.links(HOST))

    status, answer = await daemon.cni("ADD", sandbox_netns)
    if kernel_lacks(kind):
        assert status == 400
        assert 'plugin type="' + kind in answer["msg"]
        assert "operation not supported" in answer["msg"]
        assert await daemon.cni("DEL", sandbox_netns) == (200, None)
        assert_nothing_left(daemon, sandbox_netns, before)
        return
    assert status == 200, answer
    assert namespaces.links(sandbox_netns).keys() == {"lo", "eth0", "net1", "net2"}
    assert namespaces.links(sandbox_netns)["net1"]["mtu"] == 1400
    assert ("--to-destination 10.55.7.7:80" in packet_filter()) == (plugin_set is NEWEST)
    statuses = parse_network_status(daemon.annotations()[NETWORK_STATUS])
    assert [(one.interface, one.ips) for one in statuses[1:]] == [
        (link, [address.partition("/")[0] for address in namespaces.addresses(sandbox_netns, link)])
        for link in ("net1", "net2")
    ]
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)

    hot = network_config(kind, 2, version, host_local(daemon.folder, 2))
    status, answer = await daemon.delegate("ADD", sandbox_netns, "hot", hot)
    assert status == 200, answer
    assert [ip["address"] for ip in answer["Result"]["ips"]] == namespaces.addresses(sandbox_netns, "hot")
    assert await daemon.delegate("CHECK", sandbox_netns, "hot", hot) == (200, None)
    assert await daemon.delegate("DEL", sandbox_netns, "hot", hot) == (200, None)
    assert namespaces.links(sandbox_netns).keys() == {"lo", "eth0", "net1", "net2"}
    assert leases(daemon.folder, f"{kind}-2") == []
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)

    namespaces.ip(sandbox_netns, "addr", "flush", "dev", "net2")
    status, error = await daemon.cni("CHECK", sandbox_netns)
    # CHECK exists since CNI 0.4.0.
    assert status == (200 if version == "0.3.1" else 400)
    assert status == 200 or "network default/second on interface net2" in error["msg"]

    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert_nothing_left(daemon, sandbox_netns, before)


async def test_a_pod_whose_namespace_is_gone(daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path) -> None:
    """The runtime has closed the namespace before DEL; every plugin frees what it holds elsewhere."""
    write_primary(daemon, "1.0.0")
    for number, kind in enumerate(("bridge", "macvlan", "ptp"), start=1):
        daemon.nad(kind, network_config(kind, number, "1.0.0", host_local(daemon.folder, number)))
    daemon.pod({NETWORKS: "bridge,macvlan,ptp"})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert len(all_leases(daemon.folder)) == 4
    namespaces.remove(sandbox_netns)
    assert await daemon.cni("DEL", "") == (200, None)
    assert all_leases(daemon.folder) == []
    assert daemon.record() is None


async def test_a_lost_device_does_not_keep_its_pod(daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path) -> None:
    """DEL of `host-device` fails for ever for a link that has gone, which the CNI specification forbids."""
    write_primary(daemon, "1.0.0")
    daemon.nad("device", network_config("host-device", 1, "1.0.0", host_local(daemon.folder, 1)))
    daemon.pod({NETWORKS: "device"})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    namespaces.ip(sandbox_netns, "link", "del", "net1")
    namespaces.ip(HOST, "link", "add", DEVICES[0], "type", "veth", "peer", "name", f"{DEVICES[0]}-p")
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert daemon.record() is None


@pytest.mark.parametrize("plugin_set", [NEWEST], ids=str)
async def test_status_and_garbage_collection_of_cni_1_1(
    daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path
) -> None:
    write_primary(daemon, "1.1.0")
    daemon.nad("chain", chain(plugin_set, "1.1.0"))
    daemon.pod({NETWORKS: "chain"})
    assert await daemon.cni("STATUS", "") == (200, None)
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200, answer
    # CNI 1.1.0 added the MTU to the result.
    [link] = [one for one in answer["Result"]["interfaces"] if one.get("sandbox")]
    assert link["mtu"] == 1500
    statuses = parse_network_status(daemon.annotations()[NETWORK_STATUS])
    assert statuses[1].mtu == 1400

    valid = [{"containerID": SANDBOX, "ifname": "eth0"}]
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": valid}) == (200, None)
    assert namespaces.links(sandbox_netns).keys() == {"lo", "eth0", "net1"}
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
    assert await daemon.cni("GC", "", {**daemon.conf, "cni.dev/valid-attachments": []}) == (200, None)
    assert namespaces.links(sandbox_netns).keys() == {"lo"}
    assert all_leases(daemon.folder) == []
    assert daemon.record() is None


async def test_a_newer_cni_version_than_the_plugins_support(
    daemon: Daemon, plugin_set: PluginSet, sandbox_netns: Path
) -> None:
    """The node is not ready, as containerd then reports it, and pods wait."""
    write_primary(daemon, "1.1.0")
    daemon.pod()
    supported = "1.1.0" in plugin_set.cni_versions
    status, error = await daemon.cni("STATUS", "")
    assert status == (200 if supported else 400)
    assert supported or error["msg"].endswith("the plugin does not support CNI 1.1.0 of network pods")
    status, error = await daemon.cni("ADD", sandbox_netns)
    assert status == (200 if supported else 400)
    assert supported or "incompatible CNI versions" in error["msg"]
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert daemon.record() is None
