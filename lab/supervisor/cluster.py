"""The cluster of a lab: which processes serve the Kubernetes API, how each is started, and when it is ready.

The roles and the node use the API with their kubeconfigs only. `LabParameters.cluster` in `components.py` selects the
implementation: the lab's own API server, here, or Kubernetes itself (`kubernetes/control_plane.py`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from lab.layout import LabIdentity, Layout
from lab.supervisor import readiness


class Cluster(Protocol):
    """The processes that serve the Kubernetes API."""

    @property
    def endpoint(self) -> str:
        """Return the URL of the API, which is the same inside and outside the lab's namespaces."""

    @property
    def api_host(self) -> str:
        """Return the address or name by which the API server reaches the api role."""

    @property
    def components(self) -> tuple[str, ...]:
        """Return the names of the processes, each after those that it needs."""

    @property
    def relayed_port(self) -> int | None:
        """Return the port inside to which connections from outside are relayed; None if a process inherits them."""

    def command(self, component: str) -> tuple[str, ...]:
        """Return the command line of a process."""

    def inherited_fds(self, component: str) -> tuple[int, ...]:
        """Return the descriptors that a process inherits."""

    async def wait_ready(self, component: str) -> None:
        """Return once a process does its work; the caller sets the deadline."""


@dataclass(frozen=True, slots=True)
class LabCluster:
    """The API server in `lab.apiserver`, on a socket that was created outside the lab's network namespace.

    :ivar listener_fd: the listening socket. A socket created inside would be reachable only from inside.
    :ivar kubevirt: version of KubeVirt whose admission it plays, if any.
    """

    layout: Layout
    identity: LabIdentity
    listener_fd: int
    kubevirt: str | None = None

    @property
    def address(self) -> str:
        """Return host and port."""
        return f"127.0.0.1:{self.identity.apiserver_port}"

    @property
    def endpoint(self) -> str:
        """Return the URL."""
        return f"https://{self.address}"

    @property
    def api_host(self) -> str:
        """Return the address of the api role."""
        return "127.0.0.1"

    @property
    def components(self) -> tuple[str, ...]:
        """Return the one process."""
        return ("apiserver",)

    @property
    def relayed_port(self) -> int | None:
        """Return None: the API server inherits the listening socket."""
        return None

    def command(self, component: str) -> tuple[str, ...]:
        """Return the command line of its process."""
        argv = (sys.executable, "-m", "lab.apiserver", "--dir", str(self.layout.apiserver))
        admission = ("--kubevirt", self.kubevirt) if self.kubevirt else ()
        listening = ("--listen", self.address, "--listen-fd", str(self.listener_fd), "--advertise", self.address)
        return (*argv, *listening, *admission)

    def inherited_fds(self, component: str) -> tuple[int, ...]:
        """Return the listening socket."""
        return (self.listener_fd,)

    async def wait_ready(self, component: str) -> None:
        """Return once its port accepts connections."""
        await readiness.wait_for_port(self.identity.apiserver_port)
