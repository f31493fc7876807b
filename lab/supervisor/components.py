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
from typing import TYPE_CHECKING, Final

from lab.failpoints.points import FAILPOINTS_VARIABLE
from lab.layout import (
    API_PORT,
    BUS_ROLES,
    CONTAINERD_SOCKET,
    HEALTH_PORTS,
    INSIDE_RUN,
    NATS_PORT,
    WEBHOOK_PORT,
    GuestKind,
    LabIdentity,
    Layout,
    node_name,
    on_node,
    role_processes,
    split_name,
)
from lab.node import configuration
from lab.supervisor.cluster import Cluster, LabCluster
from lab.supervisor.collector import Collector
from lab.supervisor.processes import ProcessSpec
from lab.tools import LabTools

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

ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""The C library's allocator as in the image; the Dockerfile has the reason."""


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
    nodes: int = 1
    """The number of nodes."""

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
        """Return the names of the processes of hotnic's roles that this lab has, on all nodes."""
        return role_processes(self.nodes, beside=self.kubevirt is not None)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Return the names of the containerd processes, one for each node."""
        return tuple(on_node("containerd", node) for node in range(1, self.nodes + 1))

    @property
    def node_processes(self) -> tuple[str, ...]:
        """Return the names of the processes of `lab.node`, one for each node."""
        return tuple(on_node("node", node) for node in range(1, self.nodes + 1))

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
        first = (*self.roles, *self.played, *self.node_processes)
        return (first, self.kubelet, ("nats", *self.runtimes), *cluster)

    @property
    def components(self) -> tuple[str, ...]:
        """Return every process, in the order in which `hotnic lab status` shows them: those of further nodes last."""
        names = (*self.runtimes, *self.kubelet, *self.played, *self.roles, *self.node_processes)
        by_node = sorted(names, key=lambda name: split_name(name)[1])
        return (*self.cluster.components, "nats", *by_node)


def python_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of the lab that calls no tool of it."""
    packages = Path(__file__).resolve().parents[2]
    inherited = {name: environ[name] for name in INHERITED_ENVIRONMENT if name in environ}
    # PYTHONSAFEPATH: modules in the working directory must not replace those of the packages.
    python = {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return {**inherited, **ALLOCATOR, **python, "PATH": environ.get("PATH", os.defpath)}


def base_environment(tools: LabTools, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that all processes of the lab share."""
    shared = python_environment(environ)
    return {**shared, "PATH": f"{tools.bin_dir}{os.pathsep}{shared['PATH']}"}


def role_environment(parameters: LabParameters, component: str) -> dict[str, str]:
    """Return the settings of a role or of `node`, by the name of its process, without the base environment."""
    layout = parameters.layout
    role, node = split_name(component)
    common = {
        "KUBECONFIG": str(layout.role_kubeconfig(component)),
        "HOTNIC_NODE_NAME": node_name(node),
        "HOTNIC_TRACE_DIR": str(layout.traces),
        "HOTNIC_HEALTH_LISTEN": f"127.0.0.1:{HEALTH_PORTS[role]}",
        "HOTNIC_VM_OWNER": "kubevirt" if parameters.kubevirt else "hotnic",
        **(layout.nats_environment(NATS_PORT, layout.nats_seed(component)) if role in BUS_ROLES else {}),
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
        # The name of the host, which is the default, is the same on all nodes.
        "controller": {"HOTNIC_IDENTITY": component} if parameters.nodes > 1 else {},
        "networks": {"HOTNIC_CRI_SOCKET": str(CONTAINERD_SOCKET)},
        "multus": {
            "HOTNIC_MULTUS_CONFIG": str(layout.config / "daemon-config.json"),
            # Removed with the lab, however it ends.
            "HOTNIC_PLUGIN_CGROUP": f"/{parameters.identity.cgroup}",
        },
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
            # Process 1 is in the first node's namespaces.
            **({"HOTNIC_CLUSTER": "false", "HOTNIC_UPLINK": "/proc/1/ns/net"} if node > 1 else {}),
        },
    }
    return common | special.get(role, {})


def process_spec(parameters: LabParameters, component: str, environ: Mapping[str, str]) -> ProcessSpec:
    """Return how to run the process of `component`."""
    layout, tools = parameters.layout, parameters.tools
    process, _ = split_name(component)
    env = base_environment(tools, environ)
    python = sys.executable
    fds: tuple[int, ...] = ()
    argv: tuple[str, ...]
    match process:
        case _ if component in parameters.cluster.components:
            argv, fds = parameters.cluster.command(component), parameters.cluster.inherited_fds(component)
        case "nats":
            argv = (str(tools.nats_server), "--config", str(layout.nats_config))
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
            module = ("lab.failpoints", process) if FAILPOINTS_VARIABLE in env else (f"services.{process}",)
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


def import_pause_image(
    tools: LabTools, ctr: Path, log: Path, environ: Mapping[str, str], *, node: int = 1
) -> ProcessSpec:
    """Return how to import the pause image into containerd, which has no registry to pull it from.

    :param ctr: containerd's command-line client, of containerd's version.
    :param node: the number of the node.
    """
    client = (str(ctr), "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io")
    argv = (*client, "images", "import", str(tools.pause_tar))
    return ProcessSpec(on_node("pause-image", node), argv, log, base_environment(tools, environ))


def manual_command(parameters: LabParameters, role: str) -> str:
    """Return the shell command that runs `role` inside the lab in the foreground."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in role_environment(parameters, role).items())
    process, node = split_name(role)
    where = f"--dir {shlex.quote(str(parameters.layout.dir))}" + (f" --node {node_name(node)}" if node > 1 else "")
    return f"hotnic lab exec {where} -- env {settings} {shlex.quote(sys.executable)} -m services.{process}"


def write_configuration(parameters: LabParameters) -> None:
    """Write the configuration files of containerd and the CNI plugins, and link the plugins."""
    layout, tools = parameters.layout, parameters.tools
    config = configuration.containerd_config
    if parameters.node is not None:
        from lab.supervisor.kubernetes import kubelet

        config = kubelet.containerd_config
    (layout.config / "containerd.toml").write_text(config(tools, configuration.snapshotter(layout.state)))
    (layout.config / "daemon-config.json").write_text(json.dumps(configuration.MULTUS_CONFIG, indent=2) + "\n")
    for node in range(1, parameters.nodes + 1):
        state = Layout(layout.dir, node).node_state
        configuration.install_cni(tools, conf_dir=state / "cni-conf", bin_dir=state / "cni-bin", node=node)
