"""Whatever is done to three VMs in whatever order, while roles die: in the end all is as the last answers said.

`make test` takes a few steps with doubles, `make test-long` hundreds, and again as many with real guests.
"""

import pytest

from tests.support import sampled
from tests.support.lab import Lab
from tests.support.rig import Rig
from tests.support.walk import Walk

pytestmark = pytest.mark.timeout(1500 if sampled.LONG else 300)

TABLE = "random walk"
STEPS, SOME = 320, 60
UNTIL_QUIET = 16
"""Steps after which everything is let come to rest."""


async def walk(rig: Rig, vms: list[str], table: str) -> None:
    walk = Walk(rig, vms, f"{sampled.SEED} walk")
    for number, _ in enumerate(sampled.first(table, STEPS, SOME), 1):
        await walk.step()
        sampled.ran(table)
        if number % UNTIL_QUIET == 0:
            await walk.quiet()
    await walk.quiet()
    for walker in walk.walkers:
        await rig.emptied(walker.vm)


def three(lab: Lab) -> list[str]:
    """Three VMs without secondary NICs that are the test's alone."""
    names = [f"walker-{number}" for number in range(1, 4)]
    for name in names:
        lab.boot(name)
    return names


async def test_a_random_walk_ends_where_the_answers_said(doubles: Lab, rig: Rig) -> None:
    await walk(rig, three(doubles), TABLE)


if sampled.LONG:

    async def test_a_random_walk_with_real_guests_ends_where_the_answers_said(lab: Lab, real_rig: Rig) -> None:
        await walk(real_rig, three(lab), f"{TABLE} with real guests")
