"""Carrying out the controller's plan: guarded patches, then events, each in the trace of its operation.

A guard that fails means the object has changed since it was looked at: the key is looked at again at once.
Next: :mod:`services.controller.starting`, for wishes that get going.
"""

from typing import Any

from schemas.kube import PODS, VMIS, VMS, Pod, Resource, VirtualMachine, VirtualMachineInstance
from services.common import faults
from services.common.bus.protocol import Bus
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, NotFound, PatchTestFailed
from services.common.kube.event_recorder import EventRecorder
from services.common.reconcile import Attempt, Retry
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import links, parent_of
from services.controller.plan.actions import Complain, Observed, Patch, Target, pod_annotated

RESOURCES: dict[Target, Resource[Any]] = {Target.VM: VMS, Target.VMI: VMIS, Target.POD: PODS}


class Applier:
    """Applies actions for one VM at a time (the queue sees to the order)."""

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        events: EventRecorder,
        telemetry: Telemetry,
        vms: CachedReader[VirtualMachine],
        vmis: CachedReader[VirtualMachineInstance],
        pods: CachedReader[Pod],
    ) -> None:
        self._kube = kube
        self._bus = bus
        self._events = events
        self._tracer = telemetry.tracer
        self._fresh: dict[Target, CachedReader[Any]] = {Target.VM: vms, Target.VMI: vmis, Target.POD: pods}

    async def patch(self, action: Patch, seen: Observed, attempt: Attempt) -> None:
        """Patch an object and publish what the pod gained.

        One patch serves every operation in it: it is a span of the first one's trace, linked to the others'.

        :raises Retry: the object changed in between. :raises KubeError: the patch was refused.
        """
        found = _object(action.target, seen)
        assert found is not None
        meta = found.metadata
        parents = [parent_of(operation.traceparent, attempt) for operation in action.operations]
        with self._tracer.start_as_current_span(
            f"controller {action.verb} {meta.name}",
            context=parents[0] if parents else None,
            links=links(*parents[1:]),
            attributes={"hotnic.interfaces": [operation.interface for operation in action.operations]},
        ):
            resource = RESOURCES[action.target]
            try:
                with faults.step(f"controller.patch-{action.target}"):
                    patched = await self._kube.json_patch(resource, meta.namespace, meta.name, action.ops)
            except (PatchTestFailed, Conflict, NotFound) as error:
                raise Retry(f"{resource.kind}Changed", str(error), after=0.0) from error
            self._fresh[action.target].wrote(patched)
            if not action.gained:
                return
            assert seen.vmi is not None
            await self._bus.publish(pod_annotated(action.gained[0], seen.vmi, patched, attempt.number))
        for gained in action.gained[1:]:
            with self._tracer.start_as_current_span(
                f"controller {action.verb} {meta.name}",
                context=parent_of(gained.operation.traceparent, attempt),
                links=links(parents[0]),
            ):
                await self._bus.publish(pod_annotated(gained, seen.vmi, patched, attempt.number))

    async def complain(self, action: Complain, seen: Observed) -> None:
        """Say in a Kubernetes Event what is not done, once; never raises."""
        found = _object(action.about, seen)
        if found is None:
            return
        resource, meta = RESOURCES[action.about], found.metadata
        about = {
            "kind": resource.kind,
            "api_version": resource.api_version,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        }
        await self._events.emit(
            about=about, type="Warning", reason=action.reason, message=action.message, key=(meta.uid, *action.key)
        )


def _object(target: Target, seen: Observed) -> VirtualMachine | VirtualMachineInstance | Pod | None:
    return {Target.VM: seen.vm, Target.VMI: seen.vmi, Target.POD: seen.pod}[target]
