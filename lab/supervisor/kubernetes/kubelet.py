"""A lab's node with a real kubelet, kube-scheduler and containerd 2 in the place of the loops of `lab/node`.

Guests stay with `lab/node`: the container of a launcher pod only sleeps, and QEMU runs in its network namespace. The
kubelet would change sysctls of the whole machine: here it changes copies. Its cgroups are below the lab's.
`control_plane.py` starts the API server that it registers with.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab.apiserver.identity import pki
from lab.layout import CONTAINERD_SOCKET, NODE_NAME, Layout
from lab.namespaces import cgroups
from lab.namespaces.isolation import MS_BIND, mount
from lab.node.objects import is_true
from lab.supervisor import readiness
from lab.supervisor.kubernetes.control_plane import NODE_ADDRESS, administrator, newest_built
from lab.tools import PAUSE_IMAGE, LabTools

KUBELET_PORT: Final = 10250
HEALTH_PORT: Final = 10248

STATIC_PODS: Final = Path("/etc/kubernetes/manifests")
"""Folder of the manifests of static pods, which is empty at first."""

MACHINE_SYSCTLS: Final = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
"""The sysctls that a kubelet sets (pkg/util/sysctl) and that belong to the machine, not to a namespace."""


@dataclass(frozen=True, slots=True)
class NodePrograms:
    """Paths of the programs of a node."""

    kubelet: Path
    scheduler: Path
    containerd: Path
    """Its folder contains the shim and `ctr` too."""

    @classmethod
    def find(cls, version: str) -> NodePrograms:
        """Return the programs that `scripts/tools/interop-tools` has built.

        :param version: version of Kubernetes, such as ``1.36``.
        :raises ToolsMissingError: one of them is not built.
        """
        module = f"kubernetes-{version}"
        return cls(
            kubelet=newest_built(module, "kubelet"),
            scheduler=newest_built(module, "kube-scheduler"),
            containerd=newest_built("containerd", "containerd"),
        )

    @property
    def ctr(self) -> Path:
        """Return containerd's command-line client."""
        return self.containerd.with_name("ctr")


def prepare(layout: Layout, server: str, cgroup: str) -> None:
    """Create what the kubelet finds on a node: credentials, configuration, a link with a route, cgroups.

    Call it in the namespaces of the lab.

    :param server: URL of the API server.
    :param cgroup: name of the lab's cgroup in every hierarchy.
    :raises OSError: the kernel rejected a mount or a cgroup.
    """
    folder = layout.apiserver
    pair = pki.issue_client(folder, f"system:node:{NODE_NAME}", ("system:nodes",), file_name="kubelet-client")
    pki.write_kubeconfig(layout.role_kubeconfig("kubelet"), server, folder, pair, user_name="kubelet")
    pki.issue_server(folder, NODE_NAME, [NODE_NAME], [NODE_ADDRESS, "127.0.0.1"], file_name="kubelet")
    resolver = layout.config / "resolv.conf"
    # The machine's name servers are out of reach behind the default route; a request to this one fails at once.
    resolver.write_text("nameserver 127.0.0.1\n")
    mount(str(resolver), "/etc/resolv.conf", None, MS_BIND)
    configuration = kubelet_configuration(folder, resolver, f"/{cgroup}")
    (layout.config / "kubelet.json").write_text(json.dumps(configuration, indent=2) + "\n")
    STATIC_PODS.mkdir(parents=True, exist_ok=True)
    cover_sysctls(layout.config / "sysctls")
    cgroups.create(cgroup)
    add_node_link()


def cover_sysctls(folder: Path) -> None:
    """Mount copies over the sysctls of the machine, so that the kubelet sets the copies.

    :raises OSError: the kernel rejected a mount.
    """
    folder.mkdir(exist_ok=True)
    for name in MACHINE_SYSCTLS:
        sysctl, copy = Path("/proc/sys") / name, folder / name.replace("/", ".")
        copy.write_text(sysctl.read_text())
        mount(str(copy), str(sysctl), None, MS_BIND)


def add_node_link() -> None:
    """Create a link with the address of the node, the default route and the address of the Service `kubernetes`.

    :raises subprocess.CalledProcessError: `ip` failed; its message is in the log of the supervisor.
    """
    commands = (
        "link add node0 type veth peer name node1",
        f"address add {NODE_ADDRESS}/24 dev node0",
        f"address add {pki.SERVICE_ADDRESS}/32 dev node0",
        "link set node0 up",
        "link set node1 up",
        "route add default dev node0",
    )
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def kubelet_configuration(directory: Path, resolver: Path, cgroup_root: str) -> dict[str, Any]:
    """Return the KubeletConfiguration.

    :param directory: the folder of the control plane, with the certificates.
    :param resolver: file with the name servers of pods.
    :param cgroup_root: path of the cgroup below which all pods are.
    """
    serving = pki.pair(directory, "kubelet")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "port": KUBELET_PORT,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": HEALTH_PORT,
        "tlsCertFile": str(serving.cert),
        "tlsPrivateKeyFile": str(serving.key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(pki.ca_file(directory))},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "resolvConf": str(resolver),
        "clusterDNS": [],
        "staticPodPath": str(STATIC_PODS),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "registerNode": True,
    }


def kubelet_arguments(layout: Layout) -> tuple[str, ...]:
    """Return the options of the kubelet that its configuration file cannot contain."""
    return (
        f"--config={layout.config / 'kubelet.json'}",
        f"--kubeconfig={layout.role_kubeconfig('kubelet')}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
        # KubeVirt's label of nodes that can run VMs.
        "--node-labels=kubevirt.io/schedulable=true",
    )


def containerd_config(tools: LabTools, snapshotter: str) -> str:
    """Return the configuration of containerd 2 in version 3 of its format.

    :param tools: path of runc.
    :param snapshotter: name of the snapshotter plugin.
    """
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.nri.v1.nri",
]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
  # A process without CAP_SYS_RESOURCE (in containers, on restricted machines) cannot lower its oom_score_adj.
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
  max_conf_num = 1

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{tools.runc}"
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
"""


async def wait_for_node(directory: Path, port: int) -> None:
    """Return once the Node is Ready, which it is when the CNI configuration exists.

    :param directory: the folder of the control plane.
    :param port: the API server's port.
    """
    await readiness.wait_for_answer(administrator(directory, port), f"/api/v1/nodes/{NODE_NAME}", is_node_ready)


def is_node_ready(status: int, body: str) -> bool:
    """Return whether the answer to a read of the Node shows it Ready."""
    return status == 200 and is_true(json.loads(body), "Ready")
