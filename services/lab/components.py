"""What runs in a lab: command line, environment and configuration files of every process.

Pure but for `write_configuration`: a function of the layout, the tools and the ports. The order in which the
processes start, and when each is ready, is the supervisor's (`services.lab.supervisor`).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.lab.isolation import overlays_work_on
from services.lab.layout import (
    API_PORT,
    CONTAINERD_SOCKET,
    INSIDE_RUN,
    NATS_PORT,
    NODE_NAME,
    ROLES,
    Guests,
    Identity,
    Layout,
)
from services.lab.processes import Spec
from services.lab.tools import PAUSE_IMAGE, Tools

STARTED_TOGETHER: Final = (("apiserver", "nats", "containerd"), (*ROLES, "node"))
"""What starts, and in the reverse order stops, at the same time."""

COMPONENTS: Final = tuple(component for together in STARTED_TOGETHER for component in together)
"""Every process of a lab in the order it is shown."""

KEPT_ENVIRONMENT: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "HOTNIC_LOG_LEVEL",
    "HOTNIC_LOG_FORMAT",
    "HOTNIC_TEST_FAULTS",
)
"""Taken over from whoever calls `lab up`; everything else of the environment stays outside."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the processes' arguments depend on."""

    layout: Layout
    identity: Identity
    tools: Tools
    apiserver_fd: int = -1
    """Listener made outside, inherited; used by the apiserver only."""
    guests: Guests = "qemu"


def base_environment(tools: Tools, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that every process of the lab gets."""
    packages = Path(__file__).resolve().parents[2]
    kept = {name: environ[name] for name in KEPT_ENVIRONMENT if name in environ}
    path = f"{tools.bin_dir}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def role_environment(plan: Plan, role: str) -> dict[str, str]:
    """Return the settings of `role` (or of `node`), without the base environment."""
    layout = plan.layout
    common = {
        "KUBECONFIG": str(layout.role_kubeconfig(role)),
        "NATS_URL": f"nats://127.0.0.1:{NATS_PORT}",
        "HOTNIC_NODE_NAME": NODE_NAME,
        "HOTNIC_TRACE_DIR": str(layout.traces),
        "HOTNIC_HEALTH_LISTEN": f"unix:{health_socket(role)}",
        "HOTNIC_VM_OWNER": "hotnic",
    }
    guests = INSIDE_RUN / "guests" / "{uid}"
    special: dict[str, dict[str, str]] = {
        "api": {
            "HOTNIC_LISTEN": f"127.0.0.1:{API_PORT}",
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
            "HOTNIC_TOOLS": str(plan.tools.root),
            "HOTNIC_CGROUP_PARENT": f"/{plan.identity.cgroup}",
            "HOTNIC_GUESTS": plan.guests,
            "HOTNIC_GUESTS_DIR": str(INSIDE_RUN / "guests"),
        },
    }
    return common | special.get(role, {})


def health_socket(role: str) -> Path:
    """Return the unix socket, inside, on which `role` answers /readyz."""
    return INSIDE_RUN / "health" / f"{role}.sock"


def spec(plan: Plan, component: str, environ: Mapping[str, str]) -> Spec:
    """Return how `component` is run."""
    layout, tools = plan.layout, plan.tools
    env = base_environment(tools, environ)
    python = sys.executable
    fds: tuple[int, ...] = ()
    argv: tuple[str, ...]
    match component:
        case "apiserver":
            fds = (plan.apiserver_fd,)
            listen = f"127.0.0.1:{plan.identity.apiserver_port}"
            argv = (python, "-m", "services.lab.apiserver", "--dir", str(layout.apiserver))
            argv += ("--listen", listen, "--listen-fd", str(plan.apiserver_fd), "--advertise", listen)
        case "nats":
            argv = (str(tools.nats_server), "--config", str(layout.config / "nats.conf"))
        case "containerd":
            argv = (str(tools.containerd), "--config", str(layout.config / "containerd.toml"))
        case "node":
            argv = (python, "-m", "services.lab.node")
            env |= role_environment(plan, component)
        case _:
            argv = (python, "-m", f"services.{component}")
            env |= role_environment(plan, component)
    return Spec(name=component, argv=argv, log=layout.log(component), env=env, pass_fds=fds)


def import_pause_image(plan: Plan, environ: Mapping[str, str]) -> Spec:
    """Return how the pause image gets into containerd: there is no registry to pull it from."""
    tools = plan.tools
    ctr = (str(tools.ctr), "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io")
    argv = (*ctr, "images", "import", str(tools.pause_tar))
    return Spec("pause-image", argv, plan.layout.log("containerd"), base_environment(tools, environ))


def by_hand(plan: Plan, role: str) -> str:
    """Return the shell command that runs `role` inside the lab in the foreground."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in role_environment(plan, role).items())
    lab = shlex.quote(str(plan.layout.dir))
    return f"hotnic lab exec --dir {lab} -- env {settings} {shlex.quote(sys.executable)} -m services.{role}"


def write_configuration(plan: Plan) -> None:
    """Write the configuration files of nats-server, containerd and the CNI side."""
    layout, tools = plan.layout, plan.tools
    (layout.config / "nats.conf").write_text(nats_config(layout))
    (layout.config / "containerd.toml").write_text(
        containerd_config(tools, snapshotter="overlayfs" if overlays_work_on(layout.state) else "native")
    )
    (layout.config / "daemon-config.json").write_text(json.dumps(MULTUS_CONFIG, indent=2) + "\n")
    (layout.state / "cni-conf" / "10-lab.conflist").write_text(json.dumps(CLUSTER_NETWORK, indent=2) + "\n")
    for plugin in sorted(tools.cni_dir.iterdir()):
        link = layout.state / "cni-bin" / plugin.name
        if not link.is_symlink():
            link.symlink_to(plugin.resolve())


def nats_config(layout: Layout) -> str:
    """Return nats-server's configuration: loopback, JetStream in the lab's directory."""
    store = json.dumps(str(layout.state / "nats"))
    return (
        f'server_name: "hotnic-lab"\nlisten: "127.0.0.1:{NATS_PORT}"\n'
        f"jetstream {{ store_dir: {store}, max_memory_store: 64MB, max_file_store: 1GB }}\n"
    )


def containerd_config(tools: Tools, snapshotter: str) -> str:
    """Return containerd's configuration (version 2, understood by 1.6 and 1.7)."""
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
  # Without CAP_SYS_RESOURCE (containers, restricted machines) a lower score than one's own is refused.
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
"""The pods' primary network; a bridge in the lab's own network namespace."""

MULTUS_CONFIG: Final[dict[str, Any]] = {
    "cniVersion": "1.0.0",
    "logLevel": "verbose",
    "logToStderr": True,
    "socketDir": "/run/multus",
    "cniConfigDir": "/etc/cni/net.d",
    "multusAutoconfigDir": "/etc/cni/net.d",
    "multusConfigFile": "auto",
}
"""The daemon's configuration, with upstream's keys."""
