"""The reference plugins: ADD, CHECK and DEL of each leave nothing behind."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS, parse_network_status
from schemas.multus import InterfaceAttributes
from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases, real_plugins
from tests.support.node.multus_daemon import POD, SANDBOX, Daemon
from tests.support.node.netns import addresses, links

HOST = Path("/proc/self/ns/net")
PARENT = "parent0"


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A plugin directory with every reference plugin used here."""
    names = "bridge macvlan ptp vlan tuning portmap bandwidth firewall host-local static"
    return real_plugins(tmp_path / "bin", *names.split())


@pytest.fixture
def parent() -> Iterator[str]:
    """A link of the node that can be the parent of macvlan and vlan links."""
    namespaces.ip(HOST, "link", "add", PARENT, "type", "veth", "peer", "name", f"{PARENT}-p")
    namespaces.ip(HOST, "link", "set", PARENT, "up")
    yield PARENT
    namespaces.ip(HOST, "link", "del", PARENT)


def ipam(folder: Path, network: str) -> dict[str, Any]:
    return {"type": "host-local", "subnet": network, "dataDir": str(folder / "leases")}


async def add_and_delete(
    daemon: Daemon, netns: Path, config: dict[str, Any], attributes: InterfaceAttributes | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """ADD, CHECK and DEL one attachment; return the result, and the link and its addresses before the DEL."""
    before = set(links(HOST))
    status, answer = await daemon.delegate("ADD", netns, "net1", config, attributes)
    assert status == 200, answer
    link, held = links(netns)["net1"], addresses(netns, "net1")
    assert await daemon.delegate("CHECK", netns, "net1", config, attributes) == (200, None)
    assert await daemon.delegate("DEL", netns, "net1", config) == (200, None)
    assert set(links(netns)) == {"lo"}
    # The plugin leaves its bridge on the node for the next pod.
    assert {name for name in set(links(HOST)) - before if not name.startswith("br-")} == set()
    assert leases(daemon.folder, config["name"]) == []
    assert daemon.record() is None
    return answer["Result"], link, held


async def test_bridge(daemon: Daemon, sandbox_netns: Path) -> None:
    result, link, held = await add_and_delete(daemon, sandbox_netns, bridge_config(daemon.folder))
    assert link["linkinfo"]["info_kind"] == "veth"
    assert [ip["address"] for ip in result["ips"]] == held


async def test_macvlan(daemon: Daemon, sandbox_netns: Path, parent: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "mv", "type": "macvlan", "master": parent, "mode": "bridge"}
    config["ipam"] = ipam(daemon.folder, "10.91.0.0/24")
    _, link, held = await add_and_delete(daemon, sandbox_netns, config)
    assert (link["linkinfo"]["info_kind"], held) == ("macvlan", ["10.91.0.2/24"])


async def test_ptp(daemon: Daemon, sandbox_netns: Path) -> None:
    config = {"cniVersion": "1.0.0", "name": "pp", "type": "ptp", "ipam": ipam(daemon.folder, "10.92.0.0/24")}
    _, link, held = await add_and_delete(daemon, sandbox_netns, config)
    assert (link["linkinfo"]["info_kind"], held) == ("veth", ["10.92.0.2/24"])


def kernel_has_vlans(parent: str) -> bool:
    """Return whether the kernel supports VLAN links; not every kernel does."""
    try:
        namespaces.ip(HOST, "link", "add", "link", parent, "name", "probe.9", "type", "vlan", "id", "9")
    except AssertionError:
        return False
    namespaces.ip(HOST, "link", "del", "probe.9")
    return True


async def test_vlan(daemon: Daemon, sandbox_netns: Path, parent: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "vl", "type": "vlan", "master": parent, "vlanId": 7}
    config["ipam"] = ipam(daemon.folder, "10.93.0.0/24")
    if not kernel_has_vlans(parent):
        # The plugin takes a lease before it fails; the lease is freed too.
        status, error = await daemon.delegate("ADD", sandbox_netns, "net1", config)
        assert (status, error["code"]) == (400, 999)
        assert "failed to create vlan: operation not supported" in error["msg"]
        assert leases(daemon.folder, "vl") == []
        assert daemon.record() is None
        return
    _, link, _ = await add_and_delete(daemon, sandbox_netns, config)
    assert link["linkinfo"]["info_kind"] == "vlan"
    assert link["linkinfo"]["info_data"]["id"] == 7


async def test_static_ipam_assigns_the_requested_addresses(daemon: Daemon, sandbox_netns: Path) -> None:
    config = bridge_config(daemon.folder, name="st")
    config |= {"capabilities": {"ips": True}, "ipam": {"type": "static"}}
    requested = InterfaceAttributes(ips=["10.94.0.7/24"])
    _, _, held = await add_and_delete(daemon, sandbox_netns, config, requested)
    assert held == ["10.94.0.7/24"]


async def test_a_tuning_chain_sets_the_mac(daemon: Daemon, sandbox_netns: Path) -> None:
    tuning = {"type": "tuning", "capabilities": {"mac": True}, "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}}
    config = {"cniVersion": "1.0.0", "name": "blue", "plugins": [bridge_config(daemon.folder), tuning]}
    requested = InterfaceAttributes(mac="02:00:00:00:00:07")
    result, link, _ = await add_and_delete(daemon, sandbox_netns, config, requested)
    assert link["address"] == "02:00:00:00:00:07"
    assert result["interfaces"][-1]["mac"] == "02:00:00:00:00:07"


@pytest.mark.parametrize("in_args", [False, True])
async def test_check_reads_the_sysctls_of_the_link(daemon: Daemon, sandbox_netns: Path, in_args: bool) -> None:
    """tuning itself looks for a link named ``IFNAME`` at CHECK."""
    sysctl = {"net.ipv4.conf.IFNAME.arp_filter": "1"}
    tuning = {"type": "tuning", "sysctl": {}, "args": {"cni": {"sysctl": sysctl}}} if in_args else {"sysctl": sysctl}
    plugins = [bridge_config(daemon.folder), {"type": "tuning", **tuning}]
    daemon.nad("blue", {"cniVersion": "1.0.0", "name": "blue", "plugins": plugins})
    daemon.pod({NETWORKS: "blue@net1"})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
    sysctl_file = Path("/proc/sys/net/ipv4/conf/net1/arp_filter")
    namespaces.run_in_netns(sandbox_netns, lambda: sysctl_file.write_text("0"))
    status, error = await daemon.cni("CHECK", sandbox_netns)
    assert status == 400
    assert error["msg"].startswith('network default/blue on interface net1: plugin type="tuning" failed (check): ')
    assert "arp_filter is 1, current value is 0" in error["msg"]
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)


async def test_check_of_a_network_older_than_check_succeeds(daemon: Daemon, sandbox_netns: Path) -> None:
    daemon.nad("blue", bridge_config(daemon.folder, cniVersion="0.3.1"))
    daemon.pod({NETWORKS: "blue@net1"})
    assert (await daemon.cni("ADD", sandbox_netns))[0] == 200
    assert await daemon.cni("CHECK", sandbox_netns) == (200, None)
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)


