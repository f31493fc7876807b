"""The lab's node in a container: containerd, the kubelet's and virt-launcher's loops, and the guests.

The roles of the node run in containers of their own that share this one's network and PID namespace. They reach its
files, sockets and network namespaces below `/proc/1/root`, which is this process' root. A restart of this container is
a reboot of the node: `/run` is in memory, so sandboxes and guests are gone; containerd's and CNI's state remain.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from lab.container.process import OUTPUT
from lab.layout import CONTAINERD_SOCKET, INSIDE_RUN, NODE_NAME
from lab.namespaces import cgroups, isolation
from lab.node import configuration
from lab.supervisor import components, readiness
from lab.supervisor.processes import Processes, ProcessSpec
from lab.tools import LabTools

SUMMARY: Final = "The container runtime, the kubelet and the guests of one node."
CONTAINERD_STATE: Final = Path("/var/lib/containerd")
CNI_CONF_DIR: Final = Path("/etc/cni/net.d")
CNI_BIN_DIR: Final = Path("/opt/cni/bin")
CGROUP_PARENT: Final = "/hotnic-lab"
"""The sandboxes' cgroup, below this container's own: Docker removes both together."""

MS_REMOUNT: Final = 32
# <linux/mount.h>


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the part's options."""
    parser.add_argument("--kubeconfig", type=Path, default=Path("/credentials/kubeconfig"), help="the node's")


async def start(processes: Processes, options: argparse.Namespace) -> None:
    """Start containerd and the node; return once the node is registered and containerd is up.

    The kubelet accepts pods as soon as multus, in another container, has written the CNI configuration.
    """
    tools = LabTools.find()
    make_writable()
    for folder in (CNI_CONF_DIR, CNI_BIN_DIR, CONTAINERD_STATE, Path("/run/netns"), INSIDE_RUN / "guests"):
        folder.mkdir(parents=True, exist_ok=True)
    # Sandboxes' mounts must reach containerd's shims.
    isolation.mount("none", "/", None, isolation.MS_REC | isolation.MS_SHARED)
    configuration.install_cni(tools, conf_dir=CNI_CONF_DIR, bin_dir=CNI_BIN_DIR)
    containerd_toml = INSIDE_RUN / "containerd.toml"
    containerd_toml.write_text(configuration.containerd_config(tools, configuration.snapshotter(CONTAINERD_STATE)))
    environment = components.base_environment(tools, os.environ)
    argv: tuple[str, ...] = (str(tools.containerd), "--config", str(containerd_toml))
    child = processes.start(ProcessSpec("containerd", argv, OUTPUT, environment))
    await readiness.wait_unless_exited(child, readiness.wait_for_socket(CONTAINERD_SOCKET))
    await processes.run(components.import_pause_image(tools, tools.ctr, OUTPUT, os.environ), timeout=60)
    argv = (sys.executable, "-m", "lab.node")
    processes.start(ProcessSpec("node", argv, OUTPUT, environment | node_environment(tools, options.kubeconfig)))


def node_environment(tools: LabTools, kubeconfig: Path) -> dict[str, str]:
    """Return the settings of the node's process."""
    return {
        "KUBECONFIG": str(kubeconfig),
        "HOTNIC_NODE_NAME": NODE_NAME,
        "HOTNIC_CRI_SOCKET": str(CONTAINERD_SOCKET),
        "HOTNIC_TOOLS": str(tools.root),
        "HOTNIC_CGROUP_PARENT": CGROUP_PARENT,
        "HOTNIC_GUESTS_DIR": str(INSIDE_RUN / "guests"),
        "HOTNIC_HEALTH_LISTEN": f"unix:{INSIDE_RUN / 'health.sock'}",
    }


def make_writable() -> None:
    """Mount writable what Docker mounts read-only in a container without `privileged`: sysctls and cgroups.

    CNI plugins enable forwarding; runc creates the sandboxes' cgroups below the container's own, which is the root of
    its cgroup namespace.
    """
    hierarchies = cgroups.hierarchies(Path("/proc/self/mountinfo").read_text())
    for target in (Path("/proc/sys"), *hierarchies):
        isolation.mount("none", str(target), None, isolation.MS_BIND | MS_REMOUNT)
    for hierarchy in hierarchies:
        if (hierarchy / "cgroup.subtree_control").exists():
            delegate_controllers(hierarchy)


def delegate_controllers(top: Path) -> None:
    """Enable the controllers of a cgroup (version 2) for its children.

    The kernel refuses that while the cgroup itself has processes, so they move to a child first.

    :param top: the cgroup.
    """
    own = top / "init"
    own.mkdir(exist_ok=True)
    for pid in (top / "cgroup.procs").read_text().split():
        (own / "cgroup.procs").write_text(pid)
    controllers = (top / "cgroup.controllers").read_text().split()
    (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
