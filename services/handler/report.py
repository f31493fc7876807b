"""Report what a run observed: write the VMI's status, then publish and record events. Nothing is decided here.

The events of one operation are spans of its own trace.
Next: :mod:`services.handler.plan.messages`, which builds the events.
"""

import msgspec

from schemas.kubernetes.objects import VMIS, VirtualMachineInstance
from services.common.domain.nic import Nic
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import Conflict, PatchTestFailed
from services.common.reconcile import Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import links, parent_of
from services.common.telemetry.stores import Bounded
from services.handler.apply import Target, nic_attributes
from services.handler.observe import parse
from services.handler.plan import messages
from services.handler.plan.actions import Observed, PublishFailure, RecordDeclined, ReportStatus, WarnOverdue
from services.handler.plan.nics import is_eligible
from services.handler.plan.report import plan_report
from services.handler.unplug import UnplugEvent

MAX_REPORT_ATTEMPTS = 5
"""How often a report is planned again when others write the same VMI meanwhile."""

MAX_REPORTED_FAILURES = 4096
"""How many reported failures are remembered. Beyond that a failure may be reported again, which does no harm."""

DECLINED = "AddressDeclined"


class StatusReporter:
    """Writes VMIs, publishes events, and records Kubernetes Events that no published event leads to.

    :param vmis: the reader of VMIs, which is to expect the versions that patches create.
    """

    def __init__(self, context: RoleContext, vmis: CachedReader[VirtualMachineInstance]) -> None:
        self._kube = context.kube
        self._bus = context.bus
        self._events = context.events
        self._tracer = context.telemetry.tracer
        self._node = context.node
        self._vmis = vmis
        self._reported: Bounded[tuple[str, str], None] = Bounded("reported-failures", MAX_REPORTED_FAILURES)

    async def report(self, action: ReportStatus, target: Target) -> None:
        """Write to the VMI what is new, and publish the NICs that are confirmed or released now.

        What the guest causes, such as a device that comes and goes, is written at a pace. The end of an operation is
        not: there is one for each.

        :raises Retry: others kept writing the VMI.
        :raises KubeError: the patch was refused.
        """
        observed = target.observed
        assert isinstance(observed, Observed), "a report is planned only of what was observed"
        if not (action.released or action.outcome.failed) and not target.session.reports.admit():
            return
        planned: ReportStatus | None = action
        for _ in range(MAX_REPORT_ATTEMPTS):
            if planned is None:
                return
            try:
                await self._write_report(planned, observed, target)
                return
            except (PatchTestFailed, Conflict):
                meta = observed.vmi.metadata
                # Only the VMI: the patch tests nothing else. A migration may have begun meanwhile.
                vmi = await self._kube.get(VMIS, meta.namespace, meta.name)
                if vmi.metadata.uid != meta.uid or not is_eligible(vmi, observed.pod, self._node):
                    return
                observed = msgspec.structs.replace(observed, nics=parse(vmi, observed.pod))
                planned = plan_report(observed, action.outcome)
        raise Retry("VmiChanged", "the VMI's status kept changing while it was being written", after=0.1)

    async def _write_report(self, action: ReportStatus, observed: Observed, target: Target) -> None:
        meta, vmi = observed.vmi.metadata, observed.vmi
        parents = [target.parent(nic) for nic in (*(nic for nic, _ in action.confirmed), *action.released)]
        with self._tracer.start_as_current_span(
            f"handler report {meta.name}", context=parents[0] if parents else None, links=links(*parents[1:])
        ):
            if action.ops:
                vmi = await self._kube.json_patch(VMIS, meta.namespace, meta.name, action.ops)
                self._vmis.record_written(vmi)
        # Recorded before anything is published: publishing waits when the bus does not answer.
        for nic in action.released:
            target.session.unplugs[nic.name].advance(UnplugEvent.RELEASE_RECORDED)
        pod, sandbox_id, attempt = observed.pod, observed.sandbox_id, target.attempt.number
        # The parents of the released NICs follow those of the confirmed ones.
        for (nic, confirmed_by), parent in zip(action.confirmed, parents, strict=False):
            plugged = target.session.record_confirmed(nic.name, confirmed_by)
            with self._tracer.start_as_current_span(
                f"guest confirm {nic.name}",
                context=parent,
                start_time=plugged.attached_at if plugged else None,
                attributes={"hotnic.interface": nic.name, "hotnic.confirmed_by": str(confirmed_by)},
            ):
                await self._bus.publish(messages.guest_attached(vmi, pod, sandbox_id, nic, confirmed_by, attempt))
        for nic, parent in zip(action.released, parents[len(action.confirmed) :], strict=True):
            with self._tracer.start_as_current_span(
                f"handler released {nic.name}", context=parent, attributes=nic_attributes(nic)
            ):
                await self._bus.publish(messages.guest_detached(vmi, pod, sandbox_id, nic, attempt))

    async def publish_failure(self, failure: PublishFailure, target: Target) -> None:
        """Publish a NIC that was not plugged or unplugged. A final failure is published once, not at every resync."""
        key = (failure.nic.operation.id, failure.reason)
        if failure.final and key in self._reported:
            return
        self._reported[key] = None
        retry_after = None if failure.final else target.attempt.backoff
        await self._publish_failed(
            failure.nic, failure.reason, failure.message, target.attempt.number, retry_after, target
        )

    async def warn_overdue(self, action: WarnOverdue, target: Target) -> None:
        """Publish a pending unplug that is overdue."""
        record = target.session.unplugs[action.nic.name]
        record.advance(action.event)
        record.record_warning()
        await self._publish_failed(
            action.nic, "UnplugTimeout", action.message, action.count, action.retry_after, target
        )

    async def _publish_failed(
        self, nic: Nic, reason: str, message: str, count: int, retry_after: float | None, target: Target
    ) -> None:
        observed, parent = target.observed, parent_of(nic.operation.traceparent, target.attempt)
        sandbox_id = observed.sandbox_id if isinstance(observed, Observed) else ""
        event = messages.attempt_failed(
            observed.vmi, observed.pod, sandbox_id, nic, reason, message, count, retry_after
        )
        with self._tracer.start_as_current_span(f"handler failed {nic.name}", context=parent) as span:
            span.set_attribute("error.type", reason)
            await self._bus.publish(event)

    async def record_declined(self, action: RecordDeclined, target: Target) -> None:
        """Record a Kubernetes Event: a guest declined its address. Once for each operation."""
        nic, meta = action.nic, target.observed.vmi.metadata
        target.session.addresses.declined.discard(nic.name)
        await self._events.record(
            about={
                "kind": VMIS.kind,
                "api_version": VMIS.api_version,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
            },
            type="Warning",
            reason=DECLINED,
            message=f"interface {nic.name}: the guest declined its address: another host uses it",
            key=(nic.operation.id, str(messages.target_stage(nic)), DECLINED),
        )
