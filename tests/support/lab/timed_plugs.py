"""Plugs and unplugs of one VM, one after the other, timed from the request until the objects say that they are done."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from schemas.kubernetes.objects import VMIS, VirtualMachineInstance
from services.cli.tracing.tracer import NoTraces
from services.common.kube.cache.reflector import Reflector
from services.common.kube.client import Kube
from tests.support.lab.running import SAMPLE_NAD

DEADLINE = 60.0
"""Seconds for one operation."""


class TimedPlugs:
    """The operations on one VM of the namespace ``default``; created by :func:`timed_plugs`."""

    def __init__(self, kube: Kube, vm: str) -> None:
        self._kube = kube
        self._vm = vm
        self._changed = asyncio.Event()
        self.vmis: Reflector[VirtualMachineInstance] = Reflector(
            kube,
            VMIS,
            namespace="default",
            fields=f"metadata.name={vm}",
            on_change=lambda _key, _vmi: self._changed.set(),
            log=structlog.get_logger(),
        )

    async def plug(self, interface: str) -> float:
        """Plug an interface; return the milliseconds until the VMI says that the device is in the guest's domain."""
        body = {"name": interface, "networkAttachmentDefinitionName": SAMPLE_NAD}
        return await self._request("addinterface", body, interface, plugged=True)

    async def unplug(self, interface: str) -> float:
        """Unplug an interface; return the milliseconds until the VMI does not list it any more."""
        return await self._request("removeinterface", {"name": interface}, interface, plugged=False)

    async def _request(self, verb: str, body: dict[str, str], interface: str, *, plugged: bool) -> float:
        path = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{self._vm}/{verb}"
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE):
            await self._kube.request("PUT", path, body=body)
            while self._is_plugged(interface) is not plugged:
                self._changed.clear()
                await self._changed.wait()
        return (time.monotonic() - began) * 1000

    def _is_plugged(self, interface: str) -> bool | None:
        """Return whether an interface is in spec and domain; ``None`` if it is in one of them only."""
        vmi = self.vmis.get("default", self._vm)
        assert vmi is not None
        wanted = any(item.name == interface for item in vmi.spec.interface_items())
        entries = [entry for entry in vmi.status.interfaces or () if entry.get("name") == interface]
        ready = any("domain" in str(entry.get("infoSource")) for entry in entries)
        return wanted if wanted is ready and (wanted or not entries) else None


@contextlib.asynccontextmanager
async def timed_plugs(kubeconfig: Path, vm: str) -> AsyncIterator[TimedPlugs]:
    """Watch a VM for the duration of the block."""
    async with await Kube.connect(
        kubeconfig=str(kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test-timed"
    ) as kube:
        plugs = TimedPlugs(kube, vm)
        watch = asyncio.create_task(plugs.vmis.run())
        try:
            await plugs.vmis.synced.wait()
            yield plugs
        finally:
            watch.cancel()
            await asyncio.wait([watch])
    # A TLS connection finishes its shutdown after the session is closed, and gives no signal when it is done.
    await asyncio.sleep(0.1)
