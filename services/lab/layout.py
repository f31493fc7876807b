"""Every path of one lab, below its directory or inside its namespaces.

This module only names paths; it creates and removes nothing but what `prepare` and `sweep` say. The directory is
seen under the same path inside and outside the lab's mount namespace. Unix sockets are the exception: their path
must stay below 108 bytes however long the directory is, so they live in `run/`, which is bound to `/run/hotnic`
inside, and is reached through an open descriptor from outside (`services.lab.control`).
What stands at the fixed paths inside is laid by `services.lab.isolation`.
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

Guests = Literal["qemu", "double"]
"""What a VM's guest is: a machine, or what stands in for one."""

NODE_NAME: Final = "lab"
INSIDE_RUN: Final = Path("/run/hotnic")
CONTAINERD_SOCKET: Final = Path("/run/containerd/containerd.sock")
NATS_PORT: Final = 4222
API_PORT: Final = 8443
"""Where the api role listens inside the lab's own network namespace."""


def lab_dir(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the lab's directory: `chosen`, else HOTNIC_LAB_DIR, else `.lab` in the working directory."""
    return Path(chosen or os.environ.get("HOTNIC_LAB_DIR") or DEFAULT_DIR).absolute()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a running lab is known by; kept in `lab.json` so that its remains can be found after a crash."""

    id: str
    """Eight hex digits; part of the cgroup's name."""
    apiserver_port: int
    """Loopback port of the apiserver, the same outside and inside."""
    nats_port: int
    """Loopback port outside that is relayed to nats-server inside."""
    pid: int
    """Process id, outside, of the process that holds the namespaces; 0 before it was started."""
    started: float
    """Seconds since the epoch."""
    holder_ticks: int = 0
    """Start time of that process in clock ticks since boot: tells it from a later one with the same id."""

    @property
    def cgroup(self) -> str:
        """Return the name of the lab's folder in every cgroup hierarchy."""
        return f"hotnic-lab-{self.id}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of the lab in `dir`."""

    dir: Path

    @property
    def lock(self) -> Path:
        """Return the file whose lock says that the lab is alive."""
        return self.dir / "lock"

    @property
    def identity_file(self) -> Path:
        """Return the file that holds the `Identity`."""
        return self.dir / "lab.json"

    @property
    def run(self) -> Path:
        """Return the folder of sockets and guests, `/run/hotnic` inside."""
        return self.dir / "run"

    @property
    def guests(self) -> Path:
        """Return the folder with one folder per guest, named by the VMI's UID."""
        return self.run / "guests"

    @property
    def control_socket(self) -> Path:
        """Return the supervisor's socket as seen from outside; longer than 108 bytes perhaps."""
        return self.run / "control.sock"

    @property
    def state(self) -> Path:
        """Return the folder of everything that a later `up` starts without."""
        return self.dir / "state"

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
        """Return the administrator's kubeconfig, good inside and outside."""
        return self.dir / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Return the folder of logs, one file per process; it outlives `down`."""
        return self.dir / "logs"

    @property
    def traces(self) -> Path:
        """Return the folder of span files; it outlives `down`."""
        return self.dir / "traces"

    @property
    def overlay(self) -> Path:
        """Return the mount point of the scratch space that covers missing mount points inside."""
        return self.state / "overlay"

    @property
    def serving_certificate(self) -> Path:
        """Return the api role's serving certificate and key, without their endings `.crt` and `.key`."""
        return self.apiserver / "pki" / "hotnic-api"

    def role_kubeconfig(self, role: str) -> Path:
        """Return the kubeconfig of `role` (a role's name, or `node`)."""
        return self.config / f"{role}.kubeconfig"

    def log(self, component: str) -> Path:
        """Return the log file of `component`."""
        return self.logs / f"{component}.log"

    def binds(self) -> dict[Path, Path]:
        """Return what is bound inside: fixed path -> folder of the lab."""
        return {
            INSIDE_RUN: self.run,
            Path("/var/lib/cni"): self.state / "cni",
            Path("/var/lib/containerd"): self.state / "containerd",
            Path("/etc/cni/net.d"): self.state / "cni-conf",
            Path("/opt/cni/bin"): self.state / "cni-bin",
        }

    def prepare(self) -> None:
        """Create every folder, and nothing of an earlier run in it but logs and traces."""
        self.sweep()
        self.dir.mkdir(parents=True, exist_ok=True)
        folders = (self.guests, self.run / "health", self.apiserver, self.overlay, self.config, self.logs)
        for folder in (*folders, self.traces, *self.binds().values()):
            folder.mkdir(parents=True, exist_ok=True)
        for secret in (self.state, self.run, self.config):
            secret.chmod(0o700)
        for log in self.logs.glob("*.log"):
            log.unlink()

    def sweep(self) -> None:
        """Remove what a stopped lab must not leave: everything but the lock, logs and traces."""
        for folder in (self.run, self.state, self.config):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.kubeconfig, self.identity_file):
            file.unlink(missing_ok=True)

    def identity(self) -> Identity | None:
        """Return what `lab.json` says, or None when there is none to be read."""
        try:
            return Identity(**json.loads(self.identity_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def remember(self, identity: Identity) -> None:
        """Write `lab.json`, whole or not at all."""
        fresh = self.identity_file.with_suffix(".tmp")
        fresh.write_text(json.dumps(asdict(identity)) + "\n")
        fresh.chmod(0o600)
        fresh.replace(self.identity_file)


# Fixed paths inside that are plain scratch space: they vanish with the namespaces.
SCRATCH: Final = (Path("/run/netns"), Path("/run/containerd"), Path("/run/multus"))
