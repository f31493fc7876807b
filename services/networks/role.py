"""The sources and the reconcile loop of the role: the pods of one node, by watch, bus and resync.

A key is ``(namespace, pod name)``. Next: :mod:`services.networks.observe`, ``plan``, ``apply``.
"""

import asyncio
from collections.abc import Callable, Iterable

from schemas.bus.encoding import node_consumer, node_filter
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.objects import PODS, Pod
from schemas.stages import Stage
from services.common.bus.protocol import ReceivedEvent
from services.common.cri.client import CriClient
from services.common.cri.errors import CriError
from services.common.domain.plugin_types import AllowedPlugins
from services.common.kube.cache.cached_reader import CachedReader
from services.common.kube.cache.reflector import Reflector
from services.common.reconcile import Attempt, Reconciler
from services.common.runtime.context import RoleContext
from services.networks.apply import Applier
from services.networks.multus_client import MultusClient
from services.networks.observe import PodObserver
from services.networks.plan import is_eligible, plan
from services.networks.plan.actions import NamespaceIsolation
from services.networks.plan.attachments import MalformedAnnotation
from services.networks.pod_cache import PodCache
from services.networks.vmi_operations import VmiOperations

CONSUMED_STAGES = frozenset({Stage.POD_ANNOTATED, Stage.GUEST_DETACHED})
"""The stages whose events trigger this role; its own and later stages leave nothing for it to do."""

PROBE_INTERVAL = 10.0
"""Seconds between two probes of multus and the container runtime."""
PROBE_RETRY_INTERVAL = 1.0
"""Seconds between two probes while one of them is not reachable."""

Key = tuple[str, str]
Signature = tuple[str, str, str | None, str | None, str | None]
SetCondition = Callable[[str, bool, str], None]
"""Sets a readiness condition: its name, whether it is met, and the reason if it is not."""


class Networks:
    """The networks role of one node: its watch of pods, its queue and the reconcile function.

    :ivar pods: the reflector of the node's pods; its caller runs it.
    :ivar queue: the pods to reconcile.
    :ivar pod_cache: what this process did for the pods.
    """

    def __init__(
        self,
        context: RoleContext,
        *,
        cri: CriClient,
        multus: MultusClient,
        isolation: NamespaceIsolation,
        allowed_plugins: AllowedPlugins,
    ) -> None:
        kube, log = context.kube, context.log
        self._context = context
        self._cri = cri
        self._multus = multus
        self._signatures: dict[Key, Signature] = {}
        self.pod_cache = PodCache()
        self.pods: Reflector[Pod] = Reflector(
            kube,
            PODS,
            fields=f"spec.nodeName={context.node}",
            on_change=self._pod_changed,
            log=log,
            denials=context.denials,
        )
        self._reader = CachedReader(kube, PODS, self.pods)
        self._observer = PodObserver(context, self._reader, cri, multus, self.pod_cache, isolation, allowed_plugins)
        self._operations = VmiOperations(context)
        self._applier = Applier(context, self._observer, multus, self._reader, self.pod_cache)
        self.queue: Reconciler[Key] = Reconciler(
            context.role, self._reconcile, log=log, meter=context.telemetry.meter, keys=self._keys
        )

    async def listen(self) -> None:
        """Consume events from the bus until cancelled."""
        node = self._context.node
        consumer = node_consumer(self._context.role, node)
        await self._context.bus.consume(consumer=consumer, filters=[node_filter(node)], handler=self._on_event)

    async def probe_dependencies(self, set_condition: SetCondition) -> None:
        """Probe multus and the container runtime until cancelled, and set their readiness conditions."""
        while True:
            multus_error, cri_error = await asyncio.gather(self._multus.probe(), self._probe_cri())
            set_condition("multus", not multus_error, multus_error)
            set_condition("container-runtime", not cri_error, cri_error)
            await asyncio.sleep(PROBE_RETRY_INTERVAL if multus_error or cri_error else PROBE_INTERVAL)

    async def _probe_cri(self) -> str:
        try:
            await self._cri.version()
        except CriError as error:
            return str(error)
        return ""

    def _on_event(self, received: ReceivedEvent) -> None:
        event = received.event
        if event.pod is None or event.stage not in CONSUMED_STAGES:
            return
        self._reader.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add((event.pod.namespace, event.pod.name), source="bus", context=received.context)

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        if pod is None:
            self._signatures.pop(key, None)
            self._evict_deleted()
            return
        self._reader.record_cached(pod)
        signature = _signature(pod)
        # The kubelet updates pod statuses often; most updates change nothing that this role reads.
        if self._signatures.get(key) != signature:
            self._signatures[key] = signature
            self.queue.add(key, source="watch")

    def _keys(self) -> Iterable[Key]:
        self._evict_deleted()
        return self.pods.keys()

    def _evict_deleted(self) -> None:
        self.pod_cache.retain_only({pod.metadata.uid for pod in self.pods.items()})

    async def _reconcile(self, key: Key, attempt: Attempt) -> None:
        observation = await self._observer.observe(*key, attempt)
        if observation is None:
            return
        observed = observation.observed
        pod = observed.pod
        actions = plan(observed)
        if actions and not isinstance(observed.attachments, MalformedAnnotation):
            actions = await self._operations.join(pod, actions, observed.attachments)
        settled = await self._applier.apply(pod, actions, attempt, observation.sandbox)
        if observation.record_failure is not None:
            raise observation.record_failure
        # Only now: an annotation that was not fully applied must be compared with the record again, and of one that
        # cannot be read nothing was applied.
        readable = not isinstance(observed.attachments, MalformedAnnotation)
        if settled and readable and is_eligible(pod, observed.node):
            self.pod_cache.of(pod.metadata.uid).compared = pod.metadata.annotations.get(NETWORKS) or ""


def _signature(pod: Pod) -> Signature:
    """Return the fields of a pod that the plan depends on; a watch event triggers a run only if they changed."""
    meta = pod.metadata
    annotations = meta.annotations
    return (
        meta.uid,
        # An edit before the pod runs is applied once it does; upstream's controller misses such an edit.
        pod.status.phase,
        meta.deletion_timestamp,
        annotations.get(NETWORKS),
        annotations.get(NETWORK_STATUS),
    )
