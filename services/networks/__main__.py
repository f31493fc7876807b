"""``hotnic run networks``: settings and wiring of the networks role. Next: :mod:`services.networks.role`."""

import sys
from typing import Annotated

import msgspec

from services.common.bus.jetstream import connect
from services.common.cri.client import Cri
from services.common.http.client import UnixHttp
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.recording_bus import RecordingBus
from services.common.runtime import RoleRuntime
from services.common.runtime import main as run
from services.common.settings import Common
from services.networks.delegate import Delegate
from services.networks.plan import Isolation
from services.networks.role import ROLE, Networks


class Settings(Common, frozen=True, kw_only=True):
    """Where this node's neighbours listen."""

    node_name: Annotated[
        str,
        msgspec.Meta(
            description="Kubernetes node whose pods this process serves",
            pattern="^[a-z0-9][-a-z0-9.]*$",
            max_length=253,
        ),
    ]
    cri_socket: Annotated[
        str, msgspec.Meta(description="unix socket of the container runtime (containerd, CRI-O)", min_length=1)
    ] = "/run/containerd/containerd.sock"
    multus_socket: Annotated[str, msgspec.Meta(description="unix socket of the multus daemon", min_length=1)] = (
        "/run/multus/multus.sock"
    )
    namespace_isolation: Annotated[
        bool, msgspec.Meta(description="whether pods may use networks of their own namespace only, as multus' key says")
    ] = False
    global_namespaces: Annotated[
        str, msgspec.Meta(description="namespaces, parted by commas, whose networks every pod may use all the same")
    ] = "default"

    def isolation(self) -> Isolation:
        """Both together."""
        names = (name.strip() for name in self.global_namespaces.split(","))
        return Isolation(self.namespace_isolation, frozenset(name for name in names if name))


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Wire the role and start its tasks."""
    settings, telemetry = runtime.settings, runtime.telemetry
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=telemetry, user_agent="hotnic-networks")
    runtime.stack.push_async_callback(kube.close)
    plain = await connect(settings.nats_url, role=ROLE, node=settings.node_name, telemetry=telemetry, log=runtime.log)
    bus = RecordingBus(plain, EventRecorder(kube, ROLE, log=runtime.log, node=settings.node_name))
    runtime.stack.push_async_callback(bus.close)
    cri = Cri(settings.cri_socket, telemetry)
    runtime.stack.push_async_callback(cri.close)
    http = UnixHttp(settings.multus_socket, telemetry)
    runtime.stack.push_async_callback(http.close)
    role = Networks(
        node=settings.node_name,
        kube=kube,
        cri=cri,
        multus=Delegate(http, settings.multus_socket),
        bus=bus,
        telemetry=telemetry,
        log=runtime.log,
        isolation=settings.isolation(),
    )
    for condition in ("pods", "multus", "container-runtime"):
        runtime.readiness.set(condition, False, "not looked at yet")
    runtime.spawn("neighbours", lambda: role.watch_neighbours(runtime.readiness.set))
    runtime.spawn("listen", role.listen)
    runtime.spawn("watch pods", role.pods.run)
    await role.pods.synced.wait()
    runtime.readiness.set("pods", True)
    runtime.spawn("reconcile", role.queue.run)


def main(argv: list[str] | None = None) -> int:
    """Run the role until it is told to stop; returns the exit code."""
    return run(ROLE, Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
