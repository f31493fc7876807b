"""Played node roles: what networks and handler write about a plug that succeeds at once, for the pods of all nodes.

Nothing is attached anywhere: a network of a pod's annotation gets its entry in the network status, and its interface
the token ``domain`` in the status of the VMI.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas.kubernetes.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkStatus,
    encode_network_status,
    parse_network_status,
    parse_networks,
)
from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, Pod
from schemas.names import pod_interface
from services.common.domain.operations import vmi_name_of
from services.common.domain.status_interfaces import DOMAIN, with_token
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.errors import Conflict, PatchTestFailed
from services.common.kube.patch import add, test
from services.common.reconcile import Attempt, Reconciler, Retry
from services.common.telemetry import configure
from services.common.telemetry.logs import logger

Key = tuple[str, str]
STATUS = "/status/interfaces"


class PlayedNodes:
    """The node roles of a cluster; :func:`playing_nodes` runs them."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        log = logger("played-nodes", "warning")
        self.pods: Reflector[Pod] = Reflector(kube, PODS, labels=CREATED_BY_LABEL, on_change=self._on_change, log=log)
        meter = configure("played-nodes", environ={}).meter
        self.queue: Reconciler[Key] = Reconciler("played-nodes", self._attach, log=log, meter=meter, parallel=8)

    def _on_change(self, key: Key, pod: Pod | None) -> None:
        if pod is not None and _missing(pod):
            self.queue.add(key, source="watch")

    async def _attach(self, key: Key, _attempt: Attempt) -> None:
        pod = self.pods.get(*key)
        if pod is None or not (added := _missing(pod)):
            return
        before = pod.metadata.annotations.get(NETWORK_STATUS)
        text = encode_network_status([*parse_network_status(before), *added], before)
        meta = {"resourceVersion": pod.metadata.resource_version, "annotations": {NETWORK_STATUS: text}}
        try:
            await self._kube.merge_patch(PODS, *key, {"metadata": meta})
        except Conflict as error:
            # The watch brings the change, and with it another run.
            raise Retry("PodChanged", after=0.05) from error
        name = vmi_name_of(pod)
        assert name is not None
        await self._confirm(key[0], name, {status.interface for status in added})

    async def _confirm(self, namespace: str, name: str, links: set[str | None]) -> None:
        while True:
            vmi = await self._kube.get(VMIS, namespace, name)
            before = after = vmi.status.interfaces
            for interface in vmi.spec.interface_items():
                if pod_interface(interface.name) in links:
                    after = with_token(after, interface.name, DOMAIN)
            with contextlib.suppress(PatchTestFailed, Conflict):
                await self._kube.json_patch(VMIS, namespace, name, [test(STATUS, before), add(STATUS, after)])
                return


def _missing(pod: Pod) -> list[NetworkStatus]:
    """Return the entries that the network status of a pod lacks."""
    annotations = pod.metadata.annotations
    there = {status.interface for status in parse_network_status(annotations.get(NETWORK_STATUS))}
    elements = parse_networks(annotations.get(NETWORKS))
    return [
        NetworkStatus(f"{element.namespace or pod.metadata.namespace}/{element.name}", element.requested_interface)
        for element in elements
        if element.requested_interface and element.requested_interface not in there
    ]


@asynccontextmanager
async def playing_nodes(kube: Kube) -> AsyncIterator[None]:
    """Play the node roles of a cluster while the block runs."""
    played = PlayedNodes(kube)
    tasks = [asyncio.create_task(played.pods.run()), asyncio.create_task(played.queue.run())]
    try:
        await played.pods.synced.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
