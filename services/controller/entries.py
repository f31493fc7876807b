"""Write the entries of operations to a VMI while KubeVirt owns the VMs, and publish ``requested`` for new ones.

One patch per VMI and run; it fails if anybody has changed one of these entries meanwhile, and the key is planned again.
Not the decision what to write: :mod:`services.controller.plan.observing`.
Next: :mod:`services.controller.observed_stages`, which publishes what KubeVirt does then.
"""

import uuid
from contextlib import nullcontext

from schemas.kubernetes.objects import VMIS, VirtualMachineInstance
from schemas.kubernetes.operations import Operation
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import BadRequest, Conflict, Invalid, NotFound, PatchTestFailed
from services.common.reconcile import Attempt, Reject, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.tracer import use_span
from services.controller.plan.actions import Observed, StartedOperation, requested_event
from services.controller.plan.observing import EntryChanges
from services.controller.starting import request_spans


class EntryWriter:
    """Writes entries.

    :param vmis: the reader of VMIs, which must expect the versions that patches create.
    """

    def __init__(self, context: RoleContext, vmis: CachedReader[VirtualMachineInstance]) -> None:
        self._kube = context.kube
        self._bus = context.bus
        self._tracer = context.telemetry.tracer
        self._vmis = vmis

    async def write(self, changes: EntryChanges, observed: Observed, attempt: Attempt) -> None:
        """Write the changes; a new entry has a random id and starts a trace of its own.

        :raises Retry: an entry was changed by somebody else since it was observed.
        :raises Reject: the API server refuses the patch, for example through an admission policy.
        :raises KubeError: the API server does not answer, or the controller lacks a permission.
        """
        assert observed.vm is not None
        assert observed.vmi is not None
        vm, vmi = observed.vm.metadata, observed.vmi
        operations = [
            Operation(
                str(uuid.uuid4()),
                entry.kind,
                entry.interface,
                requested_at=observed.now,
                vm=vm.uid,
                network=entry.network or None,
            )
            for entry in changes.added
        ]
        with request_spans(self._tracer, operations, attempt) as requested:
            with use_span(requested[0][0]) if requested else nullcontext():
                vmi = await self._patch(changes, vmi, [operation for _, operation in requested])
            for entry, (span, operation) in zip(changes.added, requested, strict=True):
                with use_span(span):
                    started = StartedOperation(operation, entry.network)
                    await self._bus.publish(requested_event(started, operation, vmi))

    async def _patch(
        self, changes: EntryChanges, vmi: VirtualMachineInstance, operations: list[Operation]
    ) -> VirtualMachineInstance:
        meta = vmi.metadata
        try:
            vmi = await self._kube.json_patch(VMIS, meta.namespace, meta.name, changes.ops(vmi, operations))
        except (PatchTestFailed, Conflict, NotFound) as error:
            raise Retry("VirtualMachineInstanceChanged", str(error), after=0.0) from error
        except (Invalid, BadRequest) as error:
            raise Reject("EntryRefused", f"VMI {meta.namespace}/{meta.name}: {error.message}") from error
        self._vmis.record_written(vmi)
        return vmi
