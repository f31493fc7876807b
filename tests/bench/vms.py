"""Running VMs for benchmarks. Requests are plain HTTP as of an API client, without the command line."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from lab.guest.console import ConsoleFollower
from lab.layout import GuestKind
from schemas.kubernetes.networks import NETWORK_STATUS, parse_network_status
from schemas.kubernetes.objects import VMIS, VirtualMachineInstance
from services.common.kube.client import Kube
from services.common.telemetry import configure
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, Lab, Span, running_lab

SETTLE = 1.0
"""Seconds between two operations that are measured one by one, so that the machine is idle again."""


@dataclass(frozen=True)
class SentRequest:
    """A sent request.

    :ivar at: time of the request in seconds since the epoch.
    :ivar trace_id: trace of its operation.
    """

    at: float
    trace_id: str


@dataclass
class Vms:
    """Booted VMs and a client of the API."""

    lab: Lab
    kube: Kube
    names: list[str]
    _count: int = 0

    async def console(self, vm: str) -> ConsoleFollower:
        """Return a follower of the guest's console, after a pause in which the machine becomes idle."""
        await asyncio.sleep(SETTLE)
        return self.lab.console(await self.vmi(vm))

    async def vmi(self, vm: str) -> VirtualMachineInstance:
        """Return the VMI."""
        return await self.kube.get(VMIS, "default", vm)

    async def plug(self, vm: str, interface: str) -> SentRequest:
        """Request a plug."""
        body = {"networkAttachmentDefinitionName": SAMPLE_NAD, "name": interface}
        return await self._put(vm, "addinterface", body)

    async def unplug(self, vm: str, interface: str) -> SentRequest:
        """Request an unplug."""
        return await self._put(vm, "removeinterface", {"name": interface})

    async def spans(self, request: SentRequest, names: set[str]) -> list[Span]:
        """Return the spans of an operation, once spans with these names are among them."""
        return await asyncio.to_thread(self.lab.wait_for_spans, request.trace_id, names)

    async def until_links(self, vm: str, count: int) -> None:
        """Wait until the pod's network-status has ``count`` secondary attachments, and the VMI as many interfaces."""
        deadline = time.monotonic() + 30
        while True:
            vmi = await self.vmi(vm)
            pod = await asyncio.to_thread(self.lab.pod, vmi)
            statuses = parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))
            ready = [e for e in vmi.status.interfaces or () if "domain" in str(e.get("infoSource"))]
            if len(vmi.spec.interface_items()) == len(ready) == len(statuses) == count + 1:
                return
            assert time.monotonic() < deadline, f"{vm} does not reach {count} secondary interfaces"
            await asyncio.sleep(0.1)

    async def _put(self, vm: str, verb: str, body: dict[str, str]) -> SentRequest:
        self._count += 1
        context = SpanContext(time.time_ns() << 32 | self._count, self._count, True, TraceFlags(TraceFlags.SAMPLED))
        path = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{vm}/{verb}"
        at = time.time()
        with use_span(NonRecordingSpan(context)):
            await self.kube.request("PUT", path, body=body)
        return SentRequest(at, format(context.trace_id, "032x"))


@asynccontextmanager
async def running_vms(count: int, *, guests: GuestKind = "qemu") -> AsyncIterator[Vms]:
    """Run a lab with ``count`` booted VMs."""
    with (
        tempfile.TemporaryDirectory(prefix="hotnic-bench-") as directory,
        running_lab(Path(directory), guests=guests) as lab,
    ):
        names = [SAMPLE_VM, *(f"vm{i}" for i in range(2, count + 1))]
        for vm in names[1:]:
            lab.boot(vm, guest=guests)
        await asyncio.sleep(3)
        async with await Kube.connect(
            kubeconfig=str(lab.layout.kubeconfig), telemetry=configure("bench", environ={}), user_agent="bench"
        ) as kube:
            yield Vms(lab, kube, names)
