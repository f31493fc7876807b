"""A random sequence of operations on VMs (plug, unplug, edit, stop, start, kill a role) with the expected end state.

The seed determines the requests. Whether a request is refused depends on the progress of earlier ones, so the expected
state (:class:`WalkedVm`) is updated from the responses. Next: `tests/e2e/test_random_walk.py`.
"""

import asyncio
import random
from dataclasses import dataclass, field

from lab.failpoints import points
from lab.layout import ROLES
from services.common.domain.operations import ABSENT
from tests.support.lab.rig import Rig

NAMES = ("red", "green", "blue", "white")
"""Only a few, so that requests often meet an operation in progress on the same name."""

WAYS = {
    points.PLUG: 6,
    points.UNPLUG: 4,
    points.PLUG_VM: 4,
    points.UNPLUG_VM: 4,
    points.PLUG_EDIT: 2,
    points.UNPLUG_EDIT: 2,
    "stop": 1,
    "start": 2,
    "kill": 2,
}
"""The operations with their relative frequencies."""


@dataclass
class WalkedVm:
    """One VM with its expected state.

    :ivar template: interfaces of the template.
    :ivar running: interfaces of the VMI; ``None`` while it is stopped.
    """

    name: str
    template: set[str] = field(default_factory=set)
    running: set[str] | None = field(default_factory=set)


class RandomWalk:
    """A random sequence in progress.

    :ivar log: the operations with their responses, in order.
    """

    def __init__(self, rig: Rig, vms: list[str], seed: str) -> None:
        self._rig = rig
        self._rng = random.Random(seed)
        self.vms = [WalkedVm(vm) for vm in vms]
        self.log: list[str] = []
        self._restarts: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        """Do one operation and wait for its response only."""
        rng, ways = self._rng, list(WAYS)
        way = rng.choices(ways, [WAYS[way] for way in ways])[0]
        vm, name, role = rng.choice(self.vms), rng.choice(NAMES), rng.choice(ROLES)
        if way == "kill":
            await self._kill(role)
            self.log.append(f"kill {role}")
        elif way in ("stop", "start"):
            self.log.append(f"{way} {vm.name}")
            await self._run(vm, way == "start")
        else:
            answer = await self._request(way, vm, name)
            self.log.append(f"{way} {vm.name}/{name}: {answer[:60]}")

    async def wait_consistent(self) -> None:
        """Wait until all VMs have their expected state.

        :raises AssertionError: they do not have it in time; the message has the log of operations.
        """
        try:
            await asyncio.gather(*self._restarts)
            await self._rig.wait_consistent({vm.name: vm.running for vm in self.vms})
            for vm in self.vms:
                found = await self._in_template(vm.name)
                assert found == dict.fromkeys(vm.template), f"template of {vm.name}: {found}"
        except AssertionError as error:
            log = "\n".join(f"{number:4} {line}" for number, line in enumerate(self.log, 1))
            raise AssertionError(f"{error}\noperations:\n{log}") from None

    async def _kill(self, role: str) -> None:
        # Wait for restarts: the lab's status does not distinguish a process that is being started from a running one.
        await asyncio.gather(*self._restarts)
        await self._rig.kill(role)
        task = asyncio.create_task(self._rig.start(role))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _run(self, vm: WalkedVm, running: bool) -> None:
        if (vm.running is not None) is running:
            return
        await self._rig.set_running(vm.name, running)
        vm.running = set(vm.template) if running else None
        # Starting a VM that still stops, or the reverse, would test the cluster instead of hotnic.
        await self._rig.wait_power_state(vm.name, running)

    async def _request(self, way: str, vm: WalkedVm, name: str) -> str:
        if way in (points.PLUG_EDIT, points.UNPLUG_EDIT) and not await self._may_edit(way, vm, name):
            return "not now"
        answer = await self._rig.request(way, vm.name, name)
        if answer == "accepted":
            plug = way in (points.PLUG, points.PLUG_VM, points.PLUG_EDIT)
            persist = way not in (points.PLUG, points.UNPLUG)
            for names in (vm.running, vm.template if persist else None):
                if names is not None:
                    (names.add if plug else names.discard)(name)
        elif answer == "already done":
            await self._expect_actual(vm, name)
        return answer

    async def _may_edit(self, way: str, vm: WalkedVm, name: str) -> bool:
        """Return whether an edit has a predictable result: no operation on this name is in progress."""
        in_template, vmi = await self._in_template(vm.name), await self._rig.vmi(vm.name)
        if way == points.UNPLUG_EDIT:
            return name in in_template and in_template[name] is None
        listed = vmi is not None and any(interface.name == name for interface in vmi.spec.interface_items())
        return name not in in_template and not listed

    async def _expect_actual(self, vm: WalkedVm, name: str) -> None:
        """Expect the current state: it is unknown whether the first request or its retry was applied."""
        in_template, vmi = await self._in_template(vm.name), await self._rig.vmi(vm.name)
        listed = name in in_template and in_template[name] is None
        (vm.template.add if listed else vm.template.discard)(name)
        if vm.running is not None and vmi is not None:
            states = {interface.name: interface.state for interface in vmi.spec.interface_items()}
            there = name in states and states[name] != ABSENT and in_template.get(name) != ABSENT
            (vm.running.add if there else vm.running.discard)(name)

    async def _in_template(self, vm: str) -> dict[str, str | None]:
        """Return the secondary interfaces of a template with their states."""
        spec = (await self._rig.vm(vm)).spec.template.spec
        return {one.name: one.state or None for one in spec.interface_items() if one.name != "default"}
