"""A node for the handler: a real network namespace and QEMU, a scripted API server, runtime, guest agent and bus."""

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

from schemas.events import Event
from schemas.names import pod_interface
from schemas.networks import NETWORK_STATUS, NetworkStatus, encode_network_status
from schemas.operations import Operation, encode, operation_key, operation_of
from schemas.stages import OperationKind
from services.common.cri.client import Cri
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.pool import NetnsPool
from services.common.reconcile import Attempt
from services.common.recording_bus import RecordingBus
from services.handler.guest.drivers import DriverSetting, drivers
from services.handler.guest.qmp import DEADLINE
from services.handler.role import Handler
from services.handler.sessions import Key
from tests.support import netns as testbed
from tests.support.bus import MemoryBus
from tests.support.fake_cri import FakeCri, FakeSandbox, containerd_info, serving_cri
from tests.support.guest_agent import FakeAgent, fake_agent
from tests.support.node_kube import EVENTS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.objects import NODE, POD_UID, VMI_UID, nic, pod, vmi
from tests.support.qemu import paused_qemu
from tests.support.spans import recording_telemetry

VMIS = "virtualmachineinstances"
POD = "virt-launcher-vm1-abcde"
MAC = "3e:89:92:5a:b5:a7"
IP = "10.0.0.2/24"
SANDBOX = "sandbox-1"


