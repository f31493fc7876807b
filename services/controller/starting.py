"""Wishes that get going: their trace, the patches that write them down, and ``requested``.

A wish that the API server refuses (a webhook's word, say) never holds up the others: they are then tried one by one.
"""

from contextlib import ExitStack

import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context, use_span

from schemas.kube import VMIS, VMS, VirtualMachine, VirtualMachineInstance
from schemas.operations import Operation
from services.common import faults
from services.common.bus.protocol import Bus
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import BadRequest, Conflict, Forbidden, Invalid, NotFound, PatchTestFailed
from services.common.reconcile import Attempt, Retry
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import links, parent_of, traceparent_of
from services.controller.apply import Applier
from services.controller.plan.actions import Complain, Observed, Start, Target, requested


class Starter:
    """Writes wishes down."""

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        telemetry: Telemetry,
        vms: CachedReader[VirtualMachine],
        vmis: CachedReader[VirtualMachineInstance],
        applier: Applier,
    ) -> None:
        self._kube = kube
        self._bus = bus
        self._tracer = telemetry.tracer
        self._vms = vms
        self._vmis = vmis
        self._applier = applier

    async def start(self, action: Start, seen: Observed, attempt: Attempt) -> Observed:
        """Write the wishes down and publish them; returns what is seen then.

        A wish without a trace begins one here. One that is refused is complained of, and left out of what is planned
        next; several that are refused together are planned one at a time.

        :raises Retry: an object changed in between. :raises KubeError: the API server does not answer.
        """
        try:
            return await self._start(action, seen, attempt)
        except (PatchTestFailed, Conflict, NotFound) as error:
            raise Retry("ObjectChanged", str(error), after=0.0) from error
        except (Invalid, BadRequest, Forbidden) as error:
            if len(action.wishes) > 1 and not seen.singly:
                return msgspec.structs.replace(seen, singly=True)
            names = {wish.operation.interface for wish in action.wishes}
            about = Target.VM if seen.vm is not None else Target.VMI
            message = f"interface {', '.join(sorted(names))}: the API server refuses the change: {error.message}"
            await self._applier.complain(Complain(about, error.reason, message, (*sorted(names), message)), seen)
            return msgspec.structs.replace(seen, refused=seen.refused | names)

    async def _start(self, action: Start, seen: Observed, attempt: Attempt) -> Observed:
        with ExitStack() as stack:
            spans: list[Span] = []
            contexts: list[Context] = []
            operations: list[Operation] = []
            for wish in action.wishes:
                span, context, operation = self._traced(wish.operation, attempt, contexts[:1])
                stack.callback(span.end)
                spans.append(span)
                contexts.append(context)
                operations.append(operation)
            with use_span(spans[0]):
                seen = await self._written(action, seen, operations)
            assert seen.vmi is not None
            for wish, operation, span in zip(action.wishes, operations, spans, strict=True):
                if wish.on_vmi:
                    with use_span(span):
                        await self._bus.publish(requested(wish, operation, seen.vmi))
        return seen

    def _traced(self, operation: Operation, attempt: Attempt, first: list[Context]) -> tuple[Span, Context, Operation]:
        # An operation's own trace, never that of whatever happened to ask for a look.
        parent = parent_of(operation.traceparent, attempt) or Context()
        span = self._tracer.start_span(
            f"controller request {operation.interface}",
            context=parent,
            links=links(*first),
            attributes={"hotnic.interface": operation.interface, "hotnic.operation.id": operation.id},
        )
        context = set_span_in_context(span, parent)
        if operation.traceparent is None:
            operation = msgspec.structs.replace(operation, traceparent=traceparent_of(context))
        return span, context, operation

    async def _written(self, action: Start, seen: Observed, operations: list[Operation]) -> Observed:
        if seen.vm is not None and (ops := action.vm_ops(seen.vm, operations)):
            meta = seen.vm.metadata
            with faults.step("controller.start-vm"):
                vm = await self._kube.json_patch(VMS, meta.namespace, meta.name, ops)
            self._vms.wrote(vm)
            seen = msgspec.structs.replace(seen, vm=vm)
        if seen.vmi is not None and (ops := action.vmi_ops(seen.vmi, operations)):
            meta = seen.vmi.metadata
            with faults.step("controller.start-vmi"):
                vmi = await self._kube.json_patch(VMIS, meta.namespace, meta.name, ops)
            self._vmis.wrote(vmi)
            seen = msgspec.structs.replace(seen, vmi=vmi)
        return seen
