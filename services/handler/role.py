"""The handler's sources and its loop: hints of its node, watches of VMIs and launcher pods, guests' news, the resync.

A key is ``(namespace, VMI name)``. Next: :mod:`services.handler.observe`.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec
from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from schemas.encoding import node_consumer, node_filter
from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, Pod, VirtualMachineInstance
from schemas.stages import OperationKind, Stage
from services.common.bus.protocol import Bus, Received
from services.common.cri.client import Cri
from services.common.cri.errors import CriError
from services.common.domain.operations import vmi_name_of
from services.common.domain.status_interfaces import DOMAIN, entry_of, tokens
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, Unavailable
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.reflector import Reflector
from services.common.logs import Log
from services.common.netlink.errors import NetlinkFailure, NetnsGone
from services.common.netlink.pool import NetnsPool
from services.common.reconcile import FIRST_BACKOFF, MAX_BACKOFF, Attempt, Reconciler, Reject, Retry
from services.common.telemetry import Telemetry
from services.handler.apply import Applier, Failure
from services.handler.guest.drivers import Drive
from services.handler.guest.port import GuestNotReachable
from services.handler.link_state import link_changes
from services.handler.nics import acts_here, attached_nics, leaving_nics, macs
from services.handler.observe import Observer
from services.handler.plan import Observed, plug
from services.handler.sessions import Key, Sessions
from services.handler.unplug import unplug
from services.handler.work import Work, reason_of

ROLE = "handler"
_FINAL_PHASES = {"Succeeded", "Failed"}


class Handler:
    """One node's handler: its caches, its queue and what it does with a key.

    :param acting: whether hotnic drives the NICs of this cluster's VMs now; if not, no guest is even asked.
    """

    def __init__(
        self,
        kube: Kube,
        bus: Bus,
        cri: Cri,
        netns: NetnsPool,
        telemetry: Telemetry,
        log: Log,
        *,
        node: str,
        drive: Drive,
        tap_owner: int,
        acting: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._node = node
        self._tracer = telemetry.tracer
        self._log = log
        self._acting = acting
        self._acted: bool | None = None
        self.vmis: Reflector[VirtualMachineInstance] = Reflector(kube, VMIS, on_change=self._vmi_changed, log=log)
        self.pods: Reflector[Pod] = Reflector(
            kube,
            PODS,
            labels=CREATED_BY_LABEL,
            fields=f"spec.nodeName={node}",
            on_change=self._pod_changed,
            log=log,
        )
        self._fresh_vmis = CachedReader(kube, VMIS, self.vmis)
        self._fresh_pods = CachedReader(kube, PODS, self.pods)
        self.sessions = Sessions(drive, log, self._look_again)
        self._observer = Observer(kube, self._fresh_vmis, self._fresh_pods, cri, netns, tap_owner=tap_owner)
        events = EventRecorder(kube, ROLE, log=log, node=node)
        self._apply = Applier(kube, bus, events, telemetry, self._fresh_vmis, self._fresh_pods, node)
        self.queue: Reconciler[Key] = Reconciler(ROLE, self.reconcile, log=log, meter=telemetry.meter, keys=self._keys)

    async def listen(self) -> None:
        """Take this node's hints from the bus until cancelled."""
        await self._bus.consume(
            consumer=node_consumer(ROLE, self._node), filters=[node_filter(self._node)], handler=self._heard
        )

    def _heard(self, received: Received) -> None:
        event = received.event
        unplug = event.stage is Stage.REQUESTED and event.operation.kind is OperationKind.UNPLUG
        # The other stages of the node change nothing that the handler acts on.
        if event.vmi is None or not (unplug or event.stage is Stage.MULTUS_ATTACHED):
            return
        self._fresh_vmis.expect(event.vmi.namespace, event.vmi.name, event.changed)
        if event.pod is not None:
            self._fresh_pods.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add((event.vmi.namespace, event.vmi.name), source="bus", context=received.context)

    def _vmi_changed(self, key: Key, vmi: VirtualMachineInstance | None) -> None:
        # One that has left this node is looked at once more, to be let go.
        if vmi is None or vmi.status.node_name == self._node or self.sessions.has(key):
            self.queue.add(key, source="watch")

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        name = vmi_name_of(pod) if pod is not None else None
        if name is not None:
            self.queue.add((key[0], name), source="watch")

    def _look_again(self, key: Key, context: Context | None) -> None:
        self.queue.add(key, source="watch", context=context)

    def look_at_all(self) -> None:
        """Look at every VMI of the node: who owns them may have changed."""
        for key in self._keys():
            self.queue.add(key, source="watch")

    def _acts(self) -> bool:
        """Whether the guests are ours: two must never drive one NIC."""
        acting = self._acting()
        if acting is not self._acted:
            self._acted = acting
            if not acting:
                self._log.warning("KubeVirt owns the VMs of this cluster: no guest is touched (HOTNIC_VM_OWNER)")
        return acting

    def _mine(self) -> list[VirtualMachineInstance]:
        return [vmi for vmi in self.vmis.items() if vmi.status.node_name == self._node]

    def _keys(self) -> Iterable[Key]:
        return [(vmi.metadata.namespace, vmi.metadata.name) for vmi in self._mine()]

    async def reconcile(self, key: Key, attempt: Attempt) -> None:
        """Look at one VMI and do what is to be done.

        :raises Retry: it could not all be done yet. :raises Reject: it cannot be done as asked.
        """
        namespace, name = key
        started = time.time_ns()
        with _outcomes(), _under(attempt):
            if not self._acts():
                await self.sessions.retain(())
                return
            vmi, pod = await self._observer.objects(namespace, name, self.pods.items())
            if vmi is None or pod is None or not acts_here(vmi, pod, self._node):
                await self._forget_the_gone()
                return
            session = self.sessions.of(vmi.metadata.uid, key, pod.metadata.uid)
            if any(cause.source == "resync" for cause in attempt.causes):
                session.agent.ask()
            try:
                observed = await self._observer.look(vmi, pod, session)
            except (GuestNotReachable, CriError, NetlinkFailure) as error:
                if isinstance(error, NetnsGone):
                    self._observer.forget(pod)
                await self._give_up_for_now(vmi, pod, error, attempt)
            session.listen()
            leaving, coming = unplug(observed), plug(observed)
            if (leaving or coming) and get_current_span().get_span_context().is_valid:
                # Only known now to be more than an idle look.
                self._tracer.start_span("handler look", start_time=started).end()
            work = Work(self._apply, self._observer, session, observed, attempt)
            await work.unplug(leaving)
            if work.released:
                observed = msgspec.structs.replace(observed, agent=session.agent.nics)
                vmi = await self._apply.report(observed, session, attempt, released=work.released)
                observed = msgspec.structs.replace(observed, vmi=vmi)
            await work.plug(coming)
            await work.serve()
            after = backoff(attempt.number)
            await self._tell(work.failures, observed, attempt, after)
            if work.reachable:
                await work.link(link_changes(vmi, observed.guest))
                guest = await session.guest.list() if work.changed else observed.guest
                observed = msgspec.structs.replace(observed, guest=guest, agent=session.agent.nics)
                session.agent.expect(macs(attached_nics(vmi, pod), guest))
                await self._apply.report(observed, session, attempt, failed=work.ended())
            _outcome(work.failures, after)
            if work.unlinked:
                raise Retry("LinkStateRefused", "; ".join(f"{n}: {why}" for n, why in work.unlinked.items()))

    async def _give_up_for_now(self, vmi: VirtualMachineInstance, pod: Pod, error: Exception, attempt: Attempt) -> None:
        """Nothing could be seen: every NIC that may be waiting has failed."""
        waiting = [
            nic
            for nic in attached_nics(vmi, pod)
            if DOMAIN not in tokens(entry_of(vmi.status.interfaces, nic.name) or {})
        ]
        waiting += [nic for nic in leaving_nics(vmi, pod) if nic.operation.released != pod.metadata.uid]
        reason, after = reason_of(error, OperationKind.PLUG), backoff(attempt.number)
        for nic in waiting:
            await self._apply.failed(Failure(nic, reason, str(error)), vmi, pod, "", attempt, after)
        raise Retry(reason, str(error), after=after) from error

    async def _tell(self, failures: list[Failure], observed: Observed, attempt: Attempt, after: float) -> None:
        """Before the report: what has ended for good is not met again after that."""
        vmi, pod, sandbox_id = observed.vmi, observed.pod, observed.sandbox_id
        for failure in failures:
            await self._apply.failed(failure, vmi, pod, sandbox_id, attempt, None if failure.final else after)

    async def _forget_the_gone(self) -> None:
        running = {vmi.metadata.uid for vmi in self._mine() if vmi.status.phase not in _FINAL_PHASES}
        await self.sessions.retain(running)
        self._observer.retain(pod.metadata.uid for pod in self.pods.items())


