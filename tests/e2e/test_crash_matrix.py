"""Each role is killed before and after each step with an external effect, in each request that passes the step.

Then the role is started again, and the state must be as the spec requires: one NIC or none, and nothing left over.
There is a cell for every failpoint of :data:`lab.failpoints.points.FAILPOINTS`, with real namespaces, containerd, CNI
plugins and NATS, and guest doubles; one cell of each role has a real guest. `make test` runs a sample of the cells,
`make test-long` runs all.
"""

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase

import pytest

from lab.failpoints import points
from lab.layout import ROLES
from tests.support import sampled
from tests.support.lab.processes import wait_until
from tests.support.lab.rig import UNPLUGS, Rig
from tests.support.lab.running import SAMPLE_VM, Lab, Span

# Longer than the rig's timeout, so that the rig reports what it was waiting for.
pytestmark = pytest.mark.timeout(150)

TABLE = "crash matrix"
REAL_TABLE = "crash matrix with real guests"
NIC = "blue"
PLUGS = {unplug: plug for plug, unplug in UNPLUGS.items()}
EFFECTS = (
    *("kube patch [!l]*", "kube create *", "kube delete *", "send *", "POST /delegate", "record *"),
    *("cni ADD *", "cni DEL *", "netlink setup *", "netlink teardown *", "qmp *_add", "qmp *_del"),
)
"""Patterns of the names of spans that change something outside the process, except the leader's Lease."""
SERVER = 2
"""Kind of the span of a request that a process serves, in OTLP."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A failpoint and the kind of a request that passes it."""

    failpoint: str
    moment: points.Moment
    way: str

    @property
    def role(self) -> str:
        """The role that is killed."""
        return self.failpoint.partition(".")[0]

    @property
    def point(self) -> str:
        """The failpoint and the moment."""
        return f"{self.failpoint}.{self.moment}"

    def __str__(self) -> str:
        return f"{self.way}: {self.point}"


CELLS = [
    Cell(name, moment, way)
    for name, failpoint in points.FAILPOINTS.items()
    for way in failpoint.requests
    for moment in points.MOMENTS
]


async def check_cell(rig: Rig, cell: Cell, vm: str, interface: str, others: set[str]) -> None:
    """Kill the role during the request, start it again, and check the state at the end."""
    plug = PLUGS.get(cell.way, cell.way)
    before = await rig.wait_consistent({vm: others})
    if cell.way in PLUGS:
        assert await rig.request(plug, vm, interface) == "accepted"
        await rig.wait_consistent({vm: {*others, interface}})
    rig.reset_passed()
    async with requesting_cell(rig, cell, vm, interface):
        await rig.wait_fired(cell.point)
        await rig.wait_killed(cell.role)
        await rig.start(cell.role)
    assert rig.passed().count(cell.point) >= 1
    remains = cell.way not in (*PLUGS, points.REFUSED)
    after = await rig.wait_consistent({vm: {*others, interface} if remains else others})
    if remains:
        assert after["veths"] == before["veths"] + 1
        assert after["leases"] == before["leases"] + 1
        assert await rig.request(UNPLUGS.get(plug, points.UNPLUG), vm, interface) == "accepted"
        after = await rig.wait_consistent({vm: others})
    assert (after["veths"], after["leases"]) == (before["veths"], before["leases"])


@contextlib.asynccontextmanager
async def requesting_cell(rig: Rig, cell: Cell, vm: str, interface: str) -> AsyncIterator[None]:
    """Arm the cell's failpoint and send its request."""
    if cell.way == points.UNRECORDED:
        await rig.stop("handler")
        await rig.attach_unrecorded(vm, interface)
        rig.arm(cell.point)
        # It is killed at its first reconcile, which may be before it is ready.
        await rig.start_without_waiting("handler")
        yield
        return
    rig.arm(cell.point)
    async with rig.requesting(cell.way, vm, interface):
        yield


