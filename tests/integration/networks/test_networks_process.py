"""The role as a process that is configured by its environment, with a real NATS server."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import structlog

from schemas.bus.encoding import stage_filter
from schemas.bus.events import ChangedObject, Event, MultusAttached, ObjectRef, PodAnnotated
from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.bus.nats.jetstream import connect
from services.common.bus.protocol import Bus, ReceivedEvent
from tests.support.bus.nats import NatsServer
from tests.support.kube.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.node.fake_multus import FakeMultus, serving_multus
from tests.support.observed.networks_pods import put_running_pod
from tests.support.telemetry.spans import recording_telemetry


@dataclass
class Process:
    """The process, the servers around it and the events that it published."""

    folder: Path
    kube: FakeKube
    multus: FakeMultus
    bus: Bus
    nats: NatsServer
    health: int
    published: list[Event] = field(default_factory=list)
    any_published: asyncio.Event = field(default_factory=asyncio.Event)
    child: asyncio.subprocess.Process | None = None

    async def start(self, *, until: str = "readyz check passed") -> None:
        """Start the process and wait until its readiness report contains a text."""
        self.child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.networks",
            env={
                "PATH": os.environ["PATH"],
                "KUBECONFIG": str(self.folder / "kubeconfig"),
                "NATS_URL": self.nats.url,
                "HOTNIC_NODE_NAME": "node1",
                "HOTNIC_CRI_SOCKET": str(self.folder / "cri.sock"),
                "HOTNIC_MULTUS_SOCKET": str(self.folder / "multus.sock"),
                "HOTNIC_HEALTH_LISTEN": f"127.0.0.1:{self.health}",
                "HOTNIC_TRACE_DIR": str(self.folder / "traces"),
            },
        )
        async with asyncio.timeout(45):
            # Readiness has no signal, so it is polled.
            while until not in await self.readyz():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def readyz(self) -> str:
        """Return the readiness report; it is empty before the process listens."""
        with contextlib.suppress(aiohttp.ClientConnectorError):
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.health}/readyz") as answer,
            ):
                return await answer.text()
        return ""

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.child is not None
        if self.child.returncode is None:
            self.child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(45):
            return await self.child.wait()

    def record_event(self, received: ReceivedEvent) -> None:
        """Record a published event."""
        self.published.append(received.event)
        self.any_published.set()

    def links(self) -> list[str]:
        """Return the links in network-status."""
        return [e["interface"] for e in json.loads(self.kube.annotations(PODS, "default", "p1")[NETWORK_STATUS])]

    def set_links(self, *links: str) -> None:
        """Set the networks annotation to these links."""
        networks = json.dumps([{"name": "blue", "interface": link} for link in links])
        self.kube.annotate(PODS, "default", "p1", {NETWORKS: networks})


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    telemetry, _ = recording_telemetry("controller")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        health = probe.getsockname()[1]
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(serving_kube(FakeKube()))
        write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        sandboxes = [FakeSandbox("s1", "uid-p1")]
        await stack.enter_async_context(serving_cri(str(tmp_path / "cri.sock"), FakeCri(sandboxes)))
        multus = await stack.enter_async_context(serving_multus(str(tmp_path / "multus.sock"), FakeMultus()))
        nats = NatsServer(tmp_path / "nats")
        await nats.start()
        stack.push_async_callback(nats.stop)
        bus = await connect(
            nats.url, role="controller", node="_", telemetry=telemetry, log=structlog.get_logger(), environ={}
        )
        stack.push_async_callback(bus.close)
        kube.put(NADS, "default", "blue", spec={"config": '{"cniVersion":"1.0.0","name":"b","type":"bridge"}'})
        put_running_pod(kube)
        running = Process(tmp_path, kube, multus, bus, nats, health)
        consuming = asyncio.create_task(
            bus.consume(consumer="test", filters=[stage_filter(Stage.MULTUS_ATTACHED)], handler=running.record_event)
        )
        await running.start()
        try:
            yield running
        finally:
            if running.child is not None and running.child.returncode is None:
                await running.stop()
            consuming.cancel()
            await asyncio.wait({consuming})


async def test_bus_event_triggers_an_attach_that_is_published(process: Process) -> None:
    """A plug over the real bus: annotated, attached, published; then an ordered shutdown."""
    process.set_links("ens58")
    version = process.kube.objects[PODS, "default", "p1"]["metadata"]["resourceVersion"]
    await process.bus.publish(
        PodAnnotated(
            operation=Operation(id="op1", kind=OperationKind.PLUG, interface="ens58"),
            pod=ObjectRef("default", "p1", "uid-p1"),
            node="node1",
            changed=ChangedObject("Pod", "uid-p1", version),
            pod_interface="ens58",
        )
    )
    await process.kube.until(lambda: process.links() == ["eth0", "ens58"])
    async with asyncio.timeout(45):
        await process.any_published.wait()
    (event,) = process.published
    assert isinstance(event, MultusAttached)
    assert (event.sandbox_id, event.pod_interface) == ("s1", "ens58")
    assert await process.stop() == 0
    spans = "".join(path.read_text() for path in (process.folder / "traces").iterdir())
    assert "networks attach p1/ens58" in spans


async def test_edit_during_downtime_is_applied_at_start(process: Process) -> None:
    assert process.child is not None
    process.child.kill()
    await process.child.wait()
    process.set_links("ens58")
    await process.start()
    await process.kube.until(lambda: process.links() == ["eth0", "ens58"])
    assert process.multus.verbs == ["ADD ens58"]


async def test_role_works_without_nats_and_is_not_ready_without_multus(process: Process) -> None:
    await process.nats.stop()
    process.set_links("ens58")
    await process.kube.until(lambda: process.links() == ["eth0", "ens58"])
    assert process.multus.verbs == ["ADD ens58"]
    (process.folder / "multus.sock").unlink()
    assert await process.stop() == 0
    await process.start(until="[-]multus failed: multus daemon at")
