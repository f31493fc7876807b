"""Pods without a VM, for tests and benchmarks in a lab: made, annotated and watched through the API server alone."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from schemas.kube import PODS, Pod
from schemas.networks import NETWORK_STATUS as STATUS
from schemas.networks import NETWORKS, NetworkStatus, parse_network_status
from services.common.kube.client import Kube
from services.common.kube.errors import NotFound
from services.common.kube.reflector import Reflector
from services.common.telemetry import configure

NAMESPACE = "default"


@dataclass
class OrdinaryPods:
    """The pods that a test has made.

    :ivar changed: when the watch last brought something about a pod; seconds of the monotonic clock.
    """

    kube: Kube
    changed: dict[str, float] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _made: list[str] = field(default_factory=list)
    _seen: dict[str, Pod] = field(default_factory=dict)

    async def make(self, *names: str, networks: str | None = None, timeout: float = 30.0) -> None:
        """Make pods and wait until they run."""
        annotations = {} if networks is None else {NETWORKS: networks}
        for name in names:
            self._made.append(name)
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
                "spec": {"containers": [{"name": "main", "image": "pause"}]},
            }
            await self.kube.create(PODS, NAMESPACE, pod)
        await self.until(lambda: all(self.phase(name) == "Running" for name in names), timeout)

    async def want(self, name: str, networks: Sequence[dict[str, Any]] | str) -> None:
        """Edit the networks annotation."""
        text = networks if isinstance(networks, str) else json.dumps(networks)
        await self.kube.merge_patch(PODS, NAMESPACE, name, {"metadata": {"annotations": {NETWORKS: text}}})

    def phase(self, name: str) -> str | None:
        """The phase of a pod as last seen."""
        return self._seen[name].status.phase if name in self._seen else None

    def annotations(self, name: str) -> dict[str, str]:
        """The annotations of a pod as last seen."""
        return self._seen[name].metadata.annotations

    def attached(self, name: str) -> list[NetworkStatus]:
        """The entries of network-status that are not the cluster network's, as last seen."""
        return [entry for entry in parse_network_status(self.annotations(name).get(STATUS)) if not entry.default]

    def links(self, name: str) -> list[str | None]:
        """Their links."""
        return [entry.interface for entry in self.attached(name)]

    async def until_links(self, name: str, *links: str, timeout: float = 15.0) -> None:
        """Wait until network-status lists exactly these beside the cluster network."""
        await self.until(lambda: self.links(name) == list(links), timeout)

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait for what the watch brings."""
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(condition)

    async def delete(self, *names: str) -> None:
        """Delete pods and wait until they are gone."""
        for name in names:
            with contextlib.suppress(NotFound):
                await self.kube.delete(PODS, NAMESPACE, name)
        await self.until(lambda: not self._seen.keys() & set(names), timeout=60.0)

    async def delete_all(self) -> None:
        """Delete every pod that was made."""
        await self.delete(*self._made)

    def saw(self, key: tuple[str, str], pod: Pod | None) -> None:
        """The watch's callback."""
        if pod is None:
            self._seen.pop(key[1], None)
        else:
            self._seen[key[1]] = pod
        self.changed[key[1]] = time.monotonic()
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


@contextlib.asynccontextmanager
async def ordinary_pods(kubeconfig: Path) -> AsyncIterator[OrdinaryPods]:
    """Pods of a cluster; those that were made are deleted at the end."""
    telemetry = configure("test", environ={})
    kube = await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="test")
    async with kube:
        pods = OrdinaryPods(kube)
        watch = Reflector(kube, PODS, namespace=NAMESPACE, on_change=pods.saw, log=structlog.get_logger())
        task = asyncio.create_task(watch.run())
        try:
            await watch.synced.wait()
            yield pods
            await pods.delete_all()
        finally:
            task.cancel()
            await asyncio.wait([task])
    # A TLS connection says good-bye after its session is closed, and nobody tells when it is done.
    await asyncio.sleep(0.1)
