"""The role with the real multus daemon behind its socket, real plugins and a real pod network namespace."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.names import bridge, pod_interface
from schemas.networks import NETWORK_STATUS, NETWORKS
from schemas.operations import pod_nic_key, pod_nic_of
from tests.support import netns as namespaces
from tests.support.cni import real_plugins
from tests.support.fake_cri import containerd_info
from tests.support.multus_daemon import Daemon, running_daemon
from tests.support.networks_node import Node, running_node
from tests.support.node_kube import PODS

HOST = Path("/proc/self/ns/net")
LINK = pod_interface("blue")


@dataclass
class Both:
    """The two roles and the pod's network namespace."""

    node: Node
    daemon: Daemon
    netns: Path

    def links(self) -> set[str]:
        """The links in the pod."""
        return {link["ifname"] for link in json.loads(namespaces.ip(self.netns, "-j", "link"))}

    def leases(self) -> list[str]:
        """The addresses that host-local holds."""
        folder = self.daemon.folder / "leases" / "blue-net"
        return sorted(p.name for p in folder.glob("10.*")) if folder.exists() else []


@pytest.fixture
def pod_netns(tmp_path: Path) -> Iterator[Path]:
    with namespaces.namespace(tmp_path, "pod") as path:
        yield path
        # Before the namespace goes, or their host ends would linger for a moment.
        for link in json.loads(namespaces.ip(path, "-j", "link")):
            if link["ifname"] != "lo":
                with contextlib.suppress(AssertionError):  # it went with another one
                    namespaces.ip(path, "link", "del", link["ifname"])
    with contextlib.suppress(AssertionError):  # not every test attaches
        namespaces.ip(HOST, "link", "del", "br-blue")


@pytest.fixture
async def both(tmp_path: Path, pod_netns: Path) -> AsyncIterator[Both]:
    plugins = real_plugins(tmp_path / "bin", "bridge", "host-local")
    async with (
        running_daemon(tmp_path, plugins) as daemon,
        running_node(tmp_path, kube=daemon.kube, multus_socket=daemon.socket) as node,
    ):
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
    both.node.want([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    (link,) = json.loads(namespaces.ip(both.netns, "-j", "addr", "show", LINK))
    entry = both.node.status()[1]
    assert (entry["mac"], entry["mtu"]) == (link["address"], 1400)
    assert entry["ips"] == [link["addr_info"][0]["local"]] == both.leases()
    record = pod_nic_of(both.node.kube.annotations(PODS, "default", "p1"), pod_nic_key("blue"))
    assert record is not None
    assert (record.mac, record.mtu, record.ips) == (link["address"], 1400, (f"{entry['ips'][0]}/24",))
    both.node.want([])
    await both.node.until_links("eth0")
    assert both.links() == {"lo"}
    assert both.leases() == []


async def test_an_attachment_that_was_not_written_down_is_not_made_twice(both: Both) -> None:
    """As after a restart between ADD and patch: multus gives the recorded result again."""
    both.node.want([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    first = both.node.status()
    both.node.kube.annotate(
        PODS, "default", "p1", {"k8s.v1.cni.cncf.io/network-status": json.dumps(first[:1]), pod_nic_key("blue"): None}
    )
    await both.node.until_links("eth0", LINK)
    assert both.node.status() == first
    assert len(both.leases()) == 1


async def test_a_name_that_another_link_has_is_left_alone(both: Both) -> None:
    namespaces.ip(both.netns, "link", "add", "ens58", "type", "bridge")
    both.node.want([{"name": "blue", "interface": "ens58"}, {"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    events = await both.node.until_event(2)
    failed = next(event for event in events if event["reason"] == "FailedAddingInterface")
    assert "interface name ens58 already exists" in failed["message"]
    assert "ens58" in both.links()
    assert len(both.leases()) == 1


async def test_a_wired_nic_is_detached_once_it_is_released(both: Both) -> None:
    both.node.want([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    namespaces.ip(both.netns, "link", "add", bridge("blue"), "type", "bridge")
    namespaces.ip(both.netns, "link", "set", LINK, "master", bridge("blue"))
    both.node.want([])
    events = await both.node.until_event(2)
    assert "still in use by a guest" in events[1]["message"]
    assert both.node.links() == ["eth0", LINK]
    assert LINK in both.links()
    namespaces.ip(both.netns, "link", "del", bridge("blue"))
    await both.node.until_links("eth0")
    assert both.links() == {"lo"}


async def test_a_changed_wish_is_followed_unless_a_guest_uses_the_link(both: Both) -> None:
    """What was asked comes from the daemon's record alone: the marks on the pod are gone."""
    both.node.want([{"name": "blue", "interface": LINK}])
    await both.node.until_links("eth0", LINK)
    namespaces.ip(both.netns, "link", "add", bridge("blue"), "type", "bridge")
    namespaces.ip(both.netns, "link", "set", LINK, "master", bridge("blue"))
    wish = {"name": "blue", "interface": LINK, "mac": "02:03:04:05:06:07"}
    both.node.want([wish], **{pod_nic_key("blue"): None})
    rejected = [event for event in await both.node.until_event(2) if event["reason"] == "InterfaceChangeRejected"]
    assert len(rejected) == 1
    assert "still in use by a guest" in rejected[0]["message"]
    assert LINK in both.links()

    namespaces.ip(both.netns, "link", "del", bridge("blue"))
    await both.node.idle()
    await both.node.kube.until(lambda: [e.get("mac") for e in both.node.status()[1:]] == [wish["mac"]])
    (link,) = json.loads(namespaces.ip(both.netns, "-j", "link", "show", LINK))
    assert link["address"] == wish["mac"]
    assert len(both.leases()) == 1


async def test_what_was_made_and_never_written_down_is_undone_after_a_restart(both: Both, tmp_path: Path) -> None:
    """ADD was done, the role ended before it could write, and meanwhile the element went."""
    both.node.want([{"name": "blue", "interface": LINK}])
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
    async with running_node(folder, kube=both.node.kube, multus_socket=both.daemon.socket) as anew:
        anew.cri.sandboxes = both.node.cri.sandboxes
        await anew.until_event(2)
        assert both.links() == {"lo"}
        assert both.leases() == []
