"""``hotnic run controller``: settings and assembly of the controller role. Next: :mod:`services.controller.role`."""

import socket
import sys
from typing import Annotated

import msgspec

from services.common.domain.kubevirt.owner import is_hotplug_enabled
from services.common.kube.leader import Leader
from services.common.runtime.context import open_context
from services.common.runtime.garbage import collect_garbage
from services.common.runtime.installations import OwnerSettings
from services.common.runtime.owner import VmOwner
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.runtime.process import main as run
from services.controller.resting import MEAN_REST
from services.controller.role import PERIODS, Controller

ROLE = "controller"
LEASE = "hotnic-controller"
"""The Lease that elects one of several controllers; in the namespace of the kubeconfig or of the pod."""


class Settings(OwnerSettings, frozen=True, kw_only=True):
    """Settings of the controller."""

    identity: Annotated[
        str | None, msgspec.Meta(description="name of this replica in the leader's Lease; unset: the host's name")
    ] = None
    rest_seconds: Annotated[
        float,
        msgspec.Meta(
            description="seconds, on average, after which a VM that is at rest is reconciled although nothing has "
            "changed: half as many at least, and half as many again at most",
            ge=1,
        ),
    ] = MEAN_REST


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Assemble the role and start its tasks."""
    settings = runtime.settings
    context = await open_context(runtime)
    kube = context.kube
    owner = VmOwner(
        kube,
        runtime.log,
        settings.vm_owner,
        # A lambda, because the controller is created after its owner check.
        on_change=lambda: controller.requeue_all(),
        on_condition=runtime.readiness.set,
        denials=context.denials,
        namespaces=settings.kubevirt_namespaces,
    )
    controller = Controller(
        context,
        is_owner=owner.is_hotnic,
        is_enabled=lambda: is_hotplug_enabled(settings.hotplug_gate, owner.installations.items()),
        beside=owner.beside,
        periods=msgspec.structs.replace(PERIODS, rest=settings.rest_seconds),
    )
    # Before the lists, whose objects no pass then looks at again.
    runtime.spawn("collect garbage", collect_garbage)
    runtime.spawn("watch kubevirt", owner.run)
    for name, reflector in (("vms", controller.vms), ("vmis", controller.vmis), ("pods", controller.pods)):
        runtime.spawn(f"watch {name}", reflector.run)
    # Leading starts with filled caches, so that the first reconciles do not take objects for deleted.
    await owner.wait_synced()
    for synced in (controller.vms.synced, controller.vmis.synced, controller.pods.synced):
        await synced.wait()
    leader = Leader(
        kube,
        kube.access.namespace,
        LEASE,
        # In a cluster this is the pod's name: a restarted container finds its own Lease (ADR 27).
        settings.identity or socket.gethostname(),
        log=runtime.log,
        on_state=lambda ok, why: runtime.readiness.set("lease", ok, why),
    )
    runtime.spawn("lead", lambda: leader.run(controller.lead))
    runtime.readiness.set("watches", True)


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the role until it receives a signal to stop; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
