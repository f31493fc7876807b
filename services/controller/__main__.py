"""``hotnic run controller``: settings and wiring of the controller role. Next: :mod:`services.controller.role`."""

import socket
import sys
from typing import Annotated

import msgspec

from services.common.bus.jetstream import connect
from services.common.domain.kubevirt import hotplug_enabled
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.installations import OwnerSettings
from services.common.kube.leader import Leader
from services.common.kube.owner import Owner
from services.common.recording_bus import RecordingBus
from services.common.runtime import RoleRuntime
from services.common.runtime import main as run
from services.controller.role import Controller

ROLE = "controller"
LEASE = "hotnic-controller"
"""The Lease by which one of several controllers leads; in the namespace of the kubeconfig or of the pod."""


class Settings(OwnerSettings, frozen=True, kw_only=True):
    """Settings of the controller."""

    identity: Annotated[
        str | None, msgspec.Meta(description="this replica's name in the leader's Lease; unset: the host's name")
    ] = None


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Wire the role and start its tasks."""
    settings = runtime.settings
    kube = await Kube.connect(
        kubeconfig=settings.kubeconfig, telemetry=runtime.telemetry, user_agent="hotnic-controller"
    )
    runtime.stack.push_async_callback(kube.close)
    plain = await connect(settings.nats_url, role=ROLE, node="_", telemetry=runtime.telemetry, log=runtime.log)
    bus = RecordingBus(plain, EventRecorder(kube, ROLE, log=runtime.log))
    runtime.stack.push_async_callback(bus.close)
    owner = Owner(
        kube,
        runtime.log,
        settings.vm_owner,
        changed=lambda: controller.look_at_all(),
        tell=runtime.readiness.set,
    )
    controller = Controller(
        kube,
        bus,
        runtime.telemetry,
        runtime.log,
        acting=owner.acts,
        enabled=lambda: hotplug_enabled(settings.hotplug_gate, owner.installations.items()),
    )
    runtime.spawn("watch kubevirt", owner.run)
    for name, reflector in (("vms", controller.vms), ("vmis", controller.vmis), ("pods", controller.pods)):
        runtime.spawn(f"watch {name}", reflector.run)
    await owner.known()
    for synced in (controller.vms.synced, controller.vmis.synced, controller.pods.synced):
        await synced.wait()
    leader = Leader(
        kube,
        kube.access.namespace,
        LEASE,
        settings.identity or socket.gethostname(),
        log=runtime.log,
        on_state=lambda ok, why: runtime.readiness.set("lease", ok, why),
    )
    runtime.spawn("lead", lambda: leader.run(controller.lead))
    runtime.readiness.set("watches", True)


def main(argv: list[str] | None = None) -> int:
    """Run the role until it is told to stop; returns the exit code."""
    return run(ROLE, Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
