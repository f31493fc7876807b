"""Every operation completes when NATS or the API server is killed, or events are delivered twice or never.

The role that reaches a failpoint (:mod:`lab.failpoints`) kills the victim, so it is dead before the next step.
`make test` runs a sample of the table, `make test-long` runs all.
"""

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from lab.failpoints import points
from lab.layout import ROLES
from schemas.stages import TABLE as STAGES
from tests.support import sampled
from tests.support.lab.rig import TEMPLATE_WAYS, UNPLUGS, Rig, nats_data_dir
from tests.support.lab.running import SAMPLE_VM

# Longer than the rig's timeout, so that the rig reports what it was waiting for.
pytestmark = pytest.mark.timeout(150)

TABLE = "chaos"
NIC = "blue"
PLUGS = {unplug: plug for plug, unplug in UNPLUGS.items()}
PATCHES = [name for name in points.FAILPOINTS if ".patch-" in name or ".start-" in name]
"""Failpoints of writes of an object."""
PUBLISHES = [f"{role}.publish-{row.stage}" for row in STAGES for role in row.publishers]
"""Failpoints of publishing a stage; a request that succeeds does not pass those of failures."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A victim that is killed at a failpoint of a request.

    :ivar comes_back: how the victim starts again: ``as it was``, ``with nothing`` or ``with older data``.
    :ivar way: the kind of the request.
    """

    victim: str
    comes_back: str
    point: str
    way: str

    def __str__(self) -> str:
        return f"{self.way}: {self.victim} is killed at {self.point} and comes back {self.comes_back}"


def cases() -> list[Case]:
    """Return the cases: NATS is killed at each stage and comes back in three ways, the API server at each write."""
    found = []
    for moment in points.MOMENTS:
        for name, failpoint in points.FAILPOINTS.items():
            for way in failpoint.requests:
                if name in PUBLISHES:
                    returns = ("as it was", "with nothing", "with older data")
                    found += [Case("nats", comes_back, f"{name}.{moment}", way) for comes_back in returns]
                if name in PATCHES:
                    found.append(Case("apiserver", "as it was", f"{name}.{moment}", way))
    return found


@pytest.fixture(scope="module")
def older_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of an older copy of NATS' data."""
    return tmp_path_factory.mktemp("older") / "nats"


@pytest.mark.parametrize(
    "case", sampled.sample(TABLE, cases(), 14, each=lambda case: (case.victim, case.comes_back)), ids=str
)
async def test_operation_completes_when_a_server_is_killed(rig: Rig, older_data: Path, case: Case) -> None:
    await prepare(rig, case.way)
    if case.comes_back == "with older data":
        await copy_once(rig, older_data)
    rig.arm(case.point, victim=(await rig.component(case.victim))["pid"])
    async with rig.requesting(case.way, SAMPLE_VM, NIC):
        await rig.wait_fired(case.point)
        await rig.wait_killed(case.victim)
        if case.comes_back != "as it was":
            shutil.rmtree(nats_data_dir(rig.lab))
        if case.comes_back == "with older data":
            shutil.copytree(older_data, nats_data_dir(rig.lab))
        await rig.start(case.victim)
    await wait_completed(rig, case.way)
    sampled.count_run(TABLE)


@pytest.mark.parametrize("times", [2, 0], ids=["twice", "never"])
@pytest.mark.parametrize("plug", UNPLUGS)
async def test_operation_completes_when_events_are_delivered_twice_or_never(rig: Rig, plug: str, times: int) -> None:
    for way in (plug, UNPLUGS[plug]):
        await prepare(rig, way)
        async with rig.delivering(times):
            assert await rig.request(way, SAMPLE_VM, NIC) == "accepted"
            await wait_completed(rig, way)


async def test_plug_completes_when_all_roles_are_killed_and_nats_loses_its_data(rig: Rig) -> None:
    """All five roles are killed during a plug, NATS loses its data, and then all are started at once."""
    await prepare(rig, points.PLUG)
    rig.arm("networks.delegate-add.after")
    async with rig.requesting(points.PLUG, SAMPLE_VM, NIC):
        await rig.wait_fired("networks.delegate-add.after")
    await asyncio.gather(*(rig.kill(role) for role in ROLES if role != "networks"), rig.wait_killed("networks"))
    await rig.kill("nats")
    shutil.rmtree(nats_data_dir(rig.lab))
    await asyncio.gather(*(rig.start(component) for component in (*ROLES, "nats")))
    await wait_completed(rig, points.PLUG)
    assert await rig.request(points.UNPLUG, SAMPLE_VM, NIC) == "accepted"
    await wait_completed(rig, points.UNPLUG)


async def copy_once(rig: Rig, older_data: Path) -> None:
    """Copy NATS' data before the first request; the server is stopped meanwhile, so that the copy is consistent."""
    if older_data.name not in os.listdir(older_data.parent):
        await rig.stop("nats")
        shutil.copytree(nats_data_dir(rig.lab), older_data)
        await rig.start("nats")


async def prepare(rig: Rig, way: str) -> None:
    """Plug the NIC for an unplug request, and unplug it for a plug request."""
    vmi = await rig.vmi(SAMPLE_VM)
    assert vmi is not None
    there = any(interface.name == NIC for interface in vmi.spec.interface_items())
    wanted = way in PLUGS
    if there and (not wanted or not await _plugged_by(rig, PLUGS[way])):
        template = await _plugged_by(rig, points.PLUG_VM)
        assert await rig.request(points.UNPLUG_VM if template else points.UNPLUG, SAMPLE_VM, NIC) == "accepted"
        await rig.wait_consistent({SAMPLE_VM: set()})
        there = False
    if wanted and not there:
        assert await rig.request(PLUGS[way], SAMPLE_VM, NIC) == "accepted"
    await rig.wait_consistent({SAMPLE_VM: {NIC} if wanted else set()})


async def _plugged_by(rig: Rig, plug: str) -> bool:
    template = (await rig.vm(SAMPLE_VM)).spec.template.spec
    listed = any(interface.name == NIC for interface in template.interface_items())
    return listed is (plug != points.PLUG)


async def wait_completed(rig: Rig, way: str) -> None:
    """Wait until the NIC is plugged or unplugged as requested, and check the template for requests with persist.

    A NIC of a refused request must not remain.
    """
    there = way not in (*PLUGS, points.REFUSED)
    await rig.wait_consistent({SAMPLE_VM: {NIC} if there else set()})
    if way in TEMPLATE_WAYS:
        assert await _plugged_by(rig, points.PLUG_VM) is there
