"""Carrying out the handler's plan: wire and attach, or ask to let go and release; then report and publish.

Every step may be repeated.
Each NIC is worked on in the trace of its own operation. One that fails does not hold up the others.
Next: :mod:`services.handler.role`, which calls this.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping

import msgspec
from opentelemetry.trace import set_span_in_context

from schemas.events import ConfirmedBy
from schemas.kube import PODS, VMIS, Pod, VirtualMachineInstance
from services.common import faults
from services.common.bus.protocol import Bus
from services.common.domain.spec_patch import Op
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, NotFound, PatchTestFailed
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.errors import NetlinkFailure
from services.common.netlink.netns import Netns
from services.common.reconcile import Attempt, Retry
from services.common.telemetry import Telemetry
from services.common.telemetry.propagation import links, parent_of
from services.handler import messages
from services.handler.addresses.served import Wish
from services.handler.apply_netlink import walk
from services.handler.guest.port import CardMissing, GuestRefused
from services.handler.link_state import SetLink
from services.handler.nics import acts_here
from services.handler.pending_unplug import asked_again
from services.handler.plan import Observed, Plug
from services.handler.records import Nic
from services.handler.report import Report, report
from services.handler.sessions import Leaving, Session
from services.handler.unplug import LetGo, Release

REPORT_TRIES = 5
"""How often a report is worked out anew when others write the same VMI meanwhile."""

REMEMBERED = 4096
"""How many told failures are remembered; told again after that, which does no harm."""


class Failure(msgspec.Struct, frozen=True):
    """A NIC that was not plugged or unplugged. :ivar final: trying again will not help."""

    nic: Nic
    reason: str
    message: str
    final: bool = False


class Applier:
    """The handler's hands."""

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        events: EventRecorder,
        telemetry: Telemetry,
        vmis: CachedReader[VirtualMachineInstance],
        pods: CachedReader[Pod],
        node: str,
    ) -> None:
        self._kube = kube
        self._bus = bus
        self._events = events
        self._tracer = telemetry.tracer
        self._vmis = vmis
        self._pods = pods
        self._node = node
        self._told: set[tuple[str, str]] = set()

    async def plug(self, action: Plug, netns: Netns, pod: Pod, session: Session, attempt: Attempt) -> Pod:
        """Write the record if need be, wire the NIC, attach the card; returns the pod as it is then.

        :raises Retry: the pod changed in between. :raises KubeError: :raises NetlinkFailure:
        :raises GuestNotReachable: :raises GuestRefused: it got no further.
        """
        nic = action.nic
        parent = parent_of(nic.operation.traceparent, attempt)
        with self._tracer.start_as_current_span(
            f"handler plug {nic.name}", context=parent, attributes=_attributes(nic)
        ) as span:
            pod = await self._record(pod, action.record)
            if action.steps:
                under = self._tracer.start_as_current_span(f"netlink wire {_hash(nic)}")
                with under as wire, faults.step("handler.wire"):
                    await walk(netns, action.steps, wire)
            # At the same time: a guest asks for its address within a tenth of a second.
            attached, _ = await asyncio.gather(
                session.guest.attach(action.card, action.slot),
                self._serve_new(action, netns, session),
                return_exceptions=True,
            )
            if attached is not None:
                raise attached
            session.attached(nic.name, action.card.mac, set_span_in_context(span))
        return pod

    async def _serve_new(self, action: Plug, netns: Netns, session: Session) -> None:
        """What fails here is tried again, and told, once the card is there."""
        if action.addresses is not None:
            with contextlib.suppress(NetlinkFailure):
                await self.serve(action.addresses, netns, session)

    async def serve(self, wish: Wish, netns: Netns, session: Session) -> None:
        """Have a NIC's guest told its addresses.

        :raises NetlinkFailure: its tap cannot be listened to.
        """
        with self._tracer.start_as_current_span(f"netlink listen {wish.tap}"):
            await session.addresses.serve(wish, netns)

    async def let_go(self, action: LetGo, session: Session, attempt: Attempt, now: float) -> None:
        """Ask the guest to let go of a card. What it says to that is remembered, not raised.

        :raises GuestNotReachable: it could not be asked.
        """
        nic, leaving = action.nic, session.leaving.get(action.nic.name)
        parent = leaving.context if leaving else parent_of(nic.operation.traceparent, attempt)
        with self._tracer.start_as_current_span(
            f"handler unplug {nic.name}", context=parent, attributes=_attributes(nic)
        ) as span:
            if leaving is None:
                # Before it is asked: the answer may come first.
                leaving = session.leaving[nic.name] = Leaving(asked_again(None, now), set_span_in_context(span))
            else:
                leaving.asked = asked_again(leaving.asked, now)
            try:
                with faults.step("handler.device-del"):
                    await session.guest.detach(nic.name)
                leaving.asked = msgspec.structs.replace(leaving.asked, taken=now)
            except CardMissing:
                session.look_again(leaving.context)
            except GuestRefused as refusal:
                # Most often that the last request is pending still.
                span.set_attribute("hotnic.refusal", str(refusal))
                leaving.asked = msgspec.structs.replace(leaving.asked, why=str(refusal))

    async def set_link(self, action: SetLink, session: Session) -> None:
        """Plug or pull a card's cable.

        :raises GuestNotReachable: :raises GuestRefused: it stays as it was.
        """
        if not action.changes:
            await session.guest.set_link(action.interface, action.up)
            return
        with self._tracer.start_as_current_span(
            f"handler link {action.interface}", attributes={"hotnic.interface": action.interface}
        ):
            await session.guest.set_link(action.interface, action.up)

    async def release(self, action: Release, netns: Netns, pod: Pod, session: Session, attempt: Attempt) -> Pod:
        """Undo what stood behind a card that the domain is without; returns the pod as it is then.

        :raises Retry: the pod changed in between. :raises KubeError: :raises NetlinkFailure:
        :raises GuestNotReachable: :raises GuestRefused: it got no further.
        """
        nic, leaving = action.nic, session.leaving.get(action.nic.name)
        parent = leaving.context if leaving else parent_of(nic.operation.traceparent, attempt)
        if leaving is not None and leaving.gone >= 0:
            span = self._tracer.start_span(f"guest let go {nic.name}", context=parent, start_time=leaving.at)
            span.set_attribute("hotnic.asked", leaving.asked.times)
            span.end(leaving.gone or None)
            leaving.gone = -1
        with self._tracer.start_as_current_span(
            f"handler release {nic.name}", context=parent, attributes=_attributes(nic)
        ):
            with faults.step("handler.netdev-del"):
                await session.guest.remove_backend(nic.name)
            session.addresses.stop(nic.name)
            pod = await self._record(pod, action.record)
            if action.steps:
                under = self._tracer.start_as_current_span(f"netlink release {_hash(nic)}")
                with under as wire, faults.step("handler.unwire"):
                    await walk(netns, action.steps, wire, restoring=True)
        session.plugged.pop(nic.name, None)
        return pod

    async def _record(self, pod: Pod, ops: list[Op] | None) -> Pod:
        if ops is None:
            return pod
        meta = pod.metadata
        try:
            with faults.step("handler.record"):
                pod = await self._kube.json_patch(PODS, meta.namespace, meta.name, ops)
        except (PatchTestFailed, Conflict, NotFound) as error:
            raise Retry("PodChanged", str(error), after=0.0) from error
        self._pods.wrote(pod)
        return pod

    async def report(
        self,
        observed: Observed,
        session: Session,
        attempt: Attempt,
        *,
        released: Collection[str] = (),
        failed: Mapping[str, str] | None = None,
    ) -> VirtualMachineInstance:
        """Write what the VMI does not say yet, and publish the NICs that are confirmed or released now.

        :param released: interfaces whose wiring is undone. :param failed: those whose plug has ended, and why.
        :raises Retry: others kept writing the VMI. :raises KubeError: the patch was refused.
        """
        for _ in range(REPORT_TRIES):
            todo = report(observed, released, failed)
            if todo is None:
                return observed.vmi
            try:
                return await self._reported(todo, observed, session, attempt)
            except (PatchTestFailed, Conflict):
                meta = observed.vmi.metadata
                vmi = await self._kube.get(VMIS, meta.namespace, meta.name)
                if vmi.metadata.uid != meta.uid or not acts_here(vmi, observed.pod, self._node):
                    return vmi
                observed = msgspec.structs.replace(observed, vmi=vmi)
        raise Retry("VmiChanged", "the VMI's status kept changing while it was being written", after=0.1)

    async def _reported(
        self, todo: Report, observed: Observed, session: Session, attempt: Attempt
    ) -> VirtualMachineInstance:
        meta = observed.vmi.metadata
        parents = []
        for nic in [*(nic for nic, _ in todo.confirmed), *todo.released]:
            known = session.leaving.get(nic.name) or session.plugged.get(nic.name)
            parents.append(known.context if known else parent_of(nic.operation.traceparent, attempt))
        with self._tracer.start_as_current_span(
            f"handler report {meta.name}", context=parents[0] if parents else None, links=links(*parents[1:])
        ):
            vmi = observed.vmi
            if todo.ops:
                with faults.step("handler.patch-vmi"):
                    vmi = await self._kube.json_patch(VMIS, meta.namespace, meta.name, todo.ops)
                self._vmis.wrote(vmi)
        for (nic, confirmed_by), parent in zip(todo.confirmed, parents, strict=False):
            event = messages.attached(vmi, observed.pod, observed.sandbox_id, nic, confirmed_by, attempt.number)
            by_agent = confirmed_by is ConfirmedBy.GUEST_AGENT
            plugged = session.plugged.pop(nic.name, None) if by_agent else session.plugged.get(nic.name)
            if plugged is not None and confirmed_by is ConfirmedBy.DRIVER:
                plugged.driven = True
            with self._tracer.start_as_current_span(
                f"guest confirm {nic.name}",
                context=parent,
                start_time=plugged.at if plugged else None,
                attributes={"hotnic.interface": nic.name, "hotnic.confirmed_by": str(confirmed_by)},
            ):
                await self._bus.publish(event)
        for nic, parent in zip(todo.released, parents[len(todo.confirmed) :], strict=True):
            session.leaving.pop(nic.name, None)
            gone = messages.detached(vmi, observed.pod, observed.sandbox_id, nic, attempt.number)
            with self._tracer.start_as_current_span(
                f"handler released {nic.name}", context=parent, attributes=_attributes(nic)
            ):
                await self._bus.publish(gone)
        return vmi

    async def failed(
        self,
        failure: Failure,
        vmi: VirtualMachineInstance,
        pod: Pod,
        sandbox_id: str,
        attempt: Attempt,
        retry_after: float | None,
        times: int | None = None,
    ) -> None:
        """Tell of a NIC that was not (un)plugged.

        What is final is told once, not at every resync.

        :param retry_after: seconds; ``None`` when it is final.
        :param times: how often it was tried, where that is another count than the attempt's.
        """
        nic = failure.nic
        told = (nic.operation.id, failure.reason)
        if failure.final and told in self._told:
            return
        if len(self._told) >= REMEMBERED:
            self._told.clear()
        self._told.add(told)
        times = times or attempt.number
        event = messages.failed(vmi, pod, sandbox_id, nic, failure.reason, failure.message, times, retry_after)
        context = parent_of(nic.operation.traceparent, attempt)
        with self._tracer.start_as_current_span(f"handler failed {nic.name}", context=context) as span:
            span.set_attribute("error.type", failure.reason)
            await self._bus.publish(event)

    async def warn(self, nic: Nic, vmi: VirtualMachineInstance, reason: str, message: str) -> None:
        """Tell people of a NIC that works by a Kubernetes Event, once for each reason and operation."""
        await self._events.emit(
            about=_reference(vmi),
            type="Warning",
            reason=reason,
            message=f"interface {nic.name}: {message}",
            key=(nic.operation.id, str(messages.goal(nic)), reason),
        )


def _attributes(nic: Nic) -> dict[str, str]:
    return {"hotnic.interface": nic.name, "hotnic.operation.id": nic.operation.id}


def _hash(nic: Nic) -> str:
    return nic.names.bridge.removeprefix("k6t-")


def _reference(vmi: VirtualMachineInstance) -> dict[str, str]:
    meta = vmi.metadata
    return {
        "kind": VMIS.kind,
        "api_version": VMIS.api_version,
        "namespace": meta.namespace,
        "name": meta.name,
        "uid": meta.uid,
    }
