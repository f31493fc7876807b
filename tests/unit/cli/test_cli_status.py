"""``hotnic status``: by the api while it answers, from objects when it does not, and each change once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from aiohttp import web

from schemas.hotplug_status import (
    HotplugStatus,
    HotplugStatusEvent,
    InterfaceHotplugStatus,
    StoredEntry,
    as_json,
    hotplug_status,
)
from schemas.stages import ROWS, OperationKind, Stage
from services.cli.collect import AT_ONCE, with_ladders
from services.cli.hotplug_status import Shown, follow, read
from services.cli.output import UNKNOWN
from services.cli.status import COLUMNS, Lines
from services.cli.tracing import NoTraces
from services.common.domain.invariants.world import NotVisible, VmSnapshot
from services.common.kube.client import Kube
from tests.support.node_kube import PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.projecting import at_stage

VMIS = "virtualmachineinstances"
THEN = "2026-01-01T00:00:01.000Z"


def told(stage: Stage, since: str | None = THEN, degraded: str | None = None, version: str = "v") -> HotplugStatus:
    """What the api says."""
    nic_status = InterfaceHotplugStatus(
        "iface1", "net1", OperationKind.PLUG, stage, "op", ROWS[stage].next.get(OperationKind.PLUG), since=since
    )
    return hotplug_status("default", "vm1", version, (nic_status,), degraded)


class Cluster(FakeKube):
    """A Kubernetes API with hotnic's api behind it, which says what it is told to; ``None`` cuts a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.says: HotplugStatus | None = None
        self.streams: list[list[HotplugStatusEvent | None]] = []
        self.resumed: list[str] = []
        self.hotplug_statuses = 0

    def app(self) -> web.Application:
        app = super().app()
        path = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/vm1/interfaces"
        app.router.add_get(path, self._interfaces)
        return app

    async def _interfaces(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.hotplug_statuses += 1
            if self.says is None:
                return web.json_response({"kind": "Status", "reason": "ServiceUnavailable"}, status=503)
            return web.Response(body=as_json(self.says))
        self.resumed.append(request.query.get("resourceVersion", ""))
        if not self.streams:
            return web.json_response({"kind": "Status", "reason": "ServiceUnavailable"}, status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.streams.pop(0):
            if event is not None:
                await response.write(as_json(event) + b"\n")
        return response

    def climb(self, stage: Stage) -> None:
        vmi, pod = at_stage(stage)
        for plural, found in ((VMIS, vmi), (PODS, pod)):
            document = msgspec.to_builtins(found)
            self.put(plural, "default", document["metadata"]["name"], **document)


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[Cluster, Kube]]:
    made = Cluster()
    async with serving_kube(made):
        config = write_kubeconfig(directory / "kubeconfig", made.url)
        async with await Kube.connect(kubeconfig=config, telemetry=NoTraces(), user_agent="test") as kube:
            made.climb(Stage.POD_ANNOTATED)
            yield made, kube


VMI, _ = at_stage(Stage.POD_ANNOTATED)


async def test_the_api_is_asked_and_objects_where_it_does_not_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (made, kube):
        made.says = told(Stage.MULTUS_ATTACHED)
        assert await read(kube, VMI) == Shown(made.says.items)
        made.says = told(Stage.MULTUS_ATTACHED, degraded="bus")
        assert (await read(kube, VMI)).degraded == "bus"
        made.says = None
        shown = await read(kube, VMI)
        assert (shown.degraded, [nic_status.stage for nic_status in shown.nic_statuses]) == (
            "api",
            [Stage.POD_ANNOTATED],
        )
        assert shown.why


async def machine(kube: Kube) -> VmSnapshot:
    """The doctor's look at the one VM, from afar."""
    (found,) = await with_ladders(kube, [VmSnapshot("default", "vm1", None, VMI)])
    return found


async def test_the_doctor_is_told_what_the_bus_keeps_or_why_not(tmp_path: Path) -> None:
    held = (StoredEntry("7e0055a6880"),)
    async with cluster(tmp_path) as (made, kube):
        made.says = msgspec.structs.replace(told(Stage.MULTUS_ATTACHED), stored=held)
        assert (await machine(kube)).hotplug_status == held
        for says, why in (
            (told(Stage.MULTUS_ATTACHED, degraded="bus"), "cannot reach the bus"),
            (told(Stage.MULTUS_ATTACHED), "an earlier one"),
            (None, "hotnic's api does not show it"),
        ):
            made.says = says
            found = (await machine(kube)).hotplug_status
            assert isinstance(found, NotVisible)
            assert why in found.why


async def test_an_api_that_is_away_is_not_asked_for_every_vm(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (made, kube):
        machines = [VmSnapshot("default", "vm1", None, VMI)] * 100
        found = await with_ladders(kube, machines)
        assert all(isinstance(one.hotplug_status, NotVisible) for one in found)
        assert 1 <= made.hotplug_statuses <= AT_ONCE
        assert (await with_ladders(kube, [VmSnapshot("default", "gone", None, None)]))[0].hotplug_status == NotVisible(
            "not looked at"
        )


async def test_without_the_right_to_read_vms_it_still_answers(tmp_path: Path) -> None:
    def forbid(_method: str, plural: str, _name: str) -> None:
        if plural == "virtualmachines":
            raise Refused(403, "Forbidden", "no")

    async with cluster(tmp_path) as (made, kube):
        made.before = forbid
        assert (await read(kube, VMI)).degraded == "api"


async def test_a_watch_goes_on_after_its_end_and_shows_each_change_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (made, kube):
        first, second = told(Stage.POD_ANNOTATED, version="1"), told(Stage.GUEST_ATTACHED, version="2")
        made.streams = [
            [HotplugStatusEvent("ADDED", first), HotplugStatusEvent("BOOKMARK", first)],
            [
                HotplugStatusEvent("MODIFIED", first),
                HotplugStatusEvent("MODIFIED", second),
                HotplugStatusEvent("BOOKMARK", second),
            ],
            [HotplugStatusEvent("DELETED", second), HotplugStatusEvent("BOOKMARK", second)],
        ]
        shown: list[Shown] = []
        async with asyncio.timeout(5):
            await follow(kube, VMI, shown.append)
        assert [one.nic_statuses for one in shown] == [first.items, second.items]
        assert made.resumed == ["", "1", "2"]


async def test_a_watch_that_is_cut_off_goes_on_with_objects_and_returns_to_the_api(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (made, kube):
        first, back = told(Stage.POD_ANNOTATED), told(Stage.GUEST_ATTACHED)
        made.streams = [[HotplugStatusEvent("ADDED", first), None]]
        shown: list[Shown] = []

        def show(found: Shown) -> None:
            shown.append(found)
            if found.degraded == "api":
                made.streams = [[HotplugStatusEvent("ADDED", back), HotplugStatusEvent("DELETED", back)]]

        async with asyncio.timeout(5):
            await follow(kube, VMI, show, again=0.2)
        assert [(one.degraded, one.nic_statuses[0].stage) for one in shown] == [
            (None, Stage.POD_ANNOTATED),
            ("api", Stage.POD_ANNOTATED),
            (None, Stage.GUEST_ATTACHED),
        ]


async def test_a_vm_that_goes_away_ends_a_watch_without_the_api(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (made, kube):

        def show(_found: Shown) -> None:
            made.delete(VMIS, "default", "vm1")

        async with asyncio.timeout(5):
            await follow(kube, VMI, show)


def test_a_table_goes_on_with_what_is_new() -> None:
    lines = Lines(wide=False)
    head, first = lines.of(told(Stage.REQUESTED, None).items)
    assert head.split() == list(COLUMNS)
    assert first.split()[:4] == ["iface1", "net1", "requested", UNKNOWN]
    assert lines.of(told(Stage.REQUESTED, None).items) == []
    (second,) = lines.of(told(Stage.GUEST_ATTACHED).items)
    assert second.split()[2:4] == ["guest-attached", THEN]
    (gone,) = lines.of(())
    assert gone.split()[:3] == ["iface1", "net1", "gone"]
