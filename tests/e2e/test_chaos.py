"""NATS or the API server dies in the middle of a request, or events come twice or never: all ends as it was asked for.

The victim is killed by the role that has reached a point (:mod:`services.common.faults`), so it is dead when the next
step begins. `make test` runs a sample of the table, `make test-long` all.
"""

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from schemas.stages import TABLE as STAGES
from services.common import faults
from services.lab.layout import ROLES
from tests.support import sampled
from tests.support.lab import SAMPLE_VM
from tests.support.rig import BY_TEMPLATE, UNPLUGS, Rig, data_of

# Longer than the rig's patience with a step, so that it is the rig that says what was waited for.
pytestmark = pytest.mark.timeout(150)

TABLE = "chaos"
NIC = "blue"
PLUGS = {unplug: plug for plug, unplug in UNPLUGS.items()}
PATCHES = [name for name in faults.STEPS if ".patch-" in name or ".start-" in name]
"""Steps that write an object."""
PUBLISHES = [f"{role}.publish-{row.stage}" for row in STAGES for role in row.publishers]
"""Steps that publish a stage; those of failures are passed by no request that succeeds."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to whom, at which point of which request."""

    victim: str
    comes_back: str
    point: str
    way: str

    def __str__(self) -> str:
        return f"{self.way}: {self.victim} dies at {self.point} and comes back {self.comes_back}"


def cases() -> list[Case]:
    """NATS dies at each stage and comes back three ways, the API server at each write."""
    found = []
    for moment in faults.MOMENTS:
        for step, ways in faults.STEPS.items():
            for way in ways:
                if step in PUBLISHES:
                    returns = ("as it was", "with nothing", "with older data")
                    found += [Case("nats", comes_back, f"{step}.{moment}", way) for comes_back in returns]
                if step in PATCHES:
                    found.append(Case("apiserver", "as it was", f"{step}.{moment}", way))
    return found


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an old copy of NATS' data is kept."""
    return tmp_path_factory.mktemp("older") / "nats"


@pytest.mark.parametrize(
    "case", sampled.sample(TABLE, cases(), 14, each=lambda case: (case.victim, case.comes_back)), ids=str
)
async def test_a_server_that_dies_in_the_middle_changes_nothing_in_the_end(rig: Rig, older: Path, case: Case) -> None:
    await ready_to(rig, case.way)
    if case.comes_back == "with older data":
        await copied_once(rig, older)
    rig.arm(case.point, victim=(await rig.component(case.victim))["pid"])
    async with rig.asking(case.way, SAMPLE_VM, NIC):
        await rig.fired(case.point)
        await rig.died(case.victim)
        if case.comes_back != "as it was":
            shutil.rmtree(data_of(rig.lab))
        if case.comes_back == "with older data":
            shutil.copytree(older, data_of(rig.lab))
        await rig.start(case.victim)
    await all_done(rig, case.way)
    sampled.ran(TABLE)


@pytest.mark.parametrize("times", [2, 0], ids=["twice", "never"])
@pytest.mark.parametrize("plug", UNPLUGS)
async def test_events_may_come_twice_or_never(rig: Rig, plug: str, times: int) -> None:
    rig.deliver(times)
    for way in (plug, UNPLUGS[plug]):
        await ready_to(rig, way)
        assert await rig.request(way, SAMPLE_VM, NIC) == "accepted"
        await all_done(rig, way)


async def test_every_role_starts_from_nothing_at_once_and_finishes_what_was_begun(rig: Rig) -> None:
    """All five die in the middle of a plug, NATS loses everything meanwhile, and then they are started together."""
    await ready_to(rig, faults.PLUG)
    rig.arm("networks.delegate-add.after")
    async with rig.asking(faults.PLUG, SAMPLE_VM, NIC):
        await rig.fired("networks.delegate-add.after")
    await asyncio.gather(*(rig.kill(role) for role in ROLES if role != "networks"), rig.died("networks"))
    await rig.kill("nats")
    shutil.rmtree(data_of(rig.lab))
    await asyncio.gather(*(rig.start(component) for component in (*ROLES, "nats")))
    await all_done(rig, faults.PLUG)
    assert await rig.request(faults.UNPLUG, SAMPLE_VM, NIC) == "accepted"
    await all_done(rig, faults.UNPLUG)


async def copied_once(rig: Rig, older: Path) -> None:
    """Take a copy of NATS' data from before the request; the server is asked to stop, so that the copy is whole."""
    if older.name not in os.listdir(older.parent):
        await rig.stop("nats")
        shutil.copytree(data_of(rig.lab), older)
        await rig.start("nats")


async def ready_to(rig: Rig, way: str) -> None:
    """Have the NIC there for an unplug, and away for a plug."""
    vmi = await rig.vmi(SAMPLE_VM)
    assert vmi is not None
    there = any(interface.name == NIC for interface in vmi.spec.interface_items())
    wanted = way in PLUGS
    if there and (not wanted or not await _plugged_by(rig, PLUGS[way])):
        template = await _plugged_by(rig, faults.PLUG_VM)
        assert await rig.request(faults.UNPLUG_VM if template else faults.UNPLUG, SAMPLE_VM, NIC) == "accepted"
        await rig.peace({SAMPLE_VM: set()})
        there = False
    if wanted and not there:
        assert await rig.request(PLUGS[way], SAMPLE_VM, NIC) == "accepted"
    await rig.peace({SAMPLE_VM: {NIC} if wanted else set()})


async def _plugged_by(rig: Rig, plug: str) -> bool:
    template = (await rig.vm(SAMPLE_VM)).spec.template.spec
    listed = any(interface.name == NIC for interface in template.interface_items())
    return listed is (plug != faults.PLUG)


async def all_done(rig: Rig, way: str) -> None:
    """After a plug the NIC is there, after an unplug away; so it is in the template, where that was asked.

    What the guest cannot have is away, too.
    """
    there = way not in (*PLUGS, faults.REFUSED)
    await rig.peace({SAMPLE_VM: {NIC} if there else set()})
    if way in BY_TEMPLATE:
        assert await _plugged_by(rig, faults.PLUG_VM) is there