class CountedHandler(Handler):
    """The role, which also tells when it has looked at something."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.looks = 0
        self.looked = asyncio.Condition()

    async def reconcile(self, key: Key, attempt: Attempt) -> None:
        try:
            await super().reconcile(key, attempt)
        finally:
            self.looks += 1
            async with self.looked:
                self.looked.notify_all()


@dataclass
class Node:
    """The node and what runs on it."""

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
        return self.folder / "pod"

    def attach_pod_nic(self, interface: str, *ips: str, link: str | None = None) -> None:
        """What CNI does: a veth into the pod, with addresses. ``link``: its name, where it is not the hashed one."""
        name = link or pod_interface(interface)
        outer = f"v{pod_interface(interface)[3:11]}"
        testbed.veth(self.netns, name, self.folder / "node", outer)
        testbed.ip(self.netns, "link", "set", name, "address", MAC, "up")
        for ip in ips:
            testbed.ip(self.netns, "address", "add", ip, "dev", name)

    def show_network_status(
        self, *interfaces: str, link: str | None = None, **annotations: str | None
    ) -> dict[str, Any]:
        """What networks writes; gives the pod as patched. ``link``: as of :meth:`attach_pod_nic`."""
        entries = [NetworkStatus(name="default/net1", interface=link or pod_interface(i), mac=MAC) for i in interfaces]
        return self.kube.annotate(
            PODS, "default", self.pod, {NETWORK_STATUS: encode_network_status(entries), **annotations}
        )

    def wish(
        self,
        *interfaces: str,
        absent: tuple[str, ...] = (),
        operations: tuple[Operation, ...] = (),
        states: dict[str, str] | None = None,
        **devices: Any,
    ) -> None:
        """The VMI as the api leaves it, with ``state`` of interfaces as given, and further fields of its devices."""
        annotations = {operation_key(one.interface): encode(one) for one in operations}
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
                "annotations": {**known.get("metadata", {}).get("annotations", {}), **annotations},
            },
            spec=document["spec"],
            status=known.get("status") or document["status"],
        )

    def status(self, interface: str) -> dict[str, Any]:
        """The entry of an interface in the VMI's status."""
        entries = self.kube.objects[VMIS, "default", "vm1"]["status"].get("interfaces") or []
        return next((entry for entry in entries if entry["name"] == interface), {})

    def operation(self, interface: str) -> Operation | None:
        """The operation that the VMI carries."""
        return operation_of(self.kube.annotations(VMIS, "default", "vm1"), interface)

    async def until_released(self, interface: str, *, timeout: float = 15) -> Operation:
        """Wait until the VMI says that the NIC is released."""

        def done() -> bool:
            found = self.operation(interface)
            return found is not None and found.released == self.pod_uid

        await self.kube.until(done, timeout=timeout)
        found = self.operation(interface)
        assert found is not None
        return found

    def links(self) -> set[str]:
        """The links in the pod."""
        return {link["ifname"] for link in json.loads(testbed.ip(self.netns, "-json", "link"))}

    def served(self) -> set[str]:
        """The taps in the pod that an address server listens on."""
        names = {link["ifindex"]: link["ifname"] for link in json.loads(testbed.ip(self.netns, "-json", "link"))}
        table = testbed.inside(self.netns, lambda: Path("/proc/thread-self/net/packet").read_text())
        return {names.get(int(line.split()[4]), "a link that is gone") for line in table.splitlines()[1:]}

    def warnings(self) -> list[str]:
        """The reasons of the Events that warn."""
        return [event["reason"] for event in self.kube.of(EVENTS) if event["type"] == "Warning"]

    async def until_published(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        async with asyncio.timeout(10):
            await self.bus.broker.until(lambda: condition(self.bus.published))
        return self.bus.published

    async def until_status(self, interface: str, *tokens: str) -> None:
        await self.kube.until(lambda: self.status(interface).get("infoSource") == ", ".join(tokens), timeout=10)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds at the end of a look."""
        async with asyncio.timeout(10), self.role.looked:
            await self.role.looked.wait_for(condition)

    async def settled(self) -> None:
        """Wait until the VMI was looked at once more: one look may be under way already, so twice."""
        for _ in range(2):
            before = self.role.looks
            self.role.queue.add(("default", "vm1"), source="watch")
            await self.until(lambda before=before: self.role.looks > before)  # type: ignore[misc]


def operation(interface: str, traceparent: str | None = None, kind: OperationKind = OperationKind.PLUG) -> Operation:
    """An operation as the api writes it."""
    return Operation(id=f"op-{kind}-{interface}", kind=kind, interface=interface, traceparent=traceparent)


Machine = Callable[[Path], contextlib.AbstractAsyncContextManager[int | None]]
"""Runs a guest with its sockets in a folder named like the VMI's UID, in the network namespace ``pod``.

Gives the pid of the container ``compute``, where there is one."""


@contextlib.asynccontextmanager
async def paused_machine(folder: Path) -> AsyncIterator[None]:
    """A QEMU without a guest, with two slots and two CPUs, and an agent as scripted."""
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
    """The node, with the role running on it.

    :param kube: one that is served already, and holds what it is to hold: for a node beside others.
    :param pod_uid: of the launcher pod that runs on it. :param monitor_deadline: seconds for an answer of QEMU's.
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
        cri = Cri(str(folder / "cri.sock"), telemetry)
        stack.push_async_callback(cri.close)
        pool = NetnsPool()
        stack.callback(pool.close)
        bus = MemoryBus(role="handler", node=name, telemetry=telemetry, log=log)
        announcing = RecordingBus(bus, EventRecorder(client, "handler", log=log, node=name))
        stack.push_async_callback(announcing.drain)
        role = CountedHandler(
            client,
            announcing,
            cri,
            pool,
            telemetry,
            log,
            node=name,
            drive=drivers(
                driver,
                qmp_socket=str(folder / "{uid}" / "qmp.sock"),
                agent_socket=str(folder / "{uid}" / "agent.sock"),
                cri=cri,
                host_root="/",
                tracer=telemetry.tracer,
                deadline=monitor_deadline,
            ),
            tap_owner=0,
            acting=lambda: owner[0] == "hotnic",
        )
        stack.push_async_callback(role.sessions.close)
        tasks = [asyncio.create_task(work()) for work in (role.vmis.run, role.pods.run, role.listen, role.queue.run)]
        await role.vmis.synced.wait()
        await role.pods.synced.wait()
        yield Node(kube, runtime, bus, spans, role, agent, folder, telemetry, tasks[0], owner, name, pod_name, pod_uid)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def parts(known: dict[str, Any]) -> dict[str, Any]:
    """An object without its status, as arguments of ``put``."""
    meta = dict(known["metadata"])
    return {
        "namespace": meta.pop("namespace"),
        "name": meta.pop("name"),
        "metadata": meta,
        "spec": known["spec"],
    }
