"""The API server of a lab's cluster: what the supervisor needs to start it, and to wait until it is ready.

The roles and the node use it with their kubeconfigs only. `LabParameters.api_server` in `components.py` selects the
implementation; there is one, the lab's own API server.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from lab.layout import LabIdentity, Layout
from lab.supervisor import readiness


class KubernetesApiServer(Protocol):
    """An API server that the supervisor runs as one process."""

    @property
    def endpoint(self) -> str:
        """Return its URL, which is the same inside and outside the lab's namespaces."""

    @property
    def command(self) -> tuple[str, ...]:
        """Return the command line of its process."""

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """Return the descriptors that its process inherits."""

    async def wait_ready(self) -> None:
        """Return once it accepts connections; the caller sets the deadline."""


@dataclass(frozen=True, slots=True)
class LabApiServer:
    """The API server in `lab.apiserver`, on a socket that was created outside the lab's network namespace.

    :ivar listener_fd: the listening socket. A socket created inside would be reachable only from inside.
    """

    layout: Layout
    identity: LabIdentity
    listener_fd: int

    @property
    def address(self) -> str:
        """Return host and port."""
        return f"127.0.0.1:{self.identity.apiserver_port}"

    @property
    def endpoint(self) -> str:
        """Return the URL."""
        return f"https://{self.address}"

    @property
    def command(self) -> tuple[str, ...]:
        """Return the command line of its process."""
        argv = (sys.executable, "-m", "lab.apiserver", "--dir", str(self.layout.apiserver))
        return (*argv, "--listen", self.address, "--listen-fd", str(self.listener_fd), "--advertise", self.address)

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """Return the listening socket."""
        return (self.listener_fd,)

    async def wait_ready(self) -> None:
        """Return once its port accepts connections."""
        await readiness.wait_for_port(self.identity.apiserver_port)
