"""A random walk over VMs: plugs, unplugs, edits, stops, starts and dying roles, and what is to come of them.

The walk is a function of its seed as far as requests go; whether one is refused depends on how far the earlier ones
have come, so the expectation (:class:`Walker.template`, :class:`Walker.running`) follows the answers.
Next: `tests/e2e/test_random_walk.py`.
"""

import asyncio
import random
from dataclasses import dataclass, field

from services.common import faults
from services.common.domain.operations import ABSENT
from services.lab.layout import ROLES
from tests.support.rig import Rig

NAMES = ("red", "green", "blue", "white")
"""Few, so that the same name comes and goes while it is still under way."""

WAYS = {
    faults.PLUG: 6,
    faults.UNPLUG: 4,
    faults.PLUG_VM: 4,
    faults.UNPLUG_VM: 4,
    faults.PLUG_EDIT: 2,
    faults.UNPLUG_EDIT: 2,
    "stop": 1,
    "start": 2,
    "kill": 2,
}
"""What a step may be, and how often beside the others."""


@dataclass
class Walker:
    """One VM and what it should come to.

    :ivar template: interfaces of the template. :ivar running: of the VMI; ``None`` while it is stopped.
    """

    vm: str
    template: set[str] = field(default_factory=set)
    running: set[str] | None = field(default_factory=set)


class Walk:
    """A walk under way.

    :ivar told: what was done and answered, step by step.
    """

    def __init__(self, rig: Rig, vms: list[str], seed: str) -> None:
        self._rig = rig
        self._rng = random.Random(seed)
        self.walkers = [Walker(vm) for vm in vms]
        self.told: list[str] = []
        self._starting: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        """Do one thing; nothing is waited for but its answer."""
        rng, ways = self._rng, list(WAYS)
        way = rng.choices(ways, [WAYS[way] for way in ways])[0]
        walker, name, role = rng.choice(self.walkers), rng.choice(NAMES), rng.choice(ROLES)
        if way == "kill":
            await self._kill(role)
            self.told.append(f"kill {role}")
        elif way in ("stop", "start"):
            self.told.append(f"{way} {walker.vm}")
            await self._run(walker, way == "start")
        else:
            answer = await self._ask(way, walker, name)
            self.told.append(f"{way} {walker.vm}/{name}: {answer[:60]}")

    async def quiet(self) -> None:
        """Wait until everything has come to rest, as it should have come.

        :raises AssertionError: it has not; the message tells the way that led there.
        """
        try:
            await asyncio.gather(*self._starting)
            await self._rig.peace({walker.vm: walker.running for walker in self.walkers})
            for walker in self.walkers:
                found = await self._in_template(walker.vm)
                assert found == dict.fromkeys(walker.template), f"template of {walker.vm}: {found}"
        except AssertionError as error:
            told = "\n".join(f"{number:4} {line}" for number, line in enumerate(self.told, 1))
            raise AssertionError(f"{error}\nthe walk:\n{told}") from None

    async def _kill(self, role: str) -> None:
        # One that is being started cannot be told from one that is not.
        await asyncio.gather(*self._starting)
        await self._rig.kill(role)
        task = asyncio.create_task(self._rig.start(role))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _run(self, walker: Walker, running: bool) -> None:
        if (walker.running is not None) is running:
            return
        await self._rig.run(walker.vm, running)
        walker.running = set(walker.template) if running else None
        # A VM that is told to start while it still stops, or the other way round, is the cluster's affair, not ours.
        await self._rig.settled(walker.vm, running)

    async def _ask(self, way: str, walker: Walker, name: str) -> str:
        if way in (faults.PLUG_EDIT, faults.UNPLUG_EDIT) and not await self._may_edit(way, walker, name):
            return "not now"
        answer = await self._rig.request(way, walker.vm, name)
        if answer == "accepted":
            plug, vm = way in (faults.PLUG, faults.PLUG_VM, faults.PLUG_EDIT), way not in (faults.PLUG, faults.UNPLUG)
            for names in (walker.running, walker.template if vm else None):
                if names is not None:
                    (names.add if plug else names.discard)(name)
        elif answer == "met":
            await self._take_as_is(walker, name)
        return answer

    async def _may_edit(self, way: str, walker: Walker, name: str) -> bool:
        """An edit is made where its outcome is certain: a name that is at rest, on the VM and on the VMI."""
        in_template, vmi = await self._in_template(walker.vm), await self._rig.vmi(walker.vm)
        if way == faults.UNPLUG_EDIT:
            return name in in_template and in_template[name] is None
        listed = vmi is not None and any(interface.name == name for interface in vmi.spec.interface_items())
        return name not in in_template and not listed

    async def _take_as_is(self, walker: Walker, name: str) -> None:
        """Whichever of two requests it was: expect what is written."""
        in_template, vmi = await self._in_template(walker.vm), await self._rig.vmi(walker.vm)
        listed = name in in_template and in_template[name] is None
        (walker.template.add if listed else walker.template.discard)(name)
        if walker.running is not None and vmi is not None:
            states = {interface.name: interface.state for interface in vmi.spec.interface_items()}
            there = name in states and states[name] != ABSENT and in_template.get(name) != ABSENT
            (walker.running.add if there else walker.running.discard)(name)

    async def _in_template(self, vm: str) -> dict[str, str | None]:
        """The secondary interfaces of a template and their state."""
        spec = (await self._rig.vm(vm)).spec.template.spec
        return {one.name: one.state or None for one in spec.interface_items() if one.name != "default"}