@pytest.mark.parametrize("cell", sampled.sample(TABLE, CELLS, 30, each=lambda cell: cell.role), ids=str)
async def test_operation_completes_when_a_role_is_killed_at_any_step(rig: Rig, cell: Cell) -> None:
    await check_cell(rig, cell, SAMPLE_VM, NIC, set())
    sampled.count_run(TABLE)


@pytest.mark.parametrize("cell", sampled.sample(REAL_TABLE, CELLS, 5, each=lambda cell: cell.role), ids=str)
async def test_operation_with_a_real_guest_completes_when_a_role_is_killed(real_rig: Rig, lab: Lab, cell: Cell) -> None:
    vm = lab.take_slot()
    vmi = await real_rig.vmi(vm)
    assert vmi is not None
    others = {interface.name for interface in vmi.spec.interface_items()} - {"default"}
    await check_cell(real_rig, cell, vm, lab.interface_name(), others)
    lab.release_slot(vm)
    sampled.count_run(REAL_TABLE)


async def test_requests_pass_exactly_the_registered_failpoints(rig: Rig) -> None:
    """Each request passes the failpoints that are registered for it: none is missing and none is unused."""
    everywhere = {cell.point for cell in CELLS}
    ways = [*((way, way not in PLUGS) for pair in UNPLUGS.items() for way in pair), (points.REFUSED, False)]
    for way, remains in ways:
        rig.reset_passed()
        assert await rig.request(way, SAMPLE_VM, NIC) == "accepted"
        await rig.wait_consistent({SAMPLE_VM: {NIC} if remains else set()})
        listed = {cell.point for cell in CELLS if cell.way == way}
        # The last event is published after the operation has completed.
        await rig.wait_passed(listed)
        passed = set(rig.passed())
        # Plug and unplug of the VMI pass their listed points only; other requests also pass points of these.
        wanted = listed if way in (points.PLUG, points.UNPLUG) else everywhere
        assert passed <= wanted, f"{way}: not listed: {sorted(passed - wanted)}"


async def test_every_effect_of_a_request_has_a_failpoint(rig: Rig) -> None:
    """Each span of a plug or unplug that changes something outside its process is the span of a failpoint."""
    listed = [cell for cell in CELLS if cell.way in (points.PLUG, points.UNPLUG)]
    started = time.time_ns()
    rig.reset_passed()
    for way, names in ((points.PLUG, {NIC}), (points.UNPLUG, set())):
        assert await rig.request(way, SAMPLE_VM, NIC) == "accepted"
        await rig.wait_consistent({SAMPLE_VM: names})
    await rig.wait_passed({cell.point for cell in listed})

    def differences() -> list[str]:
        found, without = failpoints_of([s for s in rig.lab.all_spans() if int(s["startTimeUnixNano"]) >= started])
        # Most Events are created without a recorded span.
        differing = found ^ {cell.failpoint for cell in listed}
        return without + sorted(name for name in differing if not name.endswith(".event"))

    # A span is written when it has ended, which is after its failpoints, and a parent ends after its children.
    await wait_until(lambda: differences() == [], 40.0, lambda: str(differences()))


def failpoints_of(spans: list[Span]) -> tuple[set[str], list[str]]:
    """Return the failpoints of the spans with an effect, and descriptions of such spans without a failpoint."""
    by_id = {span["spanId"]: span for span in spans}
    found, without = set(), []
    for span in spans:
        role = span["service"].removeprefix("hotnic-")
        parent = by_id.get(span.get("parentSpanId", ""), span)
        if role in ROLES and span["kind"] != SERVER and any(fnmatchcase(span["name"], name) for name in EFFECTS):
            attributes = {one["key"]: one["value"].get("stringValue") for one in span.get("attributes", ())}
            parent_name = parent["name"] if parent["service"] == span["service"] else ""
            failpoint = points.find_failpoint(role, span["name"], parent_name, attributes)
            if failpoint is None:
                without.append(f"{role} has no failpoint at span {span['name']!r} below {parent_name!r}")
            else:
                found.add(failpoint)
    return found, without
