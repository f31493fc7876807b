"""``hotnic run networks``: the settings of the networks role and its start. Next: :mod:`services.networks.role`."""

import sys
from typing import Annotated

import msgspec

from services.common.cri.client import CriClient
from services.common.cri.discovery import find_socket
from services.common.domain.plugin_types import parse_plugin_types
from services.common.http.client import UnixHttpClient
from services.common.runtime.context import open_context
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.runtime.process import main as run
from services.common.runtime.settings import CommonSettings
from services.networks.conflicts import refuse_upstream_controller
from services.networks.multus_client import MultusClient
from services.networks.plan.actions import NamespaceIsolation
from services.networks.role import Networks

ROLE = "networks"


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the networks role."""

    node_name: Annotated[
        str,
        msgspec.Meta(
            description="Kubernetes node whose pods this process serves",
            pattern="^[a-z0-9][-a-z0-9.]*$",
            max_length=253,
        ),
    ]
    cri_socket: Annotated[
        str | None,
        msgspec.Meta(description="unix socket of the container runtime (containerd, CRI-O); unset: found"),
    ] = None
    host_root: Annotated[
        str, msgspec.Meta(description="where the node's file system is mounted, to find the container runtime")
    ] = "/"
    multus_socket: Annotated[str, msgspec.Meta(description="unix socket of the multus daemon", min_length=1)] = (
        "/run/multus/multus.sock"
    )
    namespace_isolation: Annotated[
        bool,
        msgspec.Meta(
            description="whether a pod may use only networks of its own namespace; hotnic's multus enforces its own "
            "namespaceIsolation, upstream's does not for hot-plugged networks"
        ),
    ] = False
    global_namespaces: Annotated[
        str,
        msgspec.Meta(
            description="comma-separated namespaces whose networks every pod may use despite namespace isolation"
        ),
    ] = "default"
    plugin_types: Annotated[
        str | None,
        msgspec.Meta(
            description="comma-separated CNI plugin types that networks may name, those of IPAM plugins included; "
            "unset: every type but multus' own"
        ),
    ] = None

    def isolation(self) -> NamespaceIsolation:
        """Return both settings of namespace isolation as one value."""
        names = (name.strip() for name in self.global_namespaces.split(","))
        return NamespaceIsolation(self.namespace_isolation, frozenset(name for name in names if name))


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Open the clients, assemble the role and start its tasks."""
    settings = runtime.settings
    context = await open_context(runtime, node=settings.node_name)
    await refuse_upstream_controller(context.kube, settings.node_name, context.log, context.denials)
    cri_socket = await find_socket(settings.cri_socket, context.telemetry, host_root=settings.host_root)
    cri = CriClient(cri_socket, context.telemetry)
    runtime.stack.push_async_callback(cri.close)
    http = UnixHttpClient(settings.multus_socket, context.telemetry)
    runtime.stack.push_async_callback(http.close)
    multus = MultusClient(http, settings.multus_socket)
    role = Networks(
        context,
        cri=cri,
        multus=multus,
        isolation=settings.isolation(),
        allowed_plugins=parse_plugin_types(settings.plugin_types),
    )
    for condition in ("pods", "multus", "container-runtime"):
        runtime.readiness.set(condition, False, "not checked yet")
    runtime.spawn("probe dependencies", lambda: role.probe_dependencies(runtime.readiness.set))
    # Before the first list: keys may be added to the queue before it runs.
    runtime.spawn("listen", role.listen)
    runtime.spawn("watch pods", role.pods.run)
    # The queue starts with a resync, which takes its keys from this list.
    await role.pods.synced.wait()
    runtime.readiness.set("pods", True)
    runtime.spawn("reconcile", role.queue.run)


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the role until it is stopped; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
