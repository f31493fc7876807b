"""Pods without a VM, for tests and benchmarks in a lab; they are created, annotated and watched by the API server."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from lab.tools import PAUSE_IMAGE
from schemas.kubernetes.networks import NETWORK_STATUS as STATUS
from schemas.kubernetes.networks import NETWORKS, NetworkStatus, parse_network_status
from schemas.kubernetes.objects import PODS, Pod
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.telemetry import configure

NAMESPACE = "default"
DEFAULT_SPEC: dict[str, Any] = {"containers": [{"name": "main", "image": PAUSE_IMAGE}]}


@dataclass
class OrdinaryPods:
    """The pods that a test has created.

    :ivar changed: time of the last watch event, by pod; seconds of the monotonic clock.
    """

    kube: Kube
    changed: dict[str, float] = field(default_factory=dict)
    _change: asyncio.Condition = field(default_factory=asyncio.Condition)
    _created: list[str] = field(default_factory=list)
    _observed: dict[str, Pod] = field(default_factory=dict)

    async def create(
        self, *names: str, networks: str | None = None, spec: dict[str, Any] | None = None, timeout: float = 45.0
    ) -> None:
        """Create pods and wait until they run.

        :param spec: by default, one container that sleeps.
        """
        annotations = {} if networks is None else {NETWORKS: networks}
        for name in names:
            self._created.append(name)
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
                "spec": {"terminationGracePeriodSeconds": 1, **(spec or DEFAULT_SPEC)},
            }
            await self.kube.create(PODS, NAMESPACE, pod)
        await self.until(lambda: all(self.phase(name) == "Running" for name in names), timeout)

    async def set_networks(self, name: str, networks: Sequence[dict[str, Any]] | str) -> None:
        """Set the networks annotation."""
        text = networks if isinstance(networks, str) else json.dumps(networks)
        await self.kube.merge_patch(PODS, NAMESPACE, name, {"metadata": {"annotations": {NETWORKS: text}}})

    def phase(self, name: str) -> str | None:
        """Return the last observed phase of a pod."""
        return self._observed[name].status.phase if name in self._observed else None

    def running(self, prefix: str) -> list[str]:
        """Return the pods that run and are not being deleted, by the beginning of their names."""
        return [
            name
            for name, pod in sorted(self._observed.items())
            if name.startswith(prefix) and pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
        ]

    def annotations(self, name: str) -> dict[str, str]:
        """Return the last observed annotations of a pod."""
        return self._observed[name].metadata.annotations

    def attached(self, name: str) -> list[NetworkStatus]:
        """Return the last observed entries of network-status, without the cluster network."""
        return [entry for entry in parse_network_status(self.annotations(name).get(STATUS)) if not entry.default]

    def links(self, name: str) -> list[str | None]:
        """Return the links of these entries."""
        return [entry.interface for entry in self.attached(name)]

    async def until_links(self, name: str, *links: str, timeout: float = 45.0) -> None:
        """Wait until network-status lists exactly these links besides the cluster network."""
        await self.until(lambda: self.links(name) == list(links), timeout)

    async def until(self, condition: Callable[[], bool], timeout: float = 45.0) -> None:
        """Wait until the watch makes a condition true."""
        async with asyncio.timeout(timeout), self._change:
            await self._change.wait_for(condition)

    async def delete(self, *names: str, timeout: float = 100.0) -> None:
        """Delete pods and wait until they are gone."""
        for name in names:
            with contextlib.suppress(NotFound):
                await self.kube.delete(PODS, NAMESPACE, name)
        await self.until(lambda: not self._observed.keys() & set(names), timeout)

    async def delete_all(self) -> None:
        """Delete every pod that was created."""
        await self.delete(*self._created)

    def record_change(self, key: tuple[str, str], pod: Pod | None) -> None:
        """Record a watch event; ``pod`` is ``None`` after a deletion."""
        if pod is None:
            self._observed.pop(key[1], None)
        else:
            self._observed[key[1]] = pod
        self.changed[key[1]] = time.monotonic()
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._change:
            self._change.notify_all()


@contextlib.asynccontextmanager
async def ordinary_pods(kubeconfig: Path) -> AsyncIterator[OrdinaryPods]:
    """Give access to the pods of a cluster; created pods are deleted at the end."""
    telemetry = configure("test", environ={})
    kube = await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="test")
    async with kube:
        pods = OrdinaryPods(kube)
        watch = Reflector(kube, PODS, namespace=NAMESPACE, on_change=pods.record_change, log=structlog.get_logger())
        task = asyncio.create_task(watch.run())
        try:
            await watch.synced.wait()
            yield pods
            await pods.delete_all()
        finally:
            task.cancel()
            await asyncio.wait([task])
    # A TLS connection finishes its shutdown after the session is closed, and gives no signal when it is done.
    await asyncio.sleep(0.1)
