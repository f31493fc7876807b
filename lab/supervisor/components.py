"""Build the command line, environment and configuration files of every process of a lab.

All but `write_configuration` are pure functions of `LabParameters` and the caller's environment. `lifecycle.py` decides
the order in which the processes start and waits until each is ready.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lab.failpoints.points import FAILPOINTS_VARIABLE
from lab.layout import (
    API_PORT,
    BESIDE_KUBEVIRT,
    CONTAINERD_SOCKET,
    HEALTH_PORTS,
    INSIDE_RUN,
    NATS_PORT,
    NODE_NAME,
    ROLES,
    WEBHOOK_PORT,
    GuestKind,
    LabIdentity,
    Layout,
)
from lab.namespaces.isolation import supports_overlay
from lab.supervisor.cluster import Cluster, LabCluster
from lab.supervisor.collector import Collector
from lab.supervisor.processes import ProcessSpec
from lab.tools import PAUSE_IMAGE, LabTools

if TYPE_CHECKING:
    from lab.supervisor.kubernetes.control_plane import ControlPlanePrograms
    from lab.supervisor.kubernetes.kubelet import NodePrograms

INHERITED_ENVIRONMENT: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "HOTNIC_LOG_LEVEL",
    "HOTNIC_LOG_FORMAT",
    FAILPOINTS_VARIABLE,
)
"""Variables that every process inherits from the caller of `lab up`; no other variable is passed on."""


@dataclass(frozen=True, slots=True)
class LabParameters:
    """What the command lines, environments and configuration files of a lab's processes are built from."""

    layout: Layout
    identity: LabIdentity
    tools: LabTools
    apiserver_fd: int = -1
    """Listening socket that was created outside the namespaces; the lab's own API server inherits it."""
    guests: GuestKind = "qemu"
    collector: Collector | None = None
    """The collector outside to which the roles and the node export their traces, besides the span files."""
    kubernetes: ControlPlanePrograms | None = None
    """The programs of Kubernetes itself; None for the lab's own API server."""
    node: NodePrograms | None = None
    """The programs of a node with a kubelet; None if `lab/node` plays the kubelet."""
    kubevirt: str | None = None
    """Version of the played KubeVirt, beside which hotnic runs; None if `lab/node` starts the VMs."""

    @property
    def cluster(self) -> Cluster:
        """Return the cluster."""
        if self.kubernetes is not None:
            # Imported here because it needs cryptography, which would delay the start of every lab.
            from lab.supervisor.kubernetes.control_plane import KubernetesCluster

            scheduler = self.node.scheduler if self.node else None
            return KubernetesCluster(self.layout, self.identity, self.kubernetes, scheduler)
        return LabCluster(self.layout, self.identity, self.apiserver_fd, self.kubevirt)

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the roles of hotnic that this lab has."""
        return BESIDE_KUBEVIRT if self.kubevirt else ROLES

    @property
    def played(self) -> tuple[str, ...]:
        """Return the name of the played KubeVirt's process, if there is one."""
        return ("kubevirt",) if self.kubevirt else ()

    @property
    def kubelet(self) -> tuple[str, ...]:
        """Return the name of the kubelet's process, if there is one."""
        return ("kubelet",) if self.node else ()

    @property
    def stop_groups(self) -> tuple[tuple[str, ...], ...]:
        """Return groups of processes that stop at the same time, one group after another."""
        cluster = tuple((component,) for component in reversed(self.cluster.components))
        return ((*self.roles, *self.played, "node"), self.kubelet, ("nats", "containerd"), *cluster)

    @property
    def components(self) -> tuple[str, ...]:
        """Return every process, in the order in which `hotnic lab status` shows them."""
        return (*self.cluster.components, "nats", "containerd", *self.kubelet, *self.played, *self.roles, "node")


