"""The handler's sources and reconcile loop: bus events, watches of VMIs and launcher pods, guest events, the resync.

A key is ``(namespace, VMI name)``. Next: :mod:`services.handler.observe`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from schemas.bus.encoding import node_consumer, node_filter
from schemas.kubernetes.kubevirt import NODE_LABEL, TARGET_NODE_LABEL
from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, Pod, VirtualMachineInstance
from schemas.stages import OperationKind, Stage
from services.common.bus.protocol import ReceivedEvent
from services.common.cri.client import CriClient
from services.common.domain.operations import vmi_name_of
from services.common.domain.template import FINAL_PHASES
from services.common.guest.drivers import DriverFactory
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.cache.reflector import Reflector
from services.common.kube.errors import KubeError, Unavailable
from services.common.netlink.pool import NetnsPool
from services.common.reconcile import Attempt, Reconciler, Retry, Source
from services.common.runtime.context import RoleContext
from services.handler.apply import Applier, Target
from services.handler.observe import Observer
from services.handler.plan import plan
from services.handler.plan.actions import Action, RequestUnplug, SetUpAndAttach, TearDown
from services.handler.report import StatusReporter
from services.handler.run import Run
from services.handler.sandboxes import Sandboxes
from services.handler.sessions import GuestSessions, Key

ROLE = "handler"


class Handler:
    """The handler of one node: its caches, its queue, and the reconcile of a key."""

    def __init__(
        self,
        context: RoleContext,
        *,
        cri: CriClient,
        netns: NetnsPool,
        make_driver: DriverFactory,
        tap_owner: int,
        is_owner: Callable[[], bool],
    ) -> None:
        """Create the handler; it does nothing before its tasks run.

        :param make_driver: makes the driver and the agent client of a guest.
        :param tap_owner: the user id of guests' processes, where a VMI's status has none.
        :param is_owner: returns whether hotnic owns the interfaces of this cluster's VMs now. If not, the handler does
            not even connect to a guest.
        """
        kube, log = context.kube, context.log
        self._context = context
        self._is_owner = is_owner
        self._was_owner: bool | None = None
        # As virt-handler: the objects of other nodes cost this one nothing.
        self.vmis = self._reflect_vmis(NODE_LABEL)
        self.arriving_vmis = self._reflect_vmis(TARGET_NODE_LABEL)
        self.pods: Reflector[Pod] = Reflector(
            kube,
            PODS,
            labels=CREATED_BY_LABEL,
            fields=f"spec.nodeName={context.node}",
            on_change=self._on_pod_change,
            log=log,
            denials=context.denials,
        )
        self._vmi_reader: CachedReader[VirtualMachineInstance] = CachedReader(kube, VMIS, self)
        self._pod_reader = CachedReader(kube, PODS, self.pods)
        self.sessions = GuestSessions(make_driver, log, self._requeue)
        self.sandboxes = Sandboxes(cri, netns)
        self._observer = Observer(
            context,
            self._vmi_reader,
            self._pod_reader,
            self.pods.items,
            self.sandboxes,
            self.sessions,
            tap_owner=tap_owner,
        )
        self._applier = Applier(context, self._pod_reader, self.sandboxes)
        self._reporter = StatusReporter(context, self._vmi_reader)
        self.queue: Reconciler[Key] = Reconciler(
            context.role, self.reconcile, log=log, meter=context.telemetry.meter, keys=self._keys
        )

    def _reflect_vmis(self, label: str) -> Reflector[VirtualMachineInstance]:
        """Return a reflector of the VMIs with this node in a label."""
        context = self._context
        return Reflector(
            context.kube,
            VMIS,
            labels=f"{label}={context.node}",
            on_change=self._on_vmi_change,
            log=context.log,
            denials=context.denials,
        )

    def get(self, namespace: str, name: str) -> VirtualMachineInstance | None:
        """Return a VMI as last seen; ``None`` if neither label names this node."""
        return self.vmis.get(namespace, name) or self.arriving_vmis.get(namespace, name)

    async def consume_events(self) -> None:
        """Consume this node's events from the bus until cancelled."""
        node = self._context.node
        await self._context.bus.consume(
            consumer=node_consumer(ROLE, node), filters=[node_filter(node)], handler=self._on_event
        )

    def _on_event(self, received: ReceivedEvent) -> None:
        event = received.event
        unplug = event.stage is Stage.REQUESTED and event.operation.kind is OperationKind.UNPLUG
        # No other stage changes an input of the handler's plan.
        if event.vmi is None or not (unplug or event.stage is Stage.MULTUS_ATTACHED):
            return
        self._vmi_reader.expect(event.vmi.namespace, event.vmi.name, event.changed)
        if event.pod is not None:
            self._pod_reader.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add((event.vmi.namespace, event.vmi.name), source="bus", context=received.context)

    def _on_vmi_change(self, key: Key, vmi: VirtualMachineInstance | None) -> None:
        # A VMI that has left this node and has a session is queued once more, so that the session is closed.
        if vmi is None or vmi.status.node_name == self._context.node or self.sessions.has(key):
            self.queue.add(key, source="watch")

    def _on_pod_change(self, key: Key, pod: Pod | None) -> None:
        name = vmi_name_of(pod) if pod is not None else None
        if name is not None:
            self.queue.add((key[0], name), source="watch")

    def _requeue(self, key: Key, context: Context | None, source: Source) -> None:
        self.queue.add(key, source=source, context=context)

    def requeue_all(self) -> None:
        """Queue every VMI of the node, for example because the owner of the VMs changed."""
        for key in self._keys():
            self.queue.add(key, source="watch")

    def _check_owner(self) -> bool:
        """Return whether hotnic owns the VMs; log when it no longer does.

        Two controllers must never drive one interface.
        """
        is_owner = self._is_owner()
        if is_owner is not self._was_owner:
            self._was_owner = is_owner
            if not is_owner:
                self._context.log.warning(
                    "reconciling paused", reason="KubeVirt owns the VMs of this cluster (HOTNIC_VM_OWNER)"
                )
        return is_owner

    def _vmis_of_node(self) -> list[VirtualMachineInstance]:
        # A VMI that has migrated here has both labels.
        found = {_key(vmi): vmi for vmi in (*self.arriving_vmis.items(), *self.vmis.items())}
        return [vmi for vmi in found.values() if vmi.status.node_name == self._context.node]

    def _keys(self) -> Iterable[Key]:
        return [_key(vmi) for vmi in self._vmis_of_node()]

    async def reconcile(self, key: Key, attempt: Attempt) -> None:
        """Observe one VMI, plan, and apply the plan.

        :raises Retry: something could not be done yet.
        :raises Reject: something cannot be done as requested.
        """
        started = time.time_ns()
        with _classified_errors(), _trace_of(attempt):
            if not self._check_owner():
                # A session holds the guest's QMP socket, which serves one client at a time, and answers the
                # guest's DHCP requests.
                await self.sessions.retain(())
                return
            observed = await self._observer.observe(*key, attempt)
            if observed is None:
                await self._close_ended()
                return
            actions = plan(observed)
            self._trace_observation(started, actions)
            session = self.sessions.open(observed.vmi.metadata.uid, key, observed.pod.metadata.uid)
            run = Run(self._applier, self._reporter, self.sandboxes, Target(observed, session, attempt))
            await run.apply(actions)

    def _trace_observation(self, started: int, actions: list[Action]) -> None:
        """Write the span of the observation, if there is a NIC to plug or unplug and a trace that it belongs to.

        :param started: nanoseconds of the wall clock.
        """
        changes_nic = any(isinstance(action, SetUpAndAttach | RequestUnplug | TearDown) for action in actions)
        if changes_nic and get_current_span().get_span_context().is_valid:
            self._context.telemetry.tracer.start_span("handler observe", start_time=started).end()

    async def _close_ended(self) -> None:
        """Close the sessions of guests that no longer run on this node, and drop what is cached of their pods."""
        running = {vmi.metadata.uid for vmi in self._vmis_of_node() if vmi.status.phase not in FINAL_PHASES}
        await self.sessions.retain(running)
        self.sandboxes.retain(pod.metadata.uid for pod in self.pods.items())


def _key(vmi: VirtualMachineInstance) -> Key:
    return vmi.metadata.namespace, vmi.metadata.name


@contextmanager
def _classified_errors() -> Iterator[None]:
    """Turn errors of the API server into an outcome of the queue."""
    try:
        yield
    except Unavailable as error:
        raise Retry("KubernetesUnavailable", str(error), after=error.retry_after) from error
    except KubeError as error:
        raise Retry(error.reason, str(error)) from error


@contextmanager
def _trace_of(attempt: Attempt) -> Iterator[None]:
    """Attach the trace of the latest cause that has one, so that it gets the spans of the observation."""
    context = next((cause.context for cause in reversed(attempt.causes) if cause.context is not None), None)
    token = otel.attach(context) if context is not None else None
    try:
        yield
    finally:
        if token is not None:
            otel.detach(token)
