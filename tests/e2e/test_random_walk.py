"""Random operations on three VMs while roles are killed: the state at the end is that of the accepted requests.

`make test` runs a few operations with guest doubles. `make test-long` runs hundreds, and as many with real guests.
"""

import pytest

from lab.layout import GuestKind
from tests.support import sampled
from tests.support.lab.random_walk import RandomWalk
from tests.support.lab.rig import Rig
from tests.support.lab.running import Lab

pytestmark = pytest.mark.timeout(1500 if sampled.LONG else 300)

TABLE = "random walk"
STEPS, SOME = 320, 60
UNTIL_QUIET = 16
"""Number of operations after which the test waits for the expected state."""


async def walk(rig: Rig, vms: list[str], table: str) -> None:
    walk = RandomWalk(rig, vms, f"{sampled.SEED} walk")
    for number, _ in enumerate(sampled.first_steps(table, STEPS, SOME), 1):
        await walk.step()
        sampled.count_run(table)
        if number % UNTIL_QUIET == 0:
            await walk.wait_consistent()
    await walk.wait_consistent()
    for vm in walk.vms:
        await rig.delete_vm(vm.name)


def three(lab: Lab, guest: GuestKind) -> list[str]:
    """Create three VMs without secondary interfaces for one test."""
    names = [f"walker-{number}" for number in range(1, 4)]
    for name in names:
        lab.boot(name, guest=guest)
    return names


async def test_random_walk_ends_in_the_requested_state(doubles: Lab, rig: Rig) -> None:
    await walk(rig, three(doubles, "double"), TABLE)


if sampled.LONG:

    async def test_random_walk_with_real_guests_ends_in_the_requested_state(lab: Lab, real_rig: Rig) -> None:
        await walk(real_rig, three(lab, "qemu"), f"{TABLE} with real guests")
