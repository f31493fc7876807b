"""The paths of one lab, below its directory or inside its namespaces.

This module names paths; only `prepare`, `remove_state` and `write_identity` change files. The lab's directory has the
same path inside and outside the lab's mount namespace. Unix sockets are the exception, because their path must stay
below 108 bytes however long the directory's is: they are in `run/`, which is bind-mounted at `/run/hotnic` inside, and
is reached through an open descriptor from outside (`lab.namespaces.control`).
`lab.namespaces.isolation` mounts the fixed paths inside.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

DEFAULT_DIR: Final = ".lab"
ROLES: Final = ("api", "controller", "networks", "multus", "handler")
"""The five roles of hotnic, in the order they are started and shown."""

BESIDE_KUBEVIRT: Final = ("api", "controller", "networks", "multus")
"""The roles that run beside KubeVirt, whose virt-handler does what hotnic's handler does elsewhere."""

BUS_ROLES: Final = ("api", "controller", "networks", "handler")
"""The roles that use the bus."""

GuestKind = Literal["qemu", "double"]
"""The kind of a VM's guest: a QEMU guest, or a small process that answers QMP as QEMU does."""

NODE_NAME: Final = "lab"
"""The name of the first node."""

NODE_ROLES: Final = ("networks", "multus", "handler")
"""The roles of a node, in the order they are started."""

ON_EVERY_NODE: Final = ("containerd", *NODE_ROLES, "node")
"""The processes that every node has, in the order they are shown."""

INSIDE_RUN: Final = Path("/run/hotnic")
CONTAINERD_SOCKET: Final = Path("/run/containerd/containerd.sock")
NATS_PORT: Final = 4222
API_PORT: Final = 8443
"""Port of the api role in the lab's network namespace."""

WEBHOOK_PORT: Final = 8444
"""Port of the played KubeVirt's webhooks in the lab's network namespace, on Kubernetes itself."""

HEALTH_PORTS: Final = {name: 9090 + number for number, name in enumerate((*ROLES, "node"))}
"""Ports in a node's network namespace on which its roles and `lab.node` serve /healthz, /readyz and /metrics."""


def node_name(node: int) -> str:
    """Return the name of the Node with a number, counted from 1."""
    return NODE_NAME if node == 1 else f"{NODE_NAME}-{node}"


def on_node(process: str, node: int) -> str:
    """Return the name of a process on a node: the first node's have no suffix."""
    return process if node == 1 else f"{process}-{node}"


def split_name(component: str) -> tuple[str, int]:
    """Return what runs in a process with this name, and the number of its node."""
    process, _, number = component.rpartition("-")
    return (process, int(number)) if number.isdigit() else (component, 1)


def credentials_of(process: str) -> str:
    """Return the name of the credentials of a process: those of a role of a node are the node's own."""
    role, _ = split_name(process)
    return process if role in NODE_ROLES else role


def role_processes(nodes: int, *, beside: bool = False) -> tuple[str, ...]:
    """Return the names of all processes of hotnic's roles, by node.

    With several nodes there are two controllers, one of which leads.

    :param beside: whether hotnic runs beside KubeVirt.
    """
    roles = BESIDE_KUBEVIRT if beside else ROLES
    names = list(roles)
    for node in range(2, nodes + 1):
        there = [role for role in roles if role in ON_EVERY_NODE or (role == "controller" and node == 2)]
        names += [on_node(role, node) for role in there]
    return tuple(names)


