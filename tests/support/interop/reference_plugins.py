"""The reference CNI plugins of two releases: their networks, what they need on the node, and what they may leave.

The newest release is built from its Go module; the other one is Debian's, which the lab uses.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.tools import default_root
from tests.support.interop.tools import tool
from tests.support.node import netns as namespaces
from tests.support.node.cni import leases
from tests.support.node.multus_daemon import Daemon

HOST: Final = Path("/proc/self/ns/net")
PARENT: Final = "parent0"
"""The node's link below macvlan, ipvlan and vlan links."""
DEVICES: Final = ("dev1", "dev2")
"""The node's links that `host-device` moves into pods."""


@dataclass(frozen=True)
class PluginSet:
    """The plugins of one release.

    :ivar name: the set's name in test ids.
    :ivar cni_versions: the CNI versions that its plugins support.
    :ivar kinds: the plugins of the set that create a link.
    """

    name: str
    cni_versions: tuple[str, ...]
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def folder(self) -> Path:
        """The folder with the plugins."""
        return tool("cni-plugins/bridge").parent if self is NEWEST else default_root() / "cni"

    def link(self, folder: Path) -> Path:
        """Create a plugin directory with symbolic links to all plugins of the set."""
        folder.mkdir()
        for plugin in self.folder.iterdir():
            (folder / plugin.name).symlink_to(plugin.resolve())
        return folder


_KINDS: Final = ("bridge", "macvlan", "ipvlan", "vlan", "ptp", "host-device")
DEBIAN: Final = PluginSet("debian", ("0.3.1", "0.4.0", "1.0.0"), _KINDS)
NEWEST: Final = PluginSet("newest", (*DEBIAN.cni_versions, "1.1.0"), (*_KINDS, "tap", "dummy"))
SETS: Final = (DEBIAN, NEWEST)

_KERNEL_KINDS: Final = ("macvlan", "ipvlan", "vlan", "dummy")
"""Kinds of links that not every kernel has."""


def kernel_lacks(kind: str) -> bool:
    """Return whether the kernel refuses links of a plugin's kind."""
    if kind not in _KERNEL_KINDS:
        return False
    below = () if kind == "dummy" else ("link", PARENT)
    options = ("id", "9") if kind == "vlan" else ()
    command = ["ip", "link", "add", *below, "name", "probe9", "type", kind, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        namespaces.ip(HOST, "link", "del", "probe9")
        return False
    assert "Unknown device type" in done.stderr, done.stderr
    return True


@contextmanager
def node_links() -> Iterator[None]:
    """Create the node's links that plugins need; delete them at the end, with the bridges that plugins have made."""
    for name in (PARENT, *DEVICES):
        namespaces.ip(HOST, "link", "add", name, "type", "veth", "peer", "name", f"{name}-p")
        namespaces.ip(HOST, "link", "set", name, "up")
    try:
        yield
    finally:
        # A failed test may have left a device in the pod.
        for name in namespaces.links(HOST):
            if name in (PARENT, *DEVICES) or name.startswith("br-"):
                namespaces.ip(HOST, "link", "del", name)


def network_config(kind: str, number: int, version: str, ipam: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a network.

    :param kind: the plugin that creates its link.
    :param number: distinguishes the networks of one pod: host-device needs a device for each, vlan an id.
    :param version: its CNI version.
    :param ipam: its addresses.
    """
    own: dict[str, dict[str, Any]] = {
        "bridge": {"bridge": f"br-{number}"},
        "macvlan": {"master": PARENT, "mode": "bridge"},
        "ipvlan": {"master": PARENT, "mode": "l2"},
        "vlan": {"master": PARENT, "vlanId": number},
        "host-device": {"device": f"dev{number}"},
    }
    return {"cniVersion": version, "name": f"{kind}-{number}", "type": kind, **own.get(kind, {}), "ipam": ipam}


def host_local(folder: Path, number: int) -> dict[str, Any]:
    """Return addresses from 10.55.NUMBER.0/24 by `host-local`, with its leases below a folder."""
    return {"type": "host-local", "subnet": f"10.55.{number}.0/24", "dataDir": str(folder / "leases")}


def write_primary(daemon: Daemon, version: str) -> None:
    """Write the cluster network: a bridge."""
    plugin = {"type": "bridge", "bridge": "br-pods", "isGateway": True, "ipam": host_local(daemon.folder, 0)}
    config = {"cniVersion": version, "name": "pods", "plugins": [plugin]}
    (daemon.config.conf_dir / "10-primary.conflist").write_text(json.dumps(config))


def all_leases(folder: Path) -> list[str]:
    """Return the addresses that `host-local` has leased in all networks."""
    found = folder / "leases"
    return [address for network in sorted(found.iterdir()) for address in leases(folder, network.name)]


def packet_filter() -> str:
    """Return the node's packet filter rules."""
    return subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout


def assert_nothing_left(daemon: Daemon, sandbox_netns: Path, before: set[str]) -> None:
    """Assert that no link, lease, packet filter rule or record of the pod exists.

    :param before: the node's links before the pod; bridges stay for the next pod.
    """
    assert namespaces.links(sandbox_netns).keys() == {"lo"}
    assert {name for name in namespaces.links(HOST).keys() - before if not name.startswith("br-")} == set()
    assert all_leases(daemon.folder) == []
    assert "10.55." not in packet_filter()
    assert daemon.record() is None
