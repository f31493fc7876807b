"""A node with the handler on it: real network namespaces and QEMU, fake API server, runtime, guest agent and bus."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from schemas.bus.events import Event
from schemas.kubernetes.kubevirt import NODE_LABEL
from schemas.kubernetes.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key, read_operation
from schemas.names import pod_interface
from schemas.stages import OperationKind
from services.common.cri.client import CriClient
from services.common.guest.drivers import DriverSetting, driver_factory
from services.common.guest.qmp import DEADLINE
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.pool import NetnsPool
from services.common.reconcile import Attempt
from services.common.runtime.context import RoleContext
from services.common.runtime.recording_bus import RecordingBus
from services.handler.role import Handler
from services.handler.sessions import Key
from tests.support.bus.memory import MemoryBus
from tests.support.guest.agent import FakeAgent, fake_agent
from tests.support.guest.qemu import paused_qemu
from tests.support.kube.node_kube import EVENTS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node import netns as testbed
from tests.support.node.fake_cri import FakeCri, FakeSandbox, containerd_info, serving_cri
from tests.support.observed.objects import NODE, POD_UID, VMI_UID, nic, pod, vmi
from tests.support.telemetry.spans import recording_telemetry

VMIS = "virtualmachineinstances"
POD = "virt-launcher-vm1-abcde"
MAC = "3e:89:92:5a:b5:a7"
IP = "10.0.0.2/24"
SANDBOX = "sandbox-1"


class CountedHandler(Handler):
    """The role, with a counter of its runs.

    :ivar runs: the number of finished runs.
    :ivar run_finished: notified after each run.
    """

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.runs = 0
        self.run_finished = asyncio.Condition()

    async def reconcile(self, key: Key, attempt: Attempt) -> None:
        try:
            await super().reconcile(key, attempt)
        finally:
            self.runs += 1
            async with self.run_finished:
                self.run_finished.notify_all()


@dataclass
class Node:
    """The node and what runs on it.

    :ivar owner: its only item is the owner of the VMs, ``hotnic`` or ``kubevirt``; tests change it.
    :ivar watch_of_vmis: the task of the VMI watch; a test cancels it to make the cache stale.
    :ivar pod: the name of the launcher pod.
    """

    kube: FakeKube
    cri: FakeCri
    bus: MemoryBus
    spans: InMemorySpanExporter
    role: CountedHandler
    agent: FakeAgent
    folder: Path
    telemetry: Any
    watch_of_vmis: asyncio.Task[None]
    owner: list[str]
    name: str
    pod: str
    pod_uid: str

    @property
    def netns(self) -> Path:
        """The pod's network namespace."""
        return self.folder / "pod"

    def attach_pod_nic(self, interface: str, *ips: str, link: str | None = None) -> None:
        """Create a pod interface as CNI does: a veth into the pod, with addresses.

        :param link: the name of the pod interface, where it is not the hashed one.
        """
        name = link or pod_interface(interface)
        outer = f"v{pod_interface(interface)[3:11]}"
        testbed.veth(self.netns, name, self.folder / "node", outer)
        testbed.ip(self.netns, "link", "set", name, "address", MAC, "up")
        for ip in ips:
            testbed.ip(self.netns, "address", "add", ip, "dev", name)

    def put_network_status(
        self, *interfaces: str, link: str | None = None, **annotations: str | None
    ) -> dict[str, Any]:
        """Write the network status as the networks role does; return the patched pod.

        :param link: see :meth:`attach_pod_nic`.
        """
        entries = [NetworkStatus(name="default/net1", interface=link or pod_interface(i), mac=MAC) for i in interfaces]
        return self.kube.annotate(
            PODS, "default", self.pod, {NETWORK_STATUS: encode_network_status(entries), **annotations}
        )

    def put_vmi(
        self,
        *interfaces: str,
        absent: tuple[str, ...] = (),
        operations: tuple[Operation, ...] = (),
        states: dict[str, str] | None = None,
        **devices: Any,
    ) -> None:
        """Write the VMI as the api does.

        :param interfaces: the interfaces that are not absent.
        :param absent: the interfaces with ``state: absent``.
        :param operations: the operations for the annotations.
        :param states: ``state`` by interface.
        :param devices: further fields of the VMI's devices.
        """
        annotations = {operation_key(one.interface): encode_annotation(one) for one in operations}
        nics = [nic(name) for name in interfaces] + [nic(name, state="absent") for name in absent]
        document = msgspec.to_builtins(vmi(*nics))
        for item in document["spec"]["domain"]["devices"]["interfaces"]:
            item |= {"state": state} if (state := (states or {}).get(item["name"])) else {}
        document["spec"]["domain"]["devices"] |= devices
        known = self.kube.objects.get((VMIS, "default", "vm1"), {})
        self.kube.put(
            VMIS,
            "default",
            "vm1",
            metadata={
                "uid": VMI_UID,
                "labels": known.get("metadata", {}).get("labels") or {NODE_LABEL: self.name},
                "annotations": {**known.get("metadata", {}).get("annotations", {}), **annotations},
            },
            spec=document["spec"],
            status=known.get("status") or document["status"],
        )

    def status(self, interface: str) -> dict[str, Any]:
        """Return the entry of an interface in the VMI's status; empty when there is none."""
        entries = self.kube.objects[VMIS, "default", "vm1"]["status"].get("interfaces") or []
        return next((entry for entry in entries if entry["name"] == interface), {})

    def operation(self, interface: str) -> Operation | None:
        """Return the operation in the VMI's annotation."""
        return read_operation(self.kube.annotations(VMIS, "default", "vm1"), interface)

    async def until_released(self, interface: str, *, timeout: float = 45) -> Operation:
        """Wait until the VMI's operation is released; return it."""

        def done() -> bool:
            found = self.operation(interface)
            return found is not None and found.released == self.pod_uid

        await self.kube.until(done, timeout=timeout)
        found = self.operation(interface)
        assert found is not None
        return found

    def links(self) -> set[str]:
        """Return the names of the links in the pod."""
        return {link["ifname"] for link in json.loads(testbed.ip(self.netns, "-json", "link"))}

    def served(self) -> set[str]:
        """Return the taps in the pod that an address server has a packet socket on."""
        names = {link["ifindex"]: link["ifname"] for link in json.loads(testbed.ip(self.netns, "-json", "link"))}
        table = testbed.run_in_netns(self.netns, lambda: Path("/proc/thread-self/net/packet").read_text())
        return {names.get(int(line.split()[4]), "a link that is gone") for line in table.splitlines()[1:]}

    def warnings(self) -> list[str]:
        """Return the reasons of the Events of type Warning."""
        return [event["reason"] for event in self.kube.of(EVENTS) if event["type"] == "Warning"]

    async def until_published(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        """Wait until a condition holds for the published events; return them."""
        async with asyncio.timeout(45):
            await self.bus.broker.until(lambda: condition(self.bus.published))
        return self.bus.published

    async def until_status(self, interface: str, *tokens: str) -> None:
        """Wait until the entry of an interface has exactly these tokens in ``infoSource``."""
        await self.kube.until(lambda: self.status(interface).get("infoSource") == ", ".join(tokens), timeout=45)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds at the end of a run."""
        async with asyncio.timeout(45), self.role.run_finished:
            await self.role.run_finished.wait_for(condition)

    async def settled(self) -> None:
        """Wait for two more runs of the VMI: one run may have started before this call."""
        for _ in range(2):
            before = self.role.runs
            self.role.queue.add(("default", "vm1"), source="watch")
            await self.until(lambda before=before: self.role.runs > before)  # type: ignore[misc]


def operation(interface: str, traceparent: str | None = None, kind: OperationKind = OperationKind.PLUG) -> Operation:
    """Return an operation as the api writes it."""
    return Operation(id=f"op-{kind}-{interface}", kind=kind, interface=interface, traceparent=traceparent)


Machine = Callable[[Path], contextlib.AbstractAsyncContextManager[int | None]]
"""Runs a guest in the network namespace ``pod``, with its sockets in a folder named after the VMI's UID.

Yields the process id of the container ``compute``; ``None`` when there is none."""


@contextlib.asynccontextmanager
async def paused_machine(folder: Path) -> AsyncIterator[None]:
    """Run a QEMU without a guest in it, with two free slots and two CPUs."""
    async with paused_qemu(folder / VMI_UID / "qmp.sock", folder / "pod", ports=2, cpus=2):
        yield


@contextlib.asynccontextmanager
async def handler_node(
    machine: Machine = paused_machine,
    *,
    scripted_agent: bool = True,
    driver: DriverSetting = "auto",
    kube: FakeKube | None = None,
    name: str = NODE,
    pod_uid: str = POD_UID,
    monitor_deadline: float = DEADLINE,
) -> AsyncIterator[Node]:
    """Run a node with the handler on it.

    :param machine: runs the guest.
    :param scripted_agent: whether the fake agent is the guest's agent.
    :param driver: the guest driver.
    :param kube: an API server that is served already and holds its objects: for a node among others.
    :param name: the node's name.
    :param pod_uid: the UID of the launcher pod on the node.
    :param monitor_deadline: seconds for a QMP response.
    """
    owner = ["hotnic"]
    telemetry, spans = recording_telemetry("handler")
    log = structlog.get_logger()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hn-")))
        (folder / VMI_UID).mkdir()
        for end in ("node", "pod"):
            stack.enter_context(testbed.namespace(folder, end))
        compute = await stack.enter_async_context(machine(folder))
        socket = "agent.sock" if scripted_agent else "no-agent.sock"
        agent = await stack.enter_async_context(fake_agent(folder / VMI_UID / socket))
        pod_name = POD
        if kube is None:
            kube = await stack.enter_async_context(serving_kube(FakeKube()))
            kube.put(PODS, "default", POD, **msgspec.to_builtins(pod()))
        else:
            pod_name = f"virt-launcher-vm1-{name}"
        box = FakeSandbox(SANDBOX, pod_uid, name=pod_name, info=containerd_info(str(folder / "pod")))
        box.containers |= {"compute": compute} if compute else {}
        runtime = await stack.enter_async_context(serving_cri(str(folder / "cri.sock"), FakeCri([box])))
        client = await stack.enter_async_context(
            await Kube.connect(
                kubeconfig=write_kubeconfig(folder / "config", kube.url), telemetry=telemetry, user_agent="test"
            )
        )
        cri = CriClient(str(folder / "cri.sock"), telemetry)
        stack.push_async_callback(cri.close)
        pool = NetnsPool()
        stack.callback(pool.close)
        bus = MemoryBus(role="handler", node=name, telemetry=telemetry, log=log)
        recorder = EventRecorder(client, "handler", log=log, node=name)
        recording_bus = RecordingBus(bus, recorder)
        stack.push_async_callback(recording_bus.drain)
        role = CountedHandler(
            RoleContext("handler", name, client, recording_bus, recorder, telemetry, log),
            cri=cri,
            netns=pool,
            make_driver=driver_factory(
                driver,
                qmp_socket=str(folder / "{uid}" / "qmp.sock"),
                agent_socket=str(folder / "{uid}" / "agent.sock"),
                cri=cri,
                host_root="/",
                tracer=telemetry.tracer,
                deadline=monitor_deadline,
            ),
            tap_owner=0,
            is_owner=lambda: owner[0] == "hotnic",
        )
        stack.push_async_callback(role.sessions.close)
        works = (role.vmis.run, role.arriving_vmis.run, role.pods.run, role.consume_events, role.queue.run)
        tasks = [asyncio.create_task(work()) for work in works]
        await role.vmis.synced.wait()
        await role.arriving_vmis.synced.wait()
        await role.pods.synced.wait()
        yield Node(kube, runtime, bus, spans, role, agent, folder, telemetry, tasks[0], owner, name, pod_name, pod_uid)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def parts(known: dict[str, Any]) -> dict[str, Any]:
    """Return an object without its status, as arguments of ``put``."""
    meta = dict(known["metadata"])
    return {
        "namespace": meta.pop("namespace"),
        "name": meta.pop("name"),
        "metadata": meta,
        "spec": known["spec"],
    }
