"""Running VMs to measure on, asked by plain HTTP as a client of the API would, not by the command line."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from schemas.kube import VMIS, VirtualMachineInstance
from schemas.networks import NETWORK_STATUS, parse_network_status
from services.common.kube.client import Kube
from services.common.telemetry import configure
from services.lab.guest.console import ConsoleFollower
from services.lab.layout import Guests
from tests.support.lab import SAMPLE_NAD, SAMPLE_VM, Lab, Span, running_lab

SETTLE = 1.0
"""Seconds between two operations that are timed one by one, on a machine that has come to rest."""


@dataclass(frozen=True)
class Asked:
    """A request. :ivar at: when it was sent, in seconds since the epoch. :ivar trace_id: of its operation."""

    at: float
    trace_id: str


@dataclass
class Vms:
    """Booted VMs and a client."""

    lab: Lab
    kube: Kube
    names: list[str]
    _count: int = 0

    async def console(self, vm: str) -> ConsoleFollower:
        """What the guest says of its links; after a pause, so that the next request meets a machine at rest."""
        await asyncio.sleep(SETTLE)
        return self.lab.console(await self.vmi(vm))

    async def vmi(self, vm: str) -> VirtualMachineInstance:
        """The VMI."""
        return await self.kube.get(VMIS, "default", vm)

    async def plug(self, vm: str, interface: str) -> Asked:
        """Ask for a NIC."""
        body = {"networkAttachmentDefinitionName": SAMPLE_NAD, "name": interface}
        return await self._put(vm, "addinterface", body)

    async def unplug(self, vm: str, interface: str) -> Asked:
        """Ask for its removal."""
        return await self._put(vm, "removeinterface", {"name": interface})

    async def spans(self, asked: Asked, names: set[str]) -> list[Span]:
        """The spans of an operation, once these are among them."""
        return await asyncio.to_thread(self.lab.wait_for_spans, asked.trace_id, names)

    async def until_links(self, vm: str, count: int) -> None:
        """Wait until the pod's network-status has so many secondary links, and the VMI's spec agrees."""
        deadline = time.monotonic() + 30
        while True:
            vmi = await self.vmi(vm)
            pod = await asyncio.to_thread(self.lab.pod, vmi)
            statuses = parse_network_status(pod.metadata.annotations.get(NETWORK_STATUS))
            ready = [e for e in vmi.status.interfaces or () if "domain" in str(e.get("infoSource"))]
            if len(vmi.spec.interface_items()) == len(ready) == len(statuses) == count + 1:
                return
            assert time.monotonic() < deadline, f"{vm} has not come to rest"
            await asyncio.sleep(0.1)

    async def _put(self, vm: str, verb: str, body: dict[str, str]) -> Asked:
        self._count += 1
        context = SpanContext(time.time_ns() << 32 | self._count, self._count, True, TraceFlags(TraceFlags.SAMPLED))
        path = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{vm}/{verb}"
        at = time.time()
        with use_span(NonRecordingSpan(context)):
            await self.kube.request("PUT", path, body=body)
        return Asked(at, format(context.trace_id, "032x"))


@asynccontextmanager
async def running_vms(count: int, *, guests: Guests = "qemu") -> AsyncIterator[Vms]:
    """A lab with so many booted VMs."""
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
