"""Apply the handler's actions on pods and guests: set up and attach, request the unplug, tear down, set link states.

Every action may be repeated. The work on each NIC is a span of its own operation's trace. After a device was attached
or torn down, the key is queued again at once, and the next run reports what it observes.
Next: :mod:`services.handler.pod_network.apply`, which applies netlink operations.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import set_span_in_context

from schemas.kubernetes.objects import PODS, Pod
from services.common.domain.nic import Nic
from services.common.domain.spec_patch import PatchOp
from services.common.guest.port import DeviceMissing, GuestRefused
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.errors import Conflict, NotFound, PatchTestFailed
from services.common.netlink.errors import NetlinkFailure
from services.common.netlink.netns import Netns
from services.common.reconcile import Attempt, Retry
from services.common.runtime.context import RoleContext
from services.common.telemetry.propagation import parent_of
from services.handler.plan.actions import (
    Observed,
    RequestUnplug,
    ServeAddresses,
    SetLinkState,
    SetUpAndAttach,
    TearDown,
    Unobserved,
)
from services.handler.pod_network.apply import apply_operations
from services.handler.sandboxes import Sandboxes
from services.handler.sessions import GuestSession
from services.handler.unplug import UnplugEvent


@dataclass(frozen=True, slots=True)
class Target:
    """What the actions of one run are applied to.

    :ivar observed: the state that the actions were planned from.
    :ivar session: the session of the guest.
    :ivar attempt: the attempt of the queue.
    """

    observed: Observed | Unobserved
    session: GuestSession
    attempt: Attempt

    def parent(self, nic: Nic) -> Context | None:
        """Return the parent of a span about a NIC: the span that changed its device, otherwise the cause of the run."""
        known = self.session.unplugs.get(nic.name) if nic.absent else self.session.plugged_devices.get(nic.name)
        if known is not None and known.context is not None:
            return known.context
        return parent_of(nic.operation.traceparent, self.attempt)


class Applier:
    """Applies the handler's actions to pods and guests.

    :param pods: the reader of pods, which is to expect the versions that patches create.
    """

    def __init__(
        self,
        context: RoleContext,
        pods: CachedReader[Pod],
        sandboxes: Sandboxes,
    ) -> None:
        self._kube = context.kube
        self._tracer = context.telemetry.tracer
        self._pods = pods
        self._sandboxes = sandboxes

    async def attach(self, action: SetUpAndAttach, target: Target) -> None:
        """Write the record if necessary, set up the pod network and attach the device.

        :raises Retry: the pod changed meanwhile.
        :raises KubeError: the record was not written.
        :raises CriError: the runtime has no ready sandbox of the pod.
        :raises NetlinkFailure: the pod network was not set up.
        :raises GuestNotReachable: the domain does not answer.
        :raises GuestRefused: the domain refused the device.
        """
        nic, session, pod = action.nic, target.session, target.observed.pod
        netns = await self._sandboxes.open_netns(pod)
        parent = parent_of(nic.operation.traceparent, target.attempt)
        with self._tracer.start_as_current_span(
            f"handler plug {nic.name}", context=parent, attributes=nic_attributes(nic)
        ) as span:
            # Before the first operation: taking the link down loses its routes, IPv6 addresses and MAC for good.
            await self._write_record(pod, action.record)
            if action.operations:
                with self._tracer.start_as_current_span(f"netlink setup {_hash(nic)}") as setup:
                    await apply_operations(netns, action.operations, setup)
            # In parallel: a guest sends its first DHCP request within 0.1 s of finding the device.
            attached, _ = await asyncio.gather(
                session.guest.attach(action.device, action.slot),
                self._serve_new(action, netns, session),
                # Without it, a failed attach would be raised while the address server still starts.
                return_exceptions=True,
            )
            if attached is not None:
                raise attached
            context = set_span_in_context(span)
        session.record_attached(nic.name, action.device.mac, context)
        session.requeue(context)

    async def _serve_new(self, action: SetUpAndAttach, netns: Netns, session: GuestSession) -> None:
        """Serve the addresses of a new NIC; once the device exists, a failure is retried and then reported."""
        if action.addresses is not None:
            with contextlib.suppress(NetlinkFailure), self._tracer.start_as_current_span(_listen(action.nic)):
                await session.addresses.serve(action.addresses, netns)

    async def serve(self, action: ServeAddresses, target: Target) -> None:
        """Start the address server of a NIC.

        :raises CriError: the runtime has no ready sandbox of the pod.
        :raises NetlinkFailure: no packet socket can be opened on its tap.
        """
        netns = await self._sandboxes.open_netns(target.observed.pod)
        with self._tracer.start_as_current_span(_listen(action.nic)):
            await target.session.addresses.serve(action.served, netns)

    async def request_unplug(self, action: RequestUnplug, target: Target) -> None:
        """Request that the guest give up a device. A refusal is stored in the session, not raised.

        :raises GuestNotReachable: the domain does not answer.
        """
        nic, session = action.nic, target.session
        record = session.unplugs[nic.name]
        with self._tracer.start_as_current_span(
            f"handler unplug {nic.name}", context=target.parent(nic), attributes=nic_attributes(nic)
        ) as span:
            # Recorded before the request: the domain's event may come before the request returns.
            record.advance(action.event)
            record.record_request(action.now, restart=action.event is UnplugEvent.DEVICE_BACK)
            record.context = record.context or set_span_in_context(span)
            error = ""
            try:
                await session.guest.request_unplug(nic.name)
            # The device is gone already: the next run observes that, and tears down.
            except DeviceMissing:
                session.requeue(record.context)
                return
            except GuestRefused as refusal:
                # In most cases because the last request is still pending.
                span.set_attribute("hotnic.refusal", str(refusal))
                error = str(refusal)
            record.record_response(action.now, error)

    async def set_link(self, action: SetLinkState, target: Target) -> None:
        """Set the link state of a NIC.

        :raises GuestNotReachable: the domain does not answer.
        :raises GuestRefused: the link state is unchanged.
        """
        with contextlib.ExitStack() as stack:
            # No span for an unknown state: QMP cannot query it, so it is set again after each new connection.
            if action.changes:
                attributes = {"hotnic.interface": action.interface}
                stack.enter_context(
                    self._tracer.start_as_current_span(f"handler link {action.interface}", attributes=attributes)
                )
            await target.session.guest.set_link(action.interface, action.up)
        target.session.requeue(None)

    async def tear_down(self, action: TearDown, target: Target) -> None:
        """Remove the backend of a device that is gone and tear down the pod network.

        :raises Retry: the pod changed meanwhile.
        :raises KubeError: the record was not written.
        :raises CriError: the runtime has no ready sandbox of the pod.
        :raises NetlinkFailure: the pod network was not torn down.
        :raises GuestNotReachable: the domain does not answer.
        :raises GuestRefused: the domain did not remove the backend.
        """
        nic, session, pod = action.nic, target.session, target.observed.pod
        record = session.unplugs[nic.name]
        record.advance(UnplugEvent.DEVICE_ABSENT)
        netns = await self._sandboxes.open_netns(pod)
        record.context = target.parent(nic)
        requests = record.unplug.requests
        if requests is not None and record.deleted_at >= 0:
            span = self._tracer.start_span(
                f"guest unplug {nic.name}", context=record.context, start_time=record.requested_at
            )
            span.set_attribute("hotnic.asked", requests.count)
            span.end(record.deleted_at or None)
            # A teardown that is repeated must not write the span a second time.
            record.deleted_at = -1
        with self._tracer.start_as_current_span(
            f"handler teardown {nic.name}", context=record.context, attributes=nic_attributes(nic)
        ):
            # Before its tap is deleted: QEMU does not remove the backend with the device.
            await session.guest.remove_backend(nic.name)
            # Its packet socket would keep the pod's network namespace alive.
            session.addresses.stop(nic.name)
            await self._write_record(pod, action.record)
            if action.operations:
                with self._tracer.start_as_current_span(f"netlink teardown {_hash(nic)}") as teardown:
                    await apply_operations(netns, action.operations, teardown, restoring=True)
        session.plugged_devices.pop(nic.name, None)
        record.advance(UnplugEvent.POD_NETWORK_ABSENT)
        session.requeue(record.context)

    async def _write_record(self, pod: Pod, ops: list[PatchOp] | None) -> None:
        if ops is None:
            return
        meta = pod.metadata
        try:
            # Through the status: the right to patch whole pods includes their images.
            written = await self._kube.json_patch(PODS, meta.namespace, meta.name, ops, subresource="status")
        except (PatchTestFailed, Conflict, NotFound) as error:
            raise Retry("PodChanged", str(error), after=0.0) from error
        # ADR 7: no later run may plan with a cached pod that lacks the record.
        self._pods.record_written(written)


def nic_attributes(nic: Nic) -> dict[str, str]:
    """Return the span attributes of a NIC."""
    return {"hotnic.interface": nic.name, "hotnic.operation.id": nic.operation.id}


def _hash(nic: Nic) -> str:
    return nic.names.bridge.removeprefix("k6t-")


def _listen(nic: Nic) -> str:
    return f"netlink listen {nic.names.tap}"
