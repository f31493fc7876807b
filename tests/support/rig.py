"""A lab whose processes are made to die: requests that are repeated until they are answered, and waiting for peace.

What a NIC's whole life asks of a test, without processes of its own for each look or request: the API is spoken to
from here, the doctor (:mod:`tests.support.inspector`) stays inside the lab. How a role is made to die at a point:
:mod:`services.common.faults`.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from schemas.kube import CREATED_BY_LABEL, PODS, VMIS, VMS, VirtualMachine, VirtualMachineInstance
from schemas.operations import pod_nic_key
from services.cli.tracing import NoTraces
from services.common import faults
from services.common.domain.operations import ABSENT
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError, NotFound, PatchTestFailed
from services.lab import control
from tests.support.inspector import Inspector
from tests.support.lab import SAMPLE_NAD, Lab

SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default"
NAMESPACE = "default"
TEMPLATE = "/spec/template/spec"
PATIENCE = 40.0
"""Seconds within which everything has to agree again. A resync comes after a minute: waiting for one is a failure."""
BY_TEMPLATE = {faults.PLUG_VM, faults.UNPLUG_VM, faults.PLUG_EDIT, faults.UNPLUG_EDIT}
UNPLUGS = {faults.PLUG: faults.UNPLUG, faults.PLUG_VM: faults.UNPLUG_VM, faults.PLUG_EDIT: faults.UNPLUG_EDIT}
"""For each way to plug the way to unplug that leaves nothing."""


class Rig:
    """A lab, one connection to its API, and the inspector inside. Made by :func:`rigged`."""

    def __init__(self, lab: Lab, kube: Kube, inspector: Inspector) -> None:
        self.lab = lab
        self.kube = kube
        self.faults = lab.faults
        self._inspector = inspector

    # ---- requests

    async def request(self, way: str, vm: str, interface: str) -> str:
        """Ask for a plug or unplug, again while nobody answers; returns ``accepted``, or the reason of a refusal.

        A repeated request that meets a NIC as the first one would have left it is ``met``: whether that was its effect
        cannot be told from here.
        """
        if way in (faults.PLUG_EDIT, faults.UNPLUG_EDIT, faults.REFUSED):
            return await self._edit(way, vm, interface)
        plug = way in (faults.PLUG, faults.PLUG_VM)
        target = "virtualmachines" if way in BY_TEMPLATE else "virtualmachineinstances"
        path = f"{SUBRESOURCES}/{target}/{vm}/{'addinterface' if plug else 'removeinterface'}"
        body = {"name": interface} | ({"networkAttachmentDefinitionName": SAMPLE_NAD} if plug else {})
        repeated = False
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await self.kube.request("PUT", path, body=body)
                except KubeError as error:
                    if error.status in (0, 500, 502, 503, 504):
                        repeated = True
                        await asyncio.sleep(0.05)
                        continue
                    if repeated and error.status == (409 if plug else 404):
                        return "met"
                    return f"{error.status} {error.message}"
                return "accepted"

    @contextlib.asynccontextmanager
    async def asking(self, way: str, vm: str, interface: str) -> AsyncIterator[None]:
        """Ask, while something else is done; in the end the request has been accepted."""
        asked = asyncio.create_task(self.request(way, vm, interface))
        try:
            yield
            assert await asked in ("accepted", "met")
        finally:
            asked.cancel()
            await asyncio.wait({asked})

    async def _edit(self, way: str, vm: str, interface: str) -> str:
        """Change a spec as `kubectl edit` does: the VM's template, or that of the VMI."""
        while True:
            try:
                if way == faults.REFUSED:
                    ops = _added("/spec", {"name": interface, "bridge": {}, "model": "e1000"})
                    await self.kube.json_patch(VMIS, NAMESPACE, vm, ops)
                else:
                    spec = (await self.kube.get(VMS, NAMESPACE, vm)).spec.template.spec
                    names = [str(item["name"]) for item in spec.domain.devices.interfaces or ()]
                    if way == faults.UNPLUG_EDIT:
                        ops = _absent(TEMPLATE, names, interface)
                    else:
                        ops = _added(TEMPLATE, {"name": interface, "bridge": {}})
                    await self.kube.json_patch(VMS, NAMESPACE, vm, ops)
            except PatchTestFailed:
                continue
            except KubeError as error:
                if error.status not in (0, 500, 502, 503, 504):
                    raise
                await asyncio.sleep(0.05)
                continue
            return "accepted"

    async def attached_by_another(self, vm: str, interface: str) -> None:
        """Have a NIC attached as far as Multus goes, and take away what only hotnic's networks role writes with it.

        The handler must not run meanwhile.
        """
        assert await self.request(faults.PLUG, vm, interface) == "accepted"
        async with asyncio.timeout(PATIENCE):
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

    async def run(self, vm: str, running: bool) -> None:
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

    async def settled(self, vm: str, running: bool) -> None:
        """Wait until a VM runs, or is gone."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(KubeError):
                    vmi = await self.vmi(vm)
                    if (vmi is not None and _ready(vmi)) if running else vmi is None:
                        return
                await asyncio.sleep(0.05)

    async def emptied(self, vm: str) -> None:
        """Delete a VM, and wait until nothing of it is there."""
        await self.kube.delete(VMS, NAMESPACE, vm)
        await self.settled(vm, running=False)

    # ---- what is there

    async def vm(self, name: str) -> VirtualMachine:
        """A VM."""
        return await self.kube.get(VMS, NAMESPACE, name)

    async def vmi(self, name: str) -> VirtualMachineInstance | None:
        """A VMI; ``None`` where there is none."""
        try:
            return await self.kube.get(VMIS, NAMESPACE, name)
        except NotFound:
            return None

    async def look(self) -> dict[str, Any]:
        """One look of the inspector."""
        return await asyncio.to_thread(self._inspector.ask, look=True)

    async def peace(self, wanted: Mapping[str, set[str] | None], timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until each of these VMs has exactly the cards that are wanted, and nothing in the lab disagrees.

        :param wanted: secondary interfaces by VM; ``None`` for one that does not run.
        """
        began = time.monotonic()
        while True:
            why, seen = await self._unrest(wanted)
            if not why:
                return seen
            waited = time.monotonic() - began
            assert waited < timeout, f"after {waited:.0f} s: {why}\n{json.dumps(seen, indent=2)}\n{await self._told()}"
            await asyncio.sleep(0.05)

    async def _unrest(self, wanted: Mapping[str, set[str] | None]) -> tuple[str, dict[str, Any]]:
        seen: dict[str, Any] = {}
        try:
            for vm, names in wanted.items():
                vmi = await self.vmi(vm)
                if names is None:
                    if vmi is not None:
                        return f"{vm} still runs", seen
                    continue
                if vmi is None or vmi.metadata.deletion_timestamp or not _ready(vmi):
                    return f"{vm} does not run", seen
                found = [item["name"] for item in vmi.spec.domain.devices.interfaces or () if item["name"] != "default"]
                if sorted(found) != sorted(names):
                    return f"{vm} has {sorted(found)} in its spec, not {sorted(names)}", seen
            seen = await self.look()
        except KubeError as error:
            return f"the API server does not answer: {error}", seen
        if "error" in seen:
            return str(seen["error"]), seen
        for vm, names in wanted.items():
            cards = sorted(seen["cards"].get(vm, ()))
            if names is not None and cards != sorted({"default", *names}):
                return f"the guest of {vm} has the cards {cards}, not {sorted(names)}", seen
        for what in ("busy", "disagreements", "notSeen"):
            if seen[what]:
                return f"{what}: {seen[what][0]}", seen
        return "", seen

    async def _told(self) -> str:
        """The last lines of every process, for who reads of a failure."""
        status = await self._control(verb="status")
        states = {one["name"]: one["state"] for one in status["components"]}
        tails = [
            f"--- {log.stem}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            for log in sorted(self.lab.layout.logs.glob("*.log"))
            if log.stem in (*faults_of_roles(), "node", "apiserver")
        ]
        return "\n".join([str(states), *tails])

    # ---- dying

    def arm(self, point: str, victim: int | None = None) -> None:
        """Have a role die at a point, or kill another process of the lab there."""
        (self.faults / point).write_text("" if victim is None else str(victim))

    def disarm(self) -> None:
        """Take back what was armed and what is said about deliveries."""
        for file in self.faults.iterdir():
            if file.name != faults.PASSED:
                file.unlink()

    def passed(self) -> list[str]:
        """Every point that was passed since :meth:`count_anew`, in order."""
        return (self.faults / faults.PASSED).read_text().split()

    async def all_passed(self, points: set[str], timeout: float = 5.0) -> None:
        """Wait until each of these points was passed."""
        await until(lambda: points <= set(self.passed()), timeout, lambda: f"not passed: {points - set(self.passed())}")

    def count_anew(self) -> None:
        """Forget what was passed."""
        (self.faults / faults.PASSED).write_text("")

    def deliver(self, times: int) -> None:
        """Have every event handed over so many times."""
        (self.faults / faults.DELIVERIES).write_text(str(times))

    async def fired(self, point: str, timeout: float = PATIENCE) -> None:
        """Wait until an armed point was reached."""
        await until(lambda: not (self.faults / point).exists(), timeout, lambda: f"{point} is not reached")

    async def died(self, component: str, timeout: float = 10.0) -> None:
        """Wait until a process has ended by SIGKILL."""
        deadline = time.monotonic() + timeout
        while True:
            one = await self.component(component)
            if one["state"] == "exited":
                assert one["code"] == -9, one
                return
            assert time.monotonic() < deadline, one
            await asyncio.sleep(0.01)

    async def kill(self, component: str) -> None:
        """End a process by SIGKILL."""
        await asyncio.to_thread(self._inspector.ask, kill=(await self.component(component))["pid"])
        await self.died(component)

    async def start(self, component: str) -> None:
        """Start a process that has ended, and wait until it is ready."""
        answer = await self._control(verb="start", component=component)
        assert answer["ok"], answer

    async def begin(self, component: str) -> None:
        """Start a process, whether or not it lives to be ready."""
        await self._control(verb="start", component=component)

    async def stop(self, component: str) -> None:
        """Stop a process in order."""
        answer = await self._control(verb="stop", component=component)
        assert answer["ok"], answer

    async def component(self, name: str) -> dict[str, Any]:
        """What the lab says of a process."""
        status = await self._control(verb="status")
        (found,) = [one for one in status["components"] if one["name"] == name]
        return dict(found)

    async def _control(self, **message: Any) -> dict[str, Any]:
        socket = self.lab.layout.control_socket
        answers = await asyncio.to_thread(lambda: list(control.request(socket, message, 60.0)))
        return answers[-1]


