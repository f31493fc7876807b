"""A node that runs the real networks role; the API server, container runtime and multus daemon around it are fakes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.bus.events import Event
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from services.common.cri.client import CriClient
from services.common.domain.plugin_types import AllowedPlugins
from services.common.http.client import UnixHttpClient
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.runtime.context import RoleContext
from services.networks.multus_client import MultusClient
from services.networks.plan.actions import NamespaceIsolation
from services.networks.role import Networks
from tests.support.bus.memory import MemoryBus
from tests.support.kube.node_kube import EVENTS, NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.node.fake_multus import FakeMultus, serving_multus
from tests.support.observed.networks_pods import NO_ISOLATION
from tests.support.telemetry.spans import recording_telemetry

NODE = "node1"
ETH0 = {"name": "cluster", "interface": "eth0", "ips": ["10.88.0.5"], "default": True, "dns": {}}
CONFIG = '{"cniVersion":"1.0.0","name":"blue-net","type":"bridge"}'


@dataclass
class Node:
    """The node and the running role."""

    kube: FakeKube
    cri: FakeCri
    multus: FakeMultus
    bus: MemoryBus
    spans: InMemorySpanExporter
    role: Networks

    def pod(self, name: str = "p1", *, networks: Any = None, status: Any = (ETH0,), **parts: Any) -> None:
        """Add a running pod with a sandbox."""
        annotations = {NETWORK_STATUS: json.dumps(list(status)), **parts.pop("annotations", {})}
        if networks is not None:
            annotations[NETWORKS] = json.dumps(networks)
        self.cri.sandboxes.append(FakeSandbox(f"sandbox-{name}", f"uid-{name}", "default", name))
        self.kube.put(
            PODS,
            "default",
            name,
            metadata={"annotations": annotations, **parts.pop("metadata", {})},
            spec={"nodeName": NODE, **parts.pop("spec", {})},
            status={"phase": "Running"},
        )

    def nad(self, name: str = "blue", config: str = CONFIG) -> None:
        """Add a network."""
        self.kube.put(NADS, "default", name, spec={"config": config})

    def set_networks(self, networks: Any, name: str = "p1", **annotations: str | None) -> None:
        """Set the networks annotation, and further annotations in the same edit."""
        self.kube.annotate(PODS, "default", name, {NETWORKS: json.dumps(networks), **annotations})

    def status(self, name: str = "p1") -> list[dict[str, Any]]:
        """Return the entries of network-status."""
        found: list[dict[str, Any]] = json.loads(self.kube.annotations(PODS, "default", name)[NETWORK_STATUS])
        return found

    def links(self, name: str = "p1") -> list[str]:
        """Return the links in network-status, in order."""
        return [entry["interface"] for entry in self.status(name)]

    async def until_links(self, *links: str, name: str = "p1") -> None:
        """Wait until network-status lists exactly these links."""
        await self.kube.until(lambda: self.links(name) == list(links))

    async def until_event(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for a number of Kubernetes Events and return them."""
        await self.kube.until(lambda: len(self.kube.of(EVENTS)) >= count)
        return self.kube.of(EVENTS)

    async def until_published(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        """Wait for events on the bus and return them."""
        async with asyncio.timeout(45):
            await self.bus.broker.until(lambda: condition(self.bus.published))
        return self.bus.published

    async def idle(self) -> None:
        """Wait until the role has reconciled every pod once more and has nothing left to do."""
        # Neither the cache nor the queue signals its state, so both are polled.
        for pod in self.kube.of(PODS):
            meta = pod["metadata"]
            while self.role.pods.version("default", meta["name"]) != meta["resourceVersion"]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await self._wait_idle()
        for pod in self.kube.of(PODS):
            self.role.queue.add(("default", pod["metadata"]["name"]), source="resync")
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self.role.queue.in_flight or self.role.queue.depth:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running_node(
    directory: Path,
    *,
    kube: FakeKube | None = None,
    multus_socket: Path | None = None,
    deadline: float = 2.0,
    isolation: NamespaceIsolation = NO_ISOLATION,
) -> AsyncIterator[Node]:
    """Run the role on a node; sockets and kubeconfig are in the directory.

    :param kube: a fake API server that is already served.
    :param multus_socket: of a daemon that already runs.
    :param deadline: seconds for a call to multus.
    """
    telemetry, spans = recording_telemetry("networks")
    log = structlog.get_logger()
    async with contextlib.AsyncExitStack() as stack:
        if kube is None:
            kube = await stack.enter_async_context(serving_kube(FakeKube()))
        cri_path, multus_path = str(directory / "cri.sock"), str(multus_socket or directory / "multus.sock")
        runtime = await stack.enter_async_context(serving_cri(cri_path, FakeCri()))
        daemon = FakeMultus()
        if multus_socket is None:
            await stack.enter_async_context(serving_multus(multus_path, daemon))
        config = write_kubeconfig(directory / "kubeconfig", kube.url)
        client = await stack.enter_async_context(
            await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test")
        )
        cri, http = CriClient(cri_path, telemetry), UnixHttpClient(multus_path, telemetry)
        stack.push_async_callback(cri.close)
        stack.push_async_callback(http.close)
        bus = MemoryBus(role="networks", node=NODE, telemetry=telemetry, log=log)
        events = EventRecorder(client, "networks", log=log, node=NODE)
        context = RoleContext("networks", NODE, client, bus, events, telemetry, log)
        role = Networks(
            context,
            cri=cri,
            multus=MultusClient(http, multus_path, deadline=deadline),
            isolation=isolation,
            allowed_plugins=AllowedPlugins(),
        )
        tasks = [asyncio.create_task(work()) for work in (role.pods.run, role.listen, role.queue.run)]
        await role.pods.synced.wait()
        yield Node(kube, runtime, daemon, bus, spans, role)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
