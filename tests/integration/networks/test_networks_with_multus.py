"""The role with the real multus daemon, real CNI plugins and a real pod network namespace."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.operations import pod_nic_key, read_pod_nic
from schemas.names import bridge, pod_interface
from tests.support.kube.node_kube import PODS
from tests.support.node import netns as namespaces
from tests.support.node.cni import real_plugins
from tests.support.node.fake_cri import containerd_info
from tests.support.node.multus_daemon import POD, Daemon, running_daemon
from tests.support.node.networks_node import Node, running_node

HOST = Path("/proc/self/ns/net")
LINK = pod_interface("blue")


@dataclass
class Both:
    """Both roles and the pod's network namespace."""

    node: Node
    daemon: Daemon
    netns: Path

    def links(self) -> set[str]:
        """Return the links in the pod."""
        return {link["ifname"] for link in json.loads(namespaces.ip(self.netns, "-j", "link"))}

    def leases(self) -> list[str]:
        """Return the addresses that host-local has leased."""
        folder = self.daemon.folder / "leases" / "blue-net"
        return sorted(p.name for p in folder.glob("10.*")) if folder.exists() else []


@pytest.fixture
def pod_netns(tmp_path: Path) -> Iterator[Path]:
    with namespaces.namespace(tmp_path, "pod") as path:
        yield path
        # Deleted explicitly, because the kernel frees a namespace and the host ends of its veths only some time later.
        for link in json.loads(namespaces.ip(path, "-j", "link")):
            if link["ifname"] != "lo":
                with contextlib.suppress(AssertionError):  # deleted together with its peer or port
                    namespaces.ip(path, "link", "del", link["ifname"])
    with contextlib.suppress(AssertionError):  # not every test makes an attachment
        namespaces.ip(HOST, "link", "del", "br-blue")


@pytest.fixture
async def both(tmp_path: Path, pod_netns: Path) -> AsyncIterator[Both]:
    plugins = real_plugins(tmp_path / "bin", "bridge", "host-local")
    async with (
        running_daemon(tmp_path, plugins) as daemon,
        running_node(tmp_path, kube=daemon.kube, multus_socket=daemon.socket) as node,
    ):
        # The tests' pod is the node's own.
        daemon.kube.delete(PODS, "default", POD)
        node.pod()
        node.cri.sandboxes[0].info = containerd_info(str(pod_netns))
        ipam = {"type": "host-local", "subnet": "10.66.0.0/24", "dataDir": str(tmp_path / "leases")}
        node.nad(
            config=json.dumps(
                {
                    "cniVersion": "1.0.0",
                    "name": "blue-net",
                    "type": "bridge",
                    "bridge": "br-blue",
                    "mtu": 1400,
                    "ipam": ipam,
                }
            )
        )
        yield Both(node, daemon, pod_netns)


async def test_attach_and_detach(both: Both) -> None:
    both.node.set_networks([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    (link,) = json.loads(namespaces.ip(both.netns, "-j", "addr", "show", LINK))
    entry = both.node.status()[1]
    assert (entry["mac"], entry["mtu"]) == (link["address"], 1400)
    assert entry["ips"] == [link["addr_info"][0]["local"]] == both.leases()
    record = read_pod_nic(both.node.kube.annotations(PODS, "default", "p1"), pod_nic_key("blue"))
    assert record is not None
    assert (record.mac, record.mtu, record.ips) == (link["address"], 1400, (f"{entry['ips'][0]}/24",))
    both.node.set_networks([])
    await both.node.until_links("eth0")
    assert both.links() == {"lo"}
    assert both.leases() == []


async def test_unwritten_attachment_is_not_made_twice(both: Both) -> None:
    """As after a restart between ADD and patch: multus returns the recorded result again."""
    both.node.set_networks([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    first = both.node.status()
    both.node.kube.annotate(
        PODS, "default", "p1", {"k8s.v1.cni.cncf.io/network-status": json.dumps(first[:1]), pod_nic_key("blue"): None}
    )
    await both.node.until_links("eth0", LINK)
    assert both.node.status() == first
    assert len(both.leases()) == 1


async def test_existing_link_of_the_requested_name_is_left_alone(both: Both) -> None:
    namespaces.ip(both.netns, "link", "add", "ens58", "type", "bridge")
    both.node.set_networks([{"name": "blue", "interface": "ens58"}, {"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    events = await both.node.until_event(2)
    failed = next(event for event in events if event["reason"] == "FailedAddingInterface")
    assert "interface name ens58 already exists" in failed["message"]
    assert "ens58" in both.links()
    assert len(both.leases()) == 1


async def test_bridged_nic_is_detached_after_its_release(both: Both) -> None:
    both.node.set_networks([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    namespaces.ip(both.netns, "link", "add", bridge("blue"), "type", "bridge")
    namespaces.ip(both.netns, "link", "set", LINK, "master", bridge("blue"))
    both.node.set_networks([])
    events = await both.node.until_event(2)
    assert "still in use by a guest" in events[1]["message"]
    assert both.node.links() == ["eth0", LINK]
    assert LINK in both.links()
    namespaces.ip(both.netns, "link", "del", bridge("blue"))
    await both.node.until_links("eth0")
    assert both.links() == {"lo"}


async def test_changed_settings_are_applied_unless_a_guest_uses_the_link(both: Both) -> None:
    """The earlier settings are known from the daemon's record alone: the pod's own record was removed."""
    both.node.set_networks([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    namespaces.ip(both.netns, "link", "add", bridge("blue"), "type", "bridge")
    namespaces.ip(both.netns, "link", "set", LINK, "master", bridge("blue"))
    changed = {"name": "blue", "interface": LINK, "mac": "02:03:04:05:06:07"}
    both.node.set_networks([changed], **{pod_nic_key("blue"): None})
    rejected = [event for event in await both.node.until_event(2) if event["reason"] == "InterfaceChangeRejected"]
    assert len(rejected) == 1
    assert "still in use by a guest" in rejected[0]["message"]
    assert LINK in both.links()

    namespaces.ip(both.netns, "link", "del", bridge("blue"))
    await both.node.idle()
    await both.node.kube.until(lambda: [e.get("mac") for e in both.node.status()[1:]] == [changed["mac"]])
    (link,) = json.loads(namespaces.ip(both.netns, "-j", "link", "show", LINK))
    assert link["address"] == changed["mac"]
    assert len(both.leases()) == 1


async def test_unwritten_attachment_without_an_element_is_detached_after_restart(both: Both, tmp_path: Path) -> None:
    """ADD succeeded, the role stopped before it wrote the status, and then the element was removed."""
    both.node.set_networks([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    both.node.kube.annotate(
        PODS,
        "default",
        "p1",
        {NETWORK_STATUS: json.dumps(both.node.status()[:1]), NETWORKS: "[]", pod_nic_key("blue"): None},
    )
    await both.node.idle()
    assert LINK in both.links()
    folder = tmp_path / "restarted"
    folder.mkdir()
    async with running_node(folder, kube=both.node.kube, multus_socket=both.daemon.socket) as restarted:
        restarted.cri.sandboxes = both.node.cri.sandboxes
        await restarted.until_event(2)
        assert both.links() == {"lo"}
        assert both.leases() == []
