"""Start operations: create their traces, write them to the VM and the VMI, and publish ``requested``.

An operation that the API server refuses, for example through a webhook, does not block the others: they are then
started one at a time. Not the decision which operations start: :mod:`services.controller.plan.operations`.
Next: :mod:`services.controller.projector`.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer, set_span_in_context

from schemas.kubernetes.objects import VMIS, VMS
from schemas.kubernetes.operations import Operation
from services.common.domain.spec_patch import template_spec_holder
from services.common.kube.denials import is_missing_permission
from services.common.kube.errors import BadRequest, Conflict, Forbidden, Invalid, NotFound, PatchTestFailed
from services.common.reconcile import Attempt, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import links, parent_of, traceparent_of
from services.common.telemetry.tracer import use_span
from services.controller.apply import Applier
from services.controller.observe import Readers, with_vm, with_vmi
from services.controller.plan.actions import Observed, PatchTarget, StartOperations, WarnUser, requested_event


@contextmanager
def request_spans(
    tracer: Tracer, operations: Iterable[Operation], attempt: Attempt
) -> Iterator[list[tuple[Span, Operation]]]:
    """Have a span for the request of each operation while the block runs; all others link the first one.

    An operation without a trace gets one, which its span starts.
    """
    requested: list[tuple[Span, Operation]] = []
    first: list[Context] = []
    with ExitStack() as stack:
        for operation in operations:
            # Without a traceparent the operation starts its own trace: the empty context keeps the span out of the
            # trace of the message that triggered this run, which may belong to another operation.
            parent = parent_of(operation.traceparent, attempt) or Context()
            span = tracer.start_span(
                f"controller request {operation.interface}",
                context=parent,
                links=links(*first),
                attributes={"hotnic.interface": operation.interface, "hotnic.operation.id": operation.id},
            )
            stack.callback(span.end)
            context = set_span_in_context(span, parent)
            first = first or [context]
            if operation.traceparent is None:
                operation = msgspec.structs.replace(operation, traceparent=traceparent_of(context))
            requested.append((span, operation))
        yield requested


class Starter:
    """Starts operations.

    :param readers: the readers of objects, which must expect the versions that patches create.
    :param applier: records the warnings about refused operations.
    """

    def __init__(self, context: RoleContext, readers: Readers, applier: Applier) -> None:
        self._kube = context.kube
        self._bus = context.bus
        self._tracer = context.telemetry.tracer
        self._readers = readers
        self._applier = applier

    async def start(self, action: StartOperations, observed: Observed, attempt: Attempt) -> Observed:
        """Write and publish the operations of an action; an operation without a trace starts one.

        When the API server refuses several operations together, they are not written, and the next plan starts one at
        a time. When it refuses a single one, a warning is recorded, and the next plan leaves that operation out.

        :return: the observation to plan with next: the objects as patched, or the same ones and what was refused.
        :raises Retry: an object has changed since it was observed.
        :raises KubeError: the API server does not answer, or the controller lacks a permission.
        """
        try:
            return await self._start(action, observed, attempt)
        except (PatchTestFailed, Conflict, NotFound) as error:
            raise Retry("ObjectChanged", str(error), after=0.0) from error
        except (Invalid, BadRequest, Forbidden) as error:
            if is_missing_permission(error):
                # Not about the request: the controller's permission is missing, or the API server has just started and
                # its RBAC caches are not filled. The queue retries.
                raise
            # The error does not name the interface that is refused, so each has to be tried on its own.
            if len(action.started) > 1 and not observed.one_at_a_time:
                return msgspec.structs.replace(observed, one_at_a_time=True)
            names = {started.operation.interface for started in action.started}
            target = PatchTarget.VM if observed.vm is not None else PatchTarget.VMI
            message = f"cannot change interface {', '.join(sorted(names))}: the API server refuses: {error.message}"
            await self._applier.warn(WarnUser(target, error.reason, message, (*sorted(names), message)), observed)
            return msgspec.structs.replace(observed, refused_interfaces=observed.refused_interfaces | names)

    async def _start(self, action: StartOperations, observed: Observed, attempt: Attempt) -> Observed:
        operations = [started.operation for started in action.started]
        with request_spans(self._tracer, operations, attempt) as requested:
            # One patch writes all operations. Its span is in the trace of the first one, which the others link.
            with use_span(requested[0][0]):
                observed = await self._patch_objects(action, observed, [operation for _, operation in requested])
            assert observed.vmi is not None
            for started, (span, operation) in zip(action.started, requested, strict=True):
                if started.on_vmi:
                    with use_span(span):
                        await self._bus.publish(requested_event(started, operation, observed.vmi))
        return observed

    async def _patch_objects(
        self, action: StartOperations, observed: Observed, operations: list[Operation]
    ) -> Observed:
        if observed.vm is not None and (ops := action.vm_ops(observed.vm, operations)):
            meta = observed.vm.metadata
            expected = action.vm or template_spec_holder(observed.vm).lists
            vm = await self._kube.json_patch(VMS, meta.namespace, meta.name, ops)
            self._readers.vms.record_written(vm)
            observed = with_vm(observed, vm)
            if template_spec_holder(vm).lists != expected:
                # Such as a MAC, which the VMI has to get, too; the operations are on the VM now, and go on.
                raise Retry("VmChanged", "a webhook has changed the interfaces of the VM's template", after=0.0)
        if observed.vmi is not None and (ops := action.vmi_ops(observed.vmi, operations)):
            meta = observed.vmi.metadata
            vmi = await self._kube.json_patch(VMIS, meta.namespace, meta.name, ops)
            self._readers.vmis.record_written(vmi)
            observed = with_vmi(observed, vmi)
        return observed
