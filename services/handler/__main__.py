"""``hotnic run handler``: settings and wiring of the handler role. Next: :mod:`services.handler.role`."""

import sys
from typing import Annotated

import msgspec

from services.common.bus.jetstream import connect
from services.common.cri.client import Cri
from services.common.domain.kubevirt import OwnerSetting
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.owner import Owner
from services.common.netlink.pool import NetnsPool
from services.common.recording_bus import RecordingBus
from services.common.runtime import RoleRuntime
from services.common.runtime import main as run
from services.common.settings import Common
from services.handler.guest.drivers import DriverSetting, drivers
from services.handler.role import ROLE, Handler


class Settings(Common, frozen=True, kw_only=True):
    """What the handler can be told."""

    cri_socket: Annotated[str, msgspec.Meta(description="the container runtime's socket")] = (
        "/run/containerd/containerd.sock"
    )
    host_root: Annotated[str, msgspec.Meta(description="where the node's file system is seen from here")] = "/"
    guest_driver: Annotated[
        DriverSetting,
        msgspec.Meta(
            description="how guests are reached: qmp, or libvirt in the launcher's container compute (needs"
            " hotnic[libvirt]); auto: qmp where a guest has the folder of HOTNIC_QMP_SOCKET, else libvirt if installed"
        ),
    ] = "auto"
    qmp_socket: Annotated[
        str, msgspec.Meta(description="QEMU's monitor of a guest; {uid} stands for the VMI's UID")
    ] = "/run/hotnic/guests/{uid}/qmp.sock"
    guest_agent_socket: Annotated[
        str, msgspec.Meta(description="the guest agent's channel; {uid} stands for the VMI's UID")
    ] = "/run/hotnic/guests/{uid}/agent.sock"
    vm_owner: Annotated[
        OwnerSetting,
        msgspec.Meta(description="who drives the NICs of VMs; auto: kubevirt where a KubeVirt object exists"),
    ] = "auto"
    tap_owner: Annotated[
        int, msgspec.Meta(description="user id of guests' processes, unless the VMI's status says", ge=0)
    ] = 0


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Wire the role and start its tasks."""
    settings, telemetry, log = runtime.settings, runtime.telemetry, runtime.log
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=telemetry, user_agent="hotnic-handler")
    runtime.stack.push_async_callback(kube.close)
    plain = await connect(settings.nats_url, role=ROLE, node=settings.node_name, telemetry=telemetry, log=log)
    bus = RecordingBus(plain, EventRecorder(kube, ROLE, log=log, node=settings.node_name))
    runtime.stack.push_async_callback(bus.close)
    cri = Cri(settings.cri_socket, telemetry)
    runtime.stack.push_async_callback(cri.close)
    drive = drivers(
        settings.guest_driver,
        qmp_socket=settings.qmp_socket,
        agent_socket=settings.guest_agent_socket,
        cri=cri,
        host_root=settings.host_root,
        tracer=telemetry.tracer,
    )
    netns = NetnsPool(settings.host_root)
    runtime.stack.callback(netns.close)
    owner = Owner(
        kube,
        log,
        settings.vm_owner,
        node=settings.node_name,
        changed=lambda: handler.look_at_all(),
        tell=runtime.readiness.set,
    )
    handler = Handler(
        kube,
        bus,
        cri,
        netns,
        telemetry,
        log,
        node=settings.node_name,
        drive=drive,
        tap_owner=settings.tap_owner,
        acting=owner.acts,
    )
    runtime.stack.push_async_callback(handler.sessions.close)
    runtime.readiness.set("watches", False, "the first lists are not here yet")
    runtime.spawn("watch kubevirt", owner.run)
    runtime.spawn("watch vmis", handler.vmis.run)
    runtime.spawn("watch pods", handler.pods.run)
    await owner.known()
    for synced in (handler.vmis.synced, handler.pods.synced):
        await synced.wait()
    runtime.spawn("reconcile", handler.queue.run)
    runtime.spawn("listen", handler.listen)
    runtime.readiness.set("watches", True)


def main(argv: list[str] | None = None) -> int:
    """Run the role until it is told to stop; returns the exit code."""
    return run(ROLE, Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