def backoff(attempt: int) -> float:
    """Seconds until the next attempt, known here because the event of a failure tells it."""
    step: float = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(attempt - 1, 30))
    return round(max(FIRST_BACKOFF, step * random.uniform(0.5, 1.0)), 3)


def _outcome(failures: list[Failure], after: float) -> None:
    passing = [failure for failure in failures if not failure.final]
    if passing:
        raise Retry(passing[0].reason, passing[0].message, after=after)
    if failures:
        raise Reject(failures[0].reason, failures[0].message)


@contextmanager
def _outcomes() -> Iterator[None]:
    """What the outside failed with, as an outcome that the queue understands."""
    try:
        yield
    except Unavailable as error:
        raise Retry("KubernetesUnavailable", str(error), after=error.retry_after) from error
    except KubeError as error:
        raise Retry(error.reason, str(error)) from error
    except GuestNotReachable as error:
        raise Retry("GuestNotReachable", str(error)) from error


@contextmanager
def _under(attempt: Attempt) -> Iterator[None]:
    """Spans of the look belong to what asked for it, where that has a trace."""
    context = next((cause.context for cause in reversed(attempt.causes) if cause.context is not None), None)
    token = otel.attach(context) if context is not None else None
    try:
        yield
    finally:
        if token is not None:
            otel.detach(token)
