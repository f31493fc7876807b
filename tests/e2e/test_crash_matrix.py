"""Each role is killed before and after each step that others can see, in each request that passes the step.

Then it is started again, and everything ends as the spec says: one card or none, and nothing left over. A cell for
every point of :data:`services.common.faults.STEPS`, against real namespaces, containerd, CNI plugins and NATS, with
guests that are doubles; one cell of each role with a real guest. `make test` runs a sample, `make test-long` all.
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator

import pytest

from services.common import faults
from tests.support import sampled
from tests.support.lab import SAMPLE_VM, Lab
from tests.support.rig import UNPLUGS, Rig

# Longer than the rig's patience with a step, so that it is the rig that says what was waited for.
pytestmark = pytest.mark.timeout(150)

TABLE = "crash matrix"
REAL_TABLE = "crash matrix with real guests"
NIC = "blue"
PLUGS = {unplug: plug for plug, unplug in UNPLUGS.items()}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A point and a request that passes it."""

    step: str
    moment: faults.Moment
    way: str

    @property
    def role(self) -> str:
        """The role that dies."""
        return self.step.partition(".")[0]

    @property
    def point(self) -> str:
        """What is armed."""
        return f"{self.step}.{self.moment}"

    def __str__(self) -> str:
        return f"{self.way}: {self.point}"


CELLS = [Cell(step, moment, way) for step, ways in faults.STEPS.items() for way in ways for moment in faults.MOMENTS]


async def live_through(rig: Rig, cell: Cell, vm: str, interface: str, others: set[str]) -> None:
    """Kill, start again, and see that all ends as it was asked for."""
    plug = PLUGS.get(cell.way, cell.way)
    before = await rig.peace({vm: others})
    if cell.way in PLUGS:
        assert await rig.request(plug, vm, interface) == "accepted"
        await rig.peace({vm: {*others, interface}})
    rig.count_anew()
    async with asked(rig, cell, vm, interface):
        await rig.fired(cell.point)
        await rig.died(cell.role)
        await rig.start(cell.role)
    assert rig.passed().count(cell.point) >= 1
    stays = cell.way not in (*PLUGS, faults.REFUSED)
    after = await rig.peace({vm: {*others, interface} if stays else others})
    if stays:
        assert after["veths"] == before["veths"] + 1
        assert after["leases"] == before["leases"] + 1
        assert await rig.request(UNPLUGS.get(plug, faults.UNPLUG), vm, interface) == "accepted"
        after = await rig.peace({vm: others})
    assert (after["veths"], after["leases"]) == (before["veths"], before["leases"])


@contextlib.asynccontextmanager
async def asked(rig: Rig, cell: Cell, vm: str, interface: str) -> AsyncIterator[None]:
    """Arm the cell's point and make its request."""
    if cell.way == faults.UNRECORDED:
        await rig.stop("handler")
        await rig.attached_by_another(vm, interface)
        rig.arm(cell.point)
        # It dies as soon as it looks, perhaps before it is ready.
        await rig.begin("handler")
        yield
        return
    rig.arm(cell.point)
    async with rig.asking(cell.way, vm, interface):
        yield


@pytest.mark.parametrize("cell", sampled.sample(TABLE, CELLS, 30, each=lambda cell: cell.role), ids=str)
async def test_a_role_that_dies_at_any_step_finishes_its_work_when_it_is_back(rig: Rig, cell: Cell) -> None:
    await live_through(rig, cell, SAMPLE_VM, NIC, set())
    sampled.ran(TABLE)


@pytest.mark.parametrize("cell", sampled.sample(REAL_TABLE, CELLS, 5, each=lambda cell: cell.role), ids=str)
async def test_the_same_holds_for_real_guests(real_rig: Rig, lab: Lab, cell: Cell) -> None:
    vm = lab.vm_with_a_slot()
    vmi = await real_rig.vmi(vm)
    assert vmi is not None
    others = {interface.name for interface in vmi.spec.interface_items()} - {"default"}
    await live_through(real_rig, cell, vm, lab.interface_name(), others)
    lab.give_slot_back(vm)
    sampled.ran(REAL_TABLE)


async def test_every_point_that_a_request_passes_has_its_cell(rig: Rig) -> None:
    """What is passed is what the registry says, request by request: no step is missing, none is there for nothing."""
    everywhere = {cell.point for cell in CELLS}
    ways = [*((way, way not in PLUGS) for pair in UNPLUGS.items() for way in pair), (faults.REFUSED, False)]
    for way, stays in ways:
        rig.count_anew()
        assert await rig.request(way, SAMPLE_VM, NIC) == "accepted"
        await rig.peace({SAMPLE_VM: {NIC} if stays else set()})
        listed = {cell.point for cell in CELLS if cell.way == way}
        # What is told last is told after all is done.
        await rig.all_passed(listed)
        passed = set(rig.passed())
        # The usual requests pass all that they are listed for; others, the same steps and a few of their own.
        wanted = listed if way in (faults.PLUG, faults.UNPLUG) else everywhere
        assert passed <= wanted, f"{way}: not listed: {sorted(passed - wanted)}"