def lab_dir(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the lab's directory: `chosen`, else HOTNIC_LAB_DIR, else `.lab` in the working directory."""
    return Path(chosen or os.environ.get("HOTNIC_LAB_DIR") or DEFAULT_DIR).absolute()


@dataclass(frozen=True, slots=True)
class LabIdentity:
    """Identifies a running lab; stored in `lab.json`, so that its leftovers can be found after a crash."""

    id: str
    """Eight hexadecimal digits; part of the cgroup's name."""
    apiserver_port: int
    """Loopback port of the API server, the same outside and inside."""
    nats_port: int
    """Loopback port outside, relayed to nats-server inside."""
    pid: int
    """Process id, outside, of the process that holds the namespaces; 0 until it is started."""
    started: float
    """Seconds since the epoch."""
    holder_ticks: int = 0
    """Start time of that process in clock ticks since boot; distinguishes it from a later process with this id."""

    @property
    def cgroup(self) -> str:
        """Return the name of the lab's cgroup in every hierarchy."""
        return f"hotnic-lab-{self.id}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of the lab in `dir`.

    :ivar node: the number of the node whose folders are meant; only `run`, `guests`, `node_state` and `binds` depend
        on it.
    """

    dir: Path
    node: int = 1

    @property
    def lock(self) -> Path:
        """Return the file that is locked while the lab runs."""
        return self.dir / "lock"

    @property
    def identity_file(self) -> Path:
        """Return the file that stores the `LabIdentity`."""
        return self.dir / "lab.json"

    @property
    def run(self) -> Path:
        """Return the folder of the node's sockets and guests, `/run/hotnic` inside."""
        return self.dir / on_node("run", self.node)

    @property
    def guests(self) -> Path:
        """Return the folder that contains one folder per guest, named by the VMI's UID."""
        return self.run / "guests"

    @property
    def control_socket(self) -> Path:
        """Return the supervisor's socket as seen from outside; its path may exceed 108 bytes."""
        return self.dir / "run" / "control.sock"

    @property
    def state(self) -> Path:
        """Return the folder of state that is deleted before each start."""
        return self.dir / "state"

    @property
    def node_state(self) -> Path:
        """Return the folder of what containerd and CNI keep on the node."""
        return self.state if self.node == 1 else self.state / node_name(self.node)

    @property
    def apiserver(self) -> Path:
        """Return the apiserver's folder (its database and `pki/`)."""
        return self.state / "apiserver"

    @property
    def config(self) -> Path:
        """Return the folder of generated configuration files."""
        return self.dir / "config"

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig, valid inside and outside."""
        return self.dir / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Return the folder of logs, one file per process; `down` leaves it."""
        return self.dir / "logs"

    @property
    def traces(self) -> Path:
        """Return the folder of span files; `down` leaves it."""
        return self.dir / "traces"

    @property
    def overlay(self) -> Path:
        """Return the mount point of the tmpfs that holds the overlays' upper layers inside."""
        return self.state / "overlay"

    @property
    def serving_certificate(self) -> Path:
        """Return the path of the api role's serving certificate and key, without the suffixes `.crt` and `.key`."""
        return self.apiserver / "pki" / "hotnic-api"

    @property
    def webhook_certificate(self) -> Path:
        """Return the path of the played KubeVirt's serving certificate and key, without the suffixes."""
        return self.apiserver / "pki" / "virt-api"

    @property
    def nats_ca(self) -> Path:
        """Return the CA certificate with which clients verify nats-server."""
        return self.apiserver / "pki" / "ca.crt"

    @property
    def nats_certificate(self) -> Path:
        """Return the path of nats-server's certificate and key, without the suffixes."""
        return self.apiserver / "pki" / "nats"

    @property
    def nats_config(self) -> Path:
        """Return the configuration file of nats-server."""
        return self.config / "nats.conf"

    @property
    def unrestricted_nats_seed(self) -> Path:
        """Return the seed of an identity that may do everything on NATS, for tests and for an examination by hand."""
        return self.config / "unrestricted.nk"

    def nats_seed(self, process: str = "") -> Path:
        """Return the seed of the identity on NATS of a process; without a name, of the administrator."""
        return self.config / f"{credentials_of(process)}.nk" if process else self.dir / "nats.nk"

    def nats_environment(self, port: int, seed: Path | None = None) -> dict[str, str]:
        """Return the variables with which a process of this machine connects to NATS.

        :param port: of 127.0.0.1; it differs inside and outside.
        :param seed: file of the seed of its identity; None for the administrator's.
        """
        files = {"NATS_CA": self.nats_ca, "NATS_NKEY": seed or self.nats_seed()}
        return {"NATS_URL": f"tls://127.0.0.1:{port}", **{name: str(path) for name, path in files.items()}}

    def role_kubeconfig(self, process: str) -> Path:
        """Return the kubeconfig of a process: of a role, of `node`, or of what plays a part of the cluster."""
        return self.config / f"{credentials_of(process)}.kubeconfig"

    def log(self, component: str) -> Path:
        """Return the log file of `component`."""
        return self.logs / f"{component}.log"

    def binds(self) -> dict[Path, Path]:
        """Return the bind mounts inside, by fixed path: the folder of the lab that is mounted there."""
        return {
            INSIDE_RUN: self.run,
            Path("/var/lib/cni"): self.node_state / "cni",
            Path("/var/lib/containerd"): self.node_state / "containerd",
            Path("/var/lib/kubelet"): self.node_state / "kubelet",
            Path("/etc/cni/net.d"): self.node_state / "cni-conf",
            Path("/opt/cni/bin"): self.node_state / "cni-bin",
        }

    def prepare(self) -> None:
        """Remove everything of an earlier run except traces, and create every folder."""
        self.remove_state()
        self.dir.mkdir(parents=True, exist_ok=True)
        for folder in (self.apiserver, self.overlay, self.config, self.logs, self.traces):
            folder.mkdir(parents=True, exist_ok=True)
        # They contain keys and kubeconfigs.
        for secret in (self.state, self.config):
            secret.chmod(0o700)
        self.prepare_node()
        for log in self.logs.glob("*.log"):
            log.unlink()

    def prepare_node(self) -> None:
        """Create the folders of the node."""
        for folder in (self.guests, *self.binds().values()):
            folder.mkdir(parents=True, exist_ok=True)
        # It contains sockets.
        self.run.chmod(0o700)

    def remove_state(self) -> None:
        """Remove everything of a stopped lab except lock, logs and traces."""
        for folder in (self.dir / "run", *self.dir.glob("run-[2-9]"), self.state, self.config):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.kubeconfig, self.nats_seed(), self.identity_file):
            file.unlink(missing_ok=True)

    def identity(self) -> LabIdentity | None:
        """Return the content of `lab.json`, or None when it is missing or unreadable."""
        try:
            return LabIdentity(**json.loads(self.identity_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_identity(self, identity: LabIdentity) -> None:
        """Write `lab.json` atomically."""
        temporary = self.identity_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(identity)) + "\n")
        temporary.chmod(0o600)
        temporary.replace(self.identity_file)


# Fixed paths inside on which a tmpfs is mounted; their content vanishes with the namespaces.
SCRATCH: Final = (Path("/run/netns"), Path("/run/containerd"), Path("/run/multus"))
