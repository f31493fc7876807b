"""``hotnic run handler``: the settings and the assembly of the handler role. Next: :mod:`services.handler.role`."""

import sys
from typing import Annotated

import msgspec

from services.common.cri.client import CriClient
from services.common.cri.discovery import find_socket
from services.common.domain.kubevirt.owner import KUBEVIRT_NAMESPACES, OwnerSetting
from services.common.guest.drivers import DriverSetting, driver_factory
from services.common.netlink.pool import NetnsPool
from services.common.node.capabilities import lacked_by
from services.common.node.mounts import find_netns_problem
from services.common.runtime.context import open_context
from services.common.runtime.installations import KubeVirtNamespaces
from services.common.runtime.owner import VmOwner
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.runtime.process import main as run
from services.common.runtime.settings import CommonSettings
from services.handler.role import ROLE, Handler


class Settings(CommonSettings, frozen=True, kw_only=True):
    """The settings of the handler."""

    cri_socket: Annotated[
        str | None,
        msgspec.Meta(description="unix socket of the container runtime (containerd, CRI-O); unset: found"),
    ] = None
    host_root: Annotated[str, msgspec.Meta(description="where the node's file system is mounted")] = "/"
    guest_driver: Annotated[
        DriverSetting,
        msgspec.Meta(
            description="driver of guests: qmp, or libvirt in the launcher's container compute (needs hotnic[libvirt]);"
            " auto: qmp where the directory of HOTNIC_QMP_SOCKET exists for a guest, else libvirt if installed"
        ),
    ] = "auto"
    qmp_socket: Annotated[str, msgspec.Meta(description="QMP socket of a guest; {uid} stands for the VMI's UID")] = (
        "/run/hotnic/guests/{uid}/qmp.sock"
    )
    guest_agent_socket: Annotated[
        str, msgspec.Meta(description="socket of the guest agent; {uid} stands for the VMI's UID")
    ] = "/run/hotnic/guests/{uid}/agent.sock"
    vm_owner: Annotated[
        OwnerSetting,
        msgspec.Meta(description="owner of the interfaces of VMs; auto: kubevirt where it is installed"),
    ] = "auto"
    kubevirt_namespaces: KubeVirtNamespaces = KUBEVIRT_NAMESPACES
    tap_owner: Annotated[
        int, msgspec.Meta(description="user id of guests' processes, unless the VMI's status has one", ge=0)
    ] = 0


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Assemble the role and start its tasks."""
    settings = runtime.settings
    context = await open_context(runtime, node=settings.node_name)
    for capability, reason in lacked_by(ROLE).items():
        context.log.warning("capability missing", capability=capability, used_for=reason)
    if problem := find_netns_problem(settings.host_root):
        context.log.warning("network namespaces not visible", error=problem)
    cri_socket = await find_socket(settings.cri_socket, context.telemetry, host_root=settings.host_root)
    cri = CriClient(cri_socket, context.telemetry)
    runtime.stack.push_async_callback(cri.close)
    make_driver = driver_factory(
        settings.guest_driver,
        qmp_socket=settings.qmp_socket,
        agent_socket=settings.guest_agent_socket,
        cri=cri,
        host_root=settings.host_root,
        tracer=context.telemetry.tracer,
    )
    netns = NetnsPool(settings.host_root)
    runtime.stack.callback(netns.close)
    owner = VmOwner(
        context.kube,
        context.log,
        settings.vm_owner,
        node=settings.node_name,
        on_change=lambda: handler.requeue_all(),
        on_condition=runtime.readiness.set,
        denials=context.denials,
        namespaces=settings.kubevirt_namespaces,
    )
    handler = Handler(
        context,
        cri=cri,
        netns=netns,
        make_driver=make_driver,
        tap_owner=settings.tap_owner,
        is_owner=owner.is_hotnic,
    )
    runtime.stack.push_async_callback(handler.sessions.close)
    runtime.readiness.set("watches", False, "the first lists are not complete")
    runtime.spawn("watch kubevirt", owner.run)
    runtime.spawn("watch vmis", handler.vmis.run)
    runtime.spawn("watch arriving vmis", handler.arriving_vmis.run)
    runtime.spawn("watch pods", handler.pods.run)
    # ADR 23: raises while KubeVirt's controllers run, before the queue could change anything.
    await owner.wait_synced()
    # Without all lists a VMI has no acting pod, and its run would do nothing.
    for synced in (handler.vmis.synced, handler.arriving_vmis.synced, handler.pods.synced):
        await synced.wait()
    runtime.spawn("reconcile", handler.queue.run)
    runtime.spawn("consume events", handler.consume_events)
    runtime.readiness.set("watches", True)


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the role until it is stopped; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
