"""Apply the controller's plan: guarded patches, then bus events, each in the trace of its operation.

A guard that fails means that the object has changed since it was observed; the key is then reconciled again at once.
Next: :mod:`services.controller.starting`, which starts operations.
"""

from typing import Any

from schemas.kubernetes.objects import (
    PODS,
    VMIS,
    VMS,
    ObjectMeta,
    Pod,
    Resource,
    VirtualMachine,
    VirtualMachineInstance,
)
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import Conflict, NotFound, PatchTestFailed
from services.common.kube.event_recorder import EventRecorder
from services.common.reconcile import Attempt, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import links, parent_of
from services.controller.observe import Readers
from services.controller.plan.actions import Observed, PatchObject, PatchTarget, WarnUser, pod_annotated_event

RESOURCES: dict[PatchTarget, Resource[Any]] = {PatchTarget.VM: VMS, PatchTarget.VMI: VMIS, PatchTarget.POD: PODS}


class Applier:
    """Applies patches and records warnings.

    It needs no lock: the queue never runs one VM's key twice at the same time.

    :param readers: the readers of objects, which must expect the versions that patches create.
    """

    def __init__(self, context: RoleContext, readers: Readers) -> None:
        self._kube = context.kube
        self._bus = context.bus
        self._events = context.events
        self._tracer = context.telemetry.tracer
        self._readers: dict[PatchTarget, CachedReader[Any]] = {
            PatchTarget.VM: readers.vms,
            PatchTarget.VMI: readers.vmis,
            PatchTarget.POD: readers.pods,
        }

    async def patch(self, action: PatchObject, observed: Observed, attempt: Attempt) -> None:
        """Patch an object, then publish ``pod-annotated`` for each attachment that the pod gains.

        One patch may serve several operations: its span is in the trace of the first and links the others.

        :raises Retry: the object has changed since it was observed.
        :raises KubeError: the API server refuses the patch.
        """
        target = _target_object(action.target, observed)
        assert target is not None
        meta = target.metadata
        parents = [parent_of(operation.traceparent, attempt) for operation in action.operations]
        with self._tracer.start_as_current_span(
            f"controller {action.verb} {meta.name}",
            context=parents[0] if parents else None,
            links=links(*parents[1:]),
            attributes={"hotnic.interfaces": [operation.interface for operation in action.operations]},
        ):
            resource = RESOURCES[action.target]
            # Pods as a whole, not through the status: webhooks such as that of KubeVirt's ipam-extensions complete the
            # elements of the networks annotation, and they see updates of pods only.
            try:
                patched = await self._kube.json_patch(resource, meta.namespace, meta.name, action.ops)
            except (PatchTestFailed, Conflict, NotFound) as error:
                raise Retry(f"{resource.kind}Changed", str(error), after=0.0) from error
            # The next run must not plan on a cache that is older than this patch (ADR 7).
            self._readers[action.target].record_written(patched)
            if not action.added_attachments:
                return
            assert observed.vmi is not None
            await self._bus.publish(
                pod_annotated_event(action.added_attachments[0], observed.vmi, patched, attempt.number)
            )
        # The first event is published inside the span of the patch; every further one needs a span in the trace of its
        # own operation.
        for added in action.added_attachments[1:]:
            with self._tracer.start_as_current_span(
                f"controller {action.verb} {meta.name}",
                context=parent_of(added.operation.traceparent, attempt),
                links=links(parents[0]),
            ):
                await self._bus.publish(pod_annotated_event(added, observed.vmi, patched, attempt.number))

    async def warn(self, action: WarnUser, observed: Observed) -> None:
        """Record a Warning Event, once for each key; never raises."""
        target = _target_object(action.target, observed)
        if target is not None:
            await record_warning(self._events, action, target.metadata)


async def record_warning(events: EventRecorder, action: WarnUser, meta: ObjectMeta) -> bool:
    """Record a Warning Event, once for each key; never raises.

    :param meta: metadata of the object that it is about.
    :return: whether the Event exists now.
    """
    resource = RESOURCES[action.target]
    about = {
        "kind": resource.kind,
        "api_version": resource.api_version,
        "namespace": meta.namespace,
        "name": meta.name,
        "uid": meta.uid,
    }
    return await events.record(
        about=about, type="Warning", reason=action.reason, message=action.message, key=(meta.uid, *action.key)
    )


def _target_object(target: PatchTarget, observed: Observed) -> VirtualMachine | VirtualMachineInstance | Pod | None:
    return {PatchTarget.VM: observed.vm, PatchTarget.VMI: observed.vmi, PatchTarget.POD: observed.pod}[target]