def rules() -> str:
    """Return the node's NAT rules."""
    done = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=False)
    return done.stdout


async def test_a_portmap_chain_adds_and_deletes_its_rules(daemon: Daemon, sandbox_netns: Path) -> None:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    config = {"cniVersion": "1.0.0", "name": "blue", "plugins": [bridge_config(daemon.folder, isGateway=True), portmap]}
    daemon.nad("blue", config)
    mapping = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]
    daemon.pod({NETWORKS: json.dumps([{"name": "blue", "portMappings": mapping}])})
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200, answer
    [address] = addresses(sandbox_netns, "net1")
    assert f"--to-destination {address.partition('/')[0]}:80" in rules()
    # NAD and pod are gone; DEL needs the record only.
    daemon.kube.delete("network-attachment-definitions", "default", "blue")
    daemon.kube.delete("pods", "default", POD)
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert "--to-destination" not in rules()
    assert leases(daemon.folder) == []


def queues(link: str) -> str:
    """Return the queueing disciplines of one of the node's links."""
    return subprocess.run(["tc", "qdisc", "show", "dev", link], capture_output=True, text=True, check=True).stdout


async def test_a_bandwidth_chain_limits_the_rate(daemon: Daemon, sandbox_netns: Path) -> None:
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    config = {"cniVersion": "1.0.0", "name": "blue", "plugins": [bridge_config(daemon.folder), bandwidth]}
    daemon.nad("blue", config)
    rates = {"ingressRate": 1000000, "ingressBurst": 8000000}
    daemon.pod({NETWORKS: json.dumps([{"name": "blue", "bandwidth": rates}])})
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200, answer
    [host] = [name for name, link in links(HOST).items() if link.get("master") == "br-blue"]
    assert "tbf" in queues(host)
    assert "rate 1Mbit" in queues(host)
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert leases(daemon.folder) == []


