"""The role's sources and its loop: the pods of one node, by watch, by bus and by resync.

A key is ``(namespace, pod name)``. Next: :mod:`services.networks.observe`, ``plan``, ``apply``.
"""

import asyncio
from collections.abc import Callable, Iterable

from schemas.encoding import node_consumer, node_filter
from schemas.kube import PODS, Pod
from schemas.networks import NETWORK_STATUS, NETWORKS
from schemas.stages import Stage
from services.common.bus.protocol import Bus, Received
from services.common.cri.client import Cri
from services.common.cri.errors import CriError
from services.common.kube.cached_reader import CachedReader
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.reflector import Reflector
from services.common.logs import Log
from services.common.reconcile import Attempt, Reconciler, Retry
from services.common.telemetry import Telemetry
from services.networks.apply import Applier
from services.networks.delegate import Delegate
from services.networks.observe import observe
from services.networks.plan import Isolation, acts, plan
from services.networks.tools import Tools

ROLE = "networks"

HEARD = frozenset({Stage.POD_ANNOTATED, Stage.GUEST_DETACHED})
"""The stages after which this role has something to do; its own and later ones bring nothing new."""

LOOK = 10.0
"""Seconds between two looks at the neighbours on the node."""
LOOK_AGAIN = 1.0
"""The same, while one of them is away."""

Key = tuple[str, str]
Signature = tuple[str, str, str | None, str | None, str | None]
Told = Callable[[str, bool, str], None]


class Networks:
    """One node's role: its cache of pods, its queue, and what it does with a key."""

    def __init__(
        self,
        *,
        node: str,
        kube: Kube,
        cri: Cri,
        multus: Delegate,
        bus: Bus,
        telemetry: Telemetry,
        log: Log,
        isolation: Isolation | None = None,
    ) -> None:
        self._node = node
        self._bus = bus
        self._isolation = isolation or Isolation()
        self._signatures: dict[Key, Signature] = {}
        self.pods: Reflector[Pod] = Reflector(
            kube, PODS, fields=f"spec.nodeName={node}", on_change=self._pod_changed, log=log
        )
        self._fresh = CachedReader(kube, PODS, self.pods)
        self.tools = Tools(
            node=node,
            kube=kube,
            pods=self._fresh,
            cri=cri,
            multus=multus,
            bus=bus,
            events=EventRecorder(kube, ROLE, log=log, node=node),
            telemetry=telemetry,
            log=log,
        )
        self._applier = Applier(self.tools)
        self.queue: Reconciler[Key] = Reconciler(ROLE, self._reconcile, log=log, meter=telemetry.meter, keys=self._keys)

    async def listen(self) -> None:
        """Take hints from the bus until cancelled."""
        consumer = node_consumer(ROLE, self._node)
        await self._bus.consume(consumer=consumer, filters=[node_filter(self._node)], handler=self._heard)

    async def watch_neighbours(self, told: Told) -> None:
        """Say whether multus and the container runtime can be reached, until cancelled.

        :param told: gets the name of the condition, whether it is met, and why not.
        """
        while True:
            why_not_multus, why_not_cri = await asyncio.gather(self.tools.multus.probe(), self._probe_cri())
            told("multus", not why_not_multus, why_not_multus)
            told("container-runtime", not why_not_cri, why_not_cri)
            await asyncio.sleep(LOOK_AGAIN if why_not_multus or why_not_cri else LOOK)

    async def _probe_cri(self) -> str:
        try:
            await self.tools.cri.version()
        except CriError as error:
            return str(error)
        return ""

    def _heard(self, received: Received) -> None:
        event = received.event
        if event.pod is None or event.stage not in HEARD:
            return
        self._fresh.expect(event.pod.namespace, event.pod.name, event.changed)
        self.queue.add((event.pod.namespace, event.pod.name), source="bus", context=received.context)

    def _pod_changed(self, key: Key, pod: Pod | None) -> None:
        if pod is None:
            self._signatures.pop(key, None)
            self._forget()
            return
        self._fresh.saw(pod)
        signature = _signature(pod)
        # The kubelet touches its pods often, and hardly ever where this role looks.
        if self._signatures.get(key) != signature:
            self._signatures[key] = signature
            self.queue.add(key, source="watch")

    def _keys(self) -> Iterable[Key]:
        self._forget()
        return self.pods.keys()

    def _forget(self) -> None:
        self.tools.memory.keep_only({pod.metadata.uid for pod in self.pods.items()})

    async def _reconcile(self, key: Key, attempt: Attempt) -> None:
        look = await observe(self.tools, self._isolation, *key, attempt)
        if look is None:
            return
        pod, actions = look.seen.pod, plan(look.seen)
        memory = self.tools.memory.of(pod.metadata.uid)
        if actions:
            memory.sandbox = memory.sandbox or look.sandbox
        settled = await self._applier.apply(pod, actions, attempt)
        if look.no_record is not None:
            raise Retry(look.no_record.reason, look.no_record.message)
        if settled and acts(pod, self._node):
            memory.compared = pod.metadata.annotations.get(NETWORKS) or ""


def _signature(pod: Pod) -> Signature:
    """What of a pod the plan depends on and its author or the kubelet may change."""
    meta = pod.metadata
    annotations = meta.annotations
    return (
        meta.uid,
        pod.status.phase,
        meta.deletion_timestamp,
        annotations.get(NETWORKS),
        annotations.get(NETWORK_STATUS),
    )
