"""A test rig for crashes: a lab whose processes are killed, requests with retries, and waits for a consistent state.

It starts no process for a request or a check: requests are sent from this process, and the checks run in the process
of :mod:`tests.support.lab.inspector` inside the lab. Its processes are those of :mod:`tests.support.lab.processes`.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from lab.failpoints import points
from lab.layout import ROLES
from schemas.kubernetes.objects import CREATED_BY_LABEL, PODS, VMIS, VMS, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import pod_nic_key
from services.cli.operations.hotplug_status import NO_NATS
from services.cli.tracing.tracer import NoTraces
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound, PatchTestFailed
from tests.support.bus.event_copies import copied_events
from tests.support.lab.inspector import Inspector
from tests.support.lab.processes import TIMEOUT, LabProcesses
from tests.support.lab.running import SAMPLE_NAD, Lab
from tests.support.lab.spec_patches import add_interface_patch, set_absent_patch

SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default"
NAMESPACE = "default"
TEMPLATE = "/spec/template/spec"
TEMPLATE_WAYS = {points.PLUG_VM, points.UNPLUG_VM, points.PLUG_EDIT, points.UNPLUG_EDIT}
UNPLUGS = {points.PLUG: points.UNPLUG, points.PLUG_VM: points.UNPLUG_VM, points.PLUG_EDIT: points.UNPLUG_EDIT}
"""For each way to plug, the way to unplug that removes the interface everywhere."""


class Rig(LabProcesses):
    """A lab with a client of its API server and an inspector; created by :func:`rigged`."""

    def __init__(self, lab: Lab, kube: Kube, inspector: Inspector) -> None:
        super().__init__(lab, inspector)
        self.kube = kube
        self._without_nats = False

    # ---- requests

    async def request(self, way: str, vm: str, interface: str) -> str:
        """Request a plug or unplug and retry while the server is unavailable.

        :returns: ``accepted``; the reason of a refusal; or ``already done`` when a retry is refused because the
            interface is in the requested state. In that case the first request may have been applied or not.
        """
        if way in (points.PLUG_EDIT, points.UNPLUG_EDIT, points.REFUSED):
            return await self._edit(way, vm, interface)
        plug = way in (points.PLUG, points.PLUG_VM)
        target = "virtualmachines" if way in TEMPLATE_WAYS else "virtualmachineinstances"
        path = f"{SUBRESOURCES}/{target}/{vm}/{'addinterface' if plug else 'removeinterface'}"
        body = {"name": interface} | ({"networkAttachmentDefinitionName": SAMPLE_NAD} if plug else {})
        repeated = False
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    await self.kube.request("PUT", path, body=body)
                except KubeError as error:
                    if error.status in (0, 500, 502, 503, 504):
                        repeated = True
                        await asyncio.sleep(0.05)
                        continue
                    if repeated and error.status == (409 if plug else 404):
                        return "already done"
                    return f"{error.status} {error.message}"
                return "accepted"

    @contextlib.asynccontextmanager
    async def requesting(self, way: str, vm: str, interface: str) -> AsyncIterator[None]:
        """Send a request concurrently with the block; at its end the request must have been accepted."""
        request_task = asyncio.create_task(self.request(way, vm, interface))
        try:
            yield
            assert await request_task in ("accepted", "already done")
        finally:
            request_task.cancel()
            await asyncio.wait({request_task})

    async def _edit(self, way: str, vm: str, interface: str) -> str:
        """Change the spec of a VM's template, or of a VMI, as `kubectl edit` does."""
        while True:
            try:
                if way == points.REFUSED:
                    ops = add_interface_patch("/spec", {"name": interface, "bridge": {}, "model": "e1000"})
                    await self.kube.json_patch(VMIS, NAMESPACE, vm, ops)
                else:
                    spec = (await self.kube.get(VMS, NAMESPACE, vm)).spec.template.spec
                    names = [str(item["name"]) for item in spec.domain.devices.interfaces or ()]
                    if way == points.UNPLUG_EDIT:
                        ops = set_absent_patch(TEMPLATE, names, interface)
                    else:
                        ops = add_interface_patch(TEMPLATE, {"name": interface, "bridge": {}})
                    await self.kube.json_patch(VMS, NAMESPACE, vm, ops)
            except PatchTestFailed:
                continue
            except KubeError as error:
                if error.status not in (0, 500, 502, 503, 504):
                    raise
                await asyncio.sleep(0.05)
                continue
            return "accepted"

    async def attach_unrecorded(self, vm: str, interface: str) -> None:
        """Attach an interface without a pod NIC record, as another controller would.

        hotnic's networks role attaches it; then the record is removed. The handler must be stopped.
        """
        assert await self.request(points.PLUG, vm, interface) == "accepted"
        async with asyncio.timeout(TIMEOUT):
            while True:
                vmi = await self.vmi(vm)
                assert vmi is not None
                pods = await self.kube.list(PODS, NAMESPACE, labels=f"{CREATED_BY_LABEL}={vmi.metadata.uid}")
                (pod,) = pods.items
                if pod_nic_key(interface) in pod.metadata.annotations:
                    break
                await asyncio.sleep(0.02)
        body = {"metadata": {"annotations": {pod_nic_key(interface): None}}}
        await self.kube.merge_patch(PODS, NAMESPACE, pod.metadata.name, body)

    async def set_running(self, vm: str, running: bool) -> None:
        """Start or stop a VM."""
        while True:
            try:
                await self.kube.merge_patch(VMS, NAMESPACE, vm, {"spec": {"running": running}})
            except KubeError as error:
                if error.status not in (0, 500, 502, 503, 504):
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def wait_power_state(self, vm: str, running: bool) -> None:
        """Wait until a VM runs, or its VMI is deleted."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                with contextlib.suppress(KubeError):
                    vmi = await self.vmi(vm)
                    if (vmi is not None and _ready(vmi)) if running else vmi is None:
                        return
                await asyncio.sleep(0.05)

    async def delete_vm(self, vm: str) -> None:
        """Delete a VM and wait until its VMI is deleted."""
        await self.kube.delete(VMS, NAMESPACE, vm)
        await self.wait_power_state(vm, running=False)

    # ---- observed state

    async def vm(self, name: str) -> VirtualMachine:
        """Return a VM."""
        return await self.kube.get(VMS, NAMESPACE, name)

    async def vmi(self, name: str) -> VirtualMachineInstance | None:
        """Return a VMI; ``None`` when it does not exist."""
        try:
            return await self.kube.get(VMIS, NAMESPACE, name)
        except NotFound:
            return None

    async def examine(self) -> dict[str, Any]:
        """Run all checks once and return the inspector's report."""
        return await self.ask_inspector(examine=True)

    async def wait_consistent(self, desired: Mapping[str, set[str] | None], timeout: float = TIMEOUT) -> dict[str, Any]:
        """Wait until each VM has exactly the desired interfaces and the checks have no findings; return the report.

        :param desired: secondary interfaces by VM; ``None`` for a stopped VM.
        """
        started = time.monotonic()
        while True:
            problem, report = await self._inconsistency(desired)
            if not problem:
                return report
            waited = time.monotonic() - started
            assert waited < timeout, (
                f"after {waited:.0f} s: {problem}\n{json.dumps(report, indent=2)}\n{await self._log_tails()}"
            )
            await asyncio.sleep(0.05)

    async def _inconsistency(self, desired: Mapping[str, set[str] | None]) -> tuple[str, dict[str, Any]]:
        report: dict[str, Any] = {}
        try:
            for vm, names in desired.items():
                vmi = await self.vmi(vm)
                if names is None:
                    if vmi is not None:
                        return f"{vm} still runs", report
                    continue
                if vmi is None or vmi.metadata.deletion_timestamp or not _ready(vmi):
                    return f"{vm} does not run", report
                found = [item["name"] for item in vmi.spec.domain.devices.interfaces or () if item["name"] != "default"]
                if sorted(found) != sorted(names):
                    return f"{vm} has {sorted(found)} in its spec, not {sorted(names)}", report
            report = await self.examine()
        except KubeError as error:
            return f"the API server does not answer: {error}", report
        if "error" in report:
            return str(report["error"]), report
        for vm, names in desired.items():
            devices = sorted(report["devices"].get(vm, ()))
            if names is not None and devices != sorted({"default", *names}):
                return f"the guest of {vm} has the devices {devices}, not {sorted(names)}", report
        for part in ("inProgress", "findings", "notChecked"):
            # Without NATS, the stored hot-plug status is not checked.
            problems = [one for one in report[part] if not (self._without_nats and NO_NATS in one)]
            if problems:
                return f"{part}: {problems[0]}", report
        return "", report

    async def _log_tails(self) -> str:
        """Return the state and the last log lines of the processes, for the message of a failed test."""
        status = await self.control(verb="status")
        states = {one["name"]: one["state"] for one in status["components"]}
        tails = [
            f"--- {log.stem}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            for log in sorted(self.lab.layout.logs.glob("*.log"))
            if log.stem in (*ROLES, "node", "apiserver")
        ]
        return "\n".join([str(states), *tails])

    @contextlib.asynccontextmanager
    async def delivering(self, times: int) -> AsyncIterator[None]:
        """Have every event delivered twice during the block, or never: NATS is then stopped until the end of it."""
        if times:
            async with copied_events(self.lab.unrestricted_nats) as copies:
                yield
            assert copies
            return
        await self.stop("nats")
        self._without_nats = True
        try:
            yield
        finally:
            await self.start("nats")
            self._without_nats = False


@contextlib.asynccontextmanager
async def rigged(lab: Lab, inspector: Inspector) -> AsyncIterator[Rig]:
    """Create a rig for one test, and disarm all failpoints at its end."""
    async with await Kube.connect(
        kubeconfig=str(lab.layout.kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test"
    ) as kube:
        rig = Rig(lab, kube, inspector)
        rig.reset_passed()
        try:
            yield rig
        finally:
            rig.disarm()


def _ready(vmi: VirtualMachineInstance) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in vmi.status.conditions)


def nats_data_dir(lab: Lab) -> Path:
    """Return the directory of the lab's NATS streams."""
    return lab.layout.state / "nats"