@contextlib.asynccontextmanager
async def rigged(lab: Lab, inspector: Inspector) -> AsyncIterator[Rig]:
    """A rig for one test; what it armed is disarmed at the end."""
    async with await Kube.connect(
        kubeconfig=str(lab.layout.kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test"
    ) as kube:
        rig = Rig(lab, kube, inspector)
        rig.count_anew()
        try:
            yield rig
        finally:
            rig.disarm()


def faults_of_roles() -> list[str]:
    """The roles that have fault points."""
    return sorted({name.partition(".")[0] for name in faults.STEPS})


async def until(true: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, otherwise()
        await asyncio.sleep(0.005)


def _added(at: str, item: dict[str, Any]) -> list[dict[str, Any]]:
    """The patch that adds an interface to a spec."""
    network = {"name": item["name"], "multus": {"networkName": SAMPLE_NAD}}
    return [
        {"op": "add", "path": f"{at}/domain/devices/interfaces/-", "value": item},
        {"op": "add", "path": f"{at}/networks/-", "value": network},
    ]


def _absent(at: str, names: list[str], interface: str) -> list[dict[str, Any]]:
    """The patch that marks an interface of a spec as absent."""
    one = f"{at}/domain/devices/interfaces/{names.index(interface)}"
    return [
        {"op": "test", "path": f"{one}/name", "value": interface},
        {"op": "add", "path": f"{one}/state", "value": ABSENT},
    ]


def _ready(vmi: VirtualMachineInstance) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in vmi.status.conditions)


def data_of(lab: Lab) -> Path:
    """Where the lab's nats-server keeps its streams."""
    return lab.layout.state / "nats"
