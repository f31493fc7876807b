"""The configuration files of a node's container runtime, CNI plugins and multus daemon.

Pure functions, but for `install_cni` and `snapshotter`. The paths in them are the same on every node, because each node
has folders of its own there (`lab.layout.Layout.binds`). Next: `kubelet.py`, which uses the runtime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from lab.layout import CONTAINERD_SOCKET
from lab.namespaces.isolation import supports_overlay
from lab.tools import PAUSE_IMAGE, LabTools


def install_cni(tools: LabTools, *, conf_dir: Path, bin_dir: Path, node: int = 1) -> None:
    """Write the primary CNI configuration, and link the plugins into `bin_dir`, where multus installs its shim."""
    (conf_dir / "10-lab.conflist").write_text(json.dumps(cluster_network(node), indent=2) + "\n")
    for plugin in sorted(tools.cni_dir.iterdir()):
        link = bin_dir / plugin.name
        if not link.is_symlink():
            link.symlink_to(plugin.resolve())


def snapshotter(state: Path) -> str:
    """Return the name of the snapshotter that works on the file system of `state`."""
    return "overlayfs" if supports_overlay(state) else "native"


def containerd_config(tools: LabTools, snapshotter: str) -> str:
    """Return containerd's configuration in version 2 of its format, which 1.6 and 1.7 read.

    :param tools: paths of runc and the other tools.
    :param snapshotter: name of the snapshotter plugin.
    """
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # A process without CAP_SYS_RESOURCE (in containers, on restricted machines) cannot lower its oom_score_adj.
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
  max_conf_num = 1

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "{tools.runc}"
  SystemdCgroup = false
"""


def cluster_network(node: int) -> dict[str, Any]:
    """Return the configuration of the pods' primary network: a bridge in the node's network namespace.

    No address exists twice, but pods of two nodes do not reach each other.
    """
    plugin = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.{87 + node}.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": [plugin]}


MULTUS_CONFIG: Final[dict[str, Any]] = {
    # From 1.1.0 on, containerd 2 sends STATUS through the shim every 5 s.
    "cniVersion": "1.0.0",
    "logLevel": "verbose",
    "logToStderr": True,
    "socketDir": "/run/multus",
    "cniConfigDir": "/etc/cni/net.d",
    "multusAutoconfigDir": "/etc/cni/net.d",
    "multusConfigFile": "auto",
}
"""The configuration of hotnic's multus daemon, with upstream's keys."""