def base_environment(tools: LabTools, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that all processes of the lab share."""
    packages = Path(__file__).resolve().parents[2]
    inherited = {name: environ[name] for name in INHERITED_ENVIRONMENT if name in environ}
    path = f"{tools.bin_dir}{os.pathsep}{environ.get('PATH', os.defpath)}"
    # PYTHONSAFEPATH: modules in the working directory must not replace those of the packages.
    return {**inherited, "PATH": path, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def role_environment(parameters: LabParameters, role: str) -> dict[str, str]:
    """Return the settings of `role` (a role's name or `node`), without the base environment."""
    layout = parameters.layout
    common = {
        "KUBECONFIG": str(layout.role_kubeconfig(role)),
        "NATS_URL": f"nats://127.0.0.1:{NATS_PORT}",
        "HOTNIC_NODE_NAME": NODE_NAME,
        "HOTNIC_TRACE_DIR": str(layout.traces),
        "HOTNIC_HEALTH_LISTEN": f"127.0.0.1:{HEALTH_PORTS[role]}",
        "HOTNIC_VM_OWNER": "kubevirt" if parameters.kubevirt else "hotnic",
        **(parameters.collector.environment if parameters.collector else {}),
    }
    guests = INSIDE_RUN / "guests" / "{uid}"
    special: dict[str, dict[str, str]] = {
        "api": {
            # A kubelet's node is reached at its own address.
            "HOTNIC_LISTEN": f"{parameters.cluster.api_host if parameters.node else '127.0.0.1'}:{API_PORT}",
            "HOTNIC_TLS_CERT": str(layout.serving_certificate.with_suffix(".crt")),
            "HOTNIC_TLS_KEY": str(layout.serving_certificate.with_suffix(".key")),
        },
        "networks": {"HOTNIC_CRI_SOCKET": str(CONTAINERD_SOCKET)},
        "multus": {"HOTNIC_MULTUS_CONFIG": str(layout.config / "daemon-config.json")},
        "handler": {
            "HOTNIC_CRI_SOCKET": str(CONTAINERD_SOCKET),
            "HOTNIC_GUEST_DRIVER": "qmp",
            "HOTNIC_QMP_SOCKET": str(guests / "qmp.sock"),
            "HOTNIC_GUEST_AGENT_SOCKET": str(guests / "agent.sock"),
        },
        "node": {
            "HOTNIC_CRI_SOCKET": str(CONTAINERD_SOCKET),
            "HOTNIC_TOOLS": str(parameters.tools.root),
            "HOTNIC_CGROUP_PARENT": f"/{parameters.identity.cgroup}",
            "HOTNIC_GUESTS": parameters.guests,
            "HOTNIC_GUESTS_DIR": str(INSIDE_RUN / "guests"),
            **({"HOTNIC_KUBELET": "false"} if parameters.node else {}),
            **({"HOTNIC_VMS": "false"} if parameters.kubevirt else {}),
        },
    }
    return common | special.get(role, {})


def process_spec(parameters: LabParameters, component: str, environ: Mapping[str, str]) -> ProcessSpec:
    """Return how to run the process of `component`."""
    layout, tools = parameters.layout, parameters.tools
    env = base_environment(tools, environ)
    python = sys.executable
    fds: tuple[int, ...] = ()
    argv: tuple[str, ...]
    match component:
        case _ if component in parameters.cluster.components:
            argv, fds = parameters.cluster.command(component), parameters.cluster.inherited_fds(component)
        case "nats":
            argv = (str(tools.nats_server), "--config", str(layout.config / "nats.conf"))
        case "containerd":
            program = parameters.node.containerd if parameters.node else tools.containerd
            argv = (str(program), "--config", str(layout.config / "containerd.toml"))
            # containerd finds the shim of its own version on PATH.
            env["PATH"] = f"{program.parent}{os.pathsep}{env['PATH']}"
        case "kubelet" if parameters.node:
            from lab.supervisor.kubernetes.kubelet import kubelet_arguments

            argv = (str(parameters.node.kubelet), *kubelet_arguments(layout))
        case "kubevirt" if parameters.kubevirt:
            argv = (python, "-m", "lab.kubevirt", *kubevirt_arguments(parameters, parameters.kubevirt))
        case "node":
            argv = (python, "-m", "lab.node")
            env |= role_environment(parameters, component)
        case _:
            module = ("lab.failpoints", component) if FAILPOINTS_VARIABLE in env else (f"services.{component}",)
            argv = (python, "-m", *module)
            env |= role_environment(parameters, component)
    return ProcessSpec(name=component, argv=argv, log=layout.log(component), env=env, pass_fds=fds)


def kubevirt_arguments(parameters: LabParameters, version: str) -> tuple[str, ...]:
    """Return the options of the played KubeVirt: interfaces are hot-plugged, and the lab's node runs the pods.

    The lab's own API server plays the webhooks itself.
    """
    from lab.apiserver.identity.pki import ca_file
    from lab.kubevirt.versions import HOTPLUG_GATE, behaviour_of

    gate = () if behaviour_of(version).enabled else ("--gate", HOTPLUG_GATE)
    layout = parameters.layout
    webhooks: tuple[str, ...] = ()
    if parameters.kubernetes is not None:
        served = (f"127.0.0.1:{WEBHOOK_PORT}", str(layout.webhook_certificate), str(ca_file(layout.apiserver)))
        webhooks = ("--webhooks", *served)
    account = str(layout.role_kubeconfig("kubevirt"))
    return ("--kubeconfig", account, "--version", version, "--real-pods", *gate, *webhooks)


def import_pause_image(tools: LabTools, ctr: Path, log: Path, environ: Mapping[str, str]) -> ProcessSpec:
    """Return how to import the pause image into containerd, which has no registry to pull it from.

    :param ctr: containerd's command-line client, of containerd's version.
    """
    client = (str(ctr), "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io")
    argv = (*client, "images", "import", str(tools.pause_tar))
    return ProcessSpec("pause-image", argv, log, base_environment(tools, environ))


def manual_command(parameters: LabParameters, role: str) -> str:
    """Return the shell command that runs `role` inside the lab in the foreground."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in role_environment(parameters, role).items())
    lab = shlex.quote(str(parameters.layout.dir))
    return f"hotnic lab exec --dir {lab} -- env {settings} {shlex.quote(sys.executable)} -m services.{role}"


def write_configuration(parameters: LabParameters) -> None:
    """Write the configuration files of nats-server, containerd and the CNI plugins, and link the plugins."""
    layout, tools = parameters.layout, parameters.tools
    (layout.config / "nats.conf").write_text(nats_config(layout))
    config = containerd_config
    if parameters.node is not None:
        from lab.supervisor.kubernetes import kubelet

        config = kubelet.containerd_config
    (layout.config / "containerd.toml").write_text(config(tools, snapshotter(layout.state)))
    (layout.config / "daemon-config.json").write_text(json.dumps(MULTUS_CONFIG, indent=2) + "\n")
    install_cni(tools, conf_dir=layout.state / "cni-conf", bin_dir=layout.state / "cni-bin")


def install_cni(tools: LabTools, *, conf_dir: Path, bin_dir: Path) -> None:
    """Write the primary CNI configuration, and link the plugins into `bin_dir`, where multus installs its shim."""
    (conf_dir / "10-lab.conflist").write_text(json.dumps(CLUSTER_NETWORK, indent=2) + "\n")
    for plugin in sorted(tools.cni_dir.iterdir()):
        link = bin_dir / plugin.name
        if not link.is_symlink():
            link.symlink_to(plugin.resolve())


def snapshotter(state: Path) -> str:
    """Return the name of the snapshotter that works on the file system of `state`."""
    return "overlayfs" if supports_overlay(state) else "native"


def nats_config(layout: Layout) -> str:
    """Return nats-server's configuration: a loopback listener, and JetStream in the lab's directory."""
    store = json.dumps(str(layout.state / "nats"))
    return (
        f'server_name: "hotnic-lab"\nlisten: "127.0.0.1:{NATS_PORT}"\n'
        f"jetstream {{ store_dir: {store}, max_memory_store: 64MB, max_file_store: 1GB }}\n"
    )


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


CLUSTER_NETWORK: Final[dict[str, Any]] = {
    "cniVersion": "1.0.0",
    "name": "lab",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}
"""The pods' primary network: a bridge in the lab's network namespace."""

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