async def test_a_kube_ovn_nad_with_portmap(daemon: Daemon, plugins: Path, sandbox_netns: Path) -> None:
    """A NAD as KubeVirt users write it: version 0.3.1, a list, no IPAM; kube-ovn is a recording plugin."""
    ovn = RecordingPlugin(plugins, "kube-ovn")
    inside = {"name": "pod7e0055a6880", "mac": "00:00:00:9E:2B:01", "sandbox": str(sandbox_netns)}
    address = {"version": "4", "address": "10.16.0.125/16", "gateway": "10.16.0.1", "interface": 0}
    ovn.set_result({"cniVersion": "0.3.1", "interfaces": [inside], "ips": [address]})
    config = {
        "cniVersion": "0.3.1",
        "name": "kube-ovn",
        "plugins": [
            {
                "type": "kube-ovn",
                "server_socket": "/run/openvswitch/kube-ovn-daemon.sock",
                "provider": "net1.default.ovn",
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    daemon.nad("net1", config)
    daemon.pod({NETWORKS: json.dumps([{"name": "net1", "namespace": "default", "interface": "pod7e0055a6880"}])})
    status, answer = await daemon.cni("ADD", sandbox_netns)
    assert status == 200, answer
    # kube-ovn's daemon finds the pod by provider, namespace, name, sandbox and link, at ADD and at DEL.
    assert ovn.stdin(0) == {
        "type": "kube-ovn",
        "server_socket": "/run/openvswitch/kube-ovn-daemon.sock",
        "provider": "net1.default.ovn",
        "name": "kube-ovn",
        "cniVersion": "0.3.1",
    }
    call = ovn.calls[0]
    assert (call["container"], call["netns"], call["ifname"]) == (SANDBOX, str(sandbox_netns), "pod7e0055a6880")
    assert f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD}" in call["args"]
    statuses = parse_network_status(daemon.annotations()[NETWORK_STATUS])
    assert (statuses[1].name, statuses[1].ips) == ("default/net1", ["10.16.0.125"])
    assert statuses[1].mac == "00:00:00:9E:2B:01"

    # The same network is hot-plugged. Both attachments share the network's name but not its state.
    assert (await daemon.delegate("ADD", sandbox_netns, "net2", config))[0] == 200
    assert (await daemon.delegate("DEL", sandbox_netns, "net2", config))[0] == 200
    assert await daemon.cni("DEL", sandbox_netns) == (200, None)
    assert ovn.commands == ["ADD pod7e0055a6880", "ADD net2", "DEL net2", "DEL pod7e0055a6880"]
    assert ovn.stdin(3)["provider"] == "net1.default.ovn"
    assert daemon.record() is None
