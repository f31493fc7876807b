"""``hotnic status``: from hotnic's api, or derived from objects when it does not answer; ``--watch`` shows changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from aiohttp import web

from schemas.bus.hotplug_status import (
    HotplugStatus,
    HotplugStatusEvent,
    InterfaceHotplugStatus,
    StoredEntry,
    encode_json,
    new_hotplug_status,
)
from schemas.kubernetes.objects import OwnerReference
from schemas.names import pod_interface
from schemas.stages import ROWS, OperationKind, Stage
from services.cli.commands.status import COLUMNS, WatchTable, explain
from services.cli.doctor.collect.objects import MAX_CONCURRENT_READS, with_hotplug_status
from services.cli.doctor.snapshot import NotVisible, VmSnapshot
from services.cli.operations.hotplug_status import StatusView, follow_status, read_status, read_warnings
from services.cli.output import UNKNOWN
from services.cli.tracing.tracer import NoTraces
from services.common.kube.client import Kube
from tests.support.bus.projecting import at_stage
from tests.support.kube.node_kube import EVENTS, PODS, FakeKube, Refused, serving_kube, write_kubeconfig
from tests.support.observed import objects

VMIS = "virtualmachineinstances"
THEN = "2026-01-01T00:00:01.000Z"


def api_status(
    stage: Stage, since: str | None = THEN, degraded: str | None = None, version: str = "v"
) -> HotplugStatus:
    """Return a response of hotnic's api."""
    nic_status = InterfaceHotplugStatus(
        "iface1", "net1", OperationKind.PLUG, stage, "op", ROWS[stage].next.get(OperationKind.PLUG), since=since
    )
    return new_hotplug_status("default", "vm1", version, (nic_status,), degraded)


class Cluster(FakeKube):
    """A Kubernetes API server with hotnic's api.

    :ivar status_of_api: the response of hotnic's api; ``None`` is 503.
    :ivar streams: the events of each watch; ``None`` ends it without a bookmark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.status_of_api: HotplugStatus | None = None
        self.streams: list[list[HotplugStatusEvent | None]] = []
        self.resume_versions: list[str] = []
        self.status_requests = 0

    def app(self) -> web.Application:
        app = super().app()
        path = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/vm1/interfaces"
        app.router.add_get(path, self._interfaces)
        return app

    async def _interfaces(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.status_requests += 1
            if self.status_of_api is None:
                return web.json_response({"kind": "Status", "reason": "ServiceUnavailable"}, status=503)
            return web.Response(body=encode_json(self.status_of_api))
        self.resume_versions.append(request.query.get("resourceVersion", ""))
        if not self.streams:
            return web.json_response({"kind": "Status", "reason": "ServiceUnavailable"}, status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.streams.pop(0):
            if event is not None:
                await response.write(encode_json(event) + b"\n")
        return response

    def reach_stage(self, stage: Stage) -> None:
        vmi, pod = at_stage(stage)
        for plural, found in ((VMIS, vmi), (PODS, pod)):
            document = msgspec.to_builtins(found)
            self.put(plural, "default", document["metadata"]["name"], **document)


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[Cluster, Kube]]:
    server = Cluster()
    async with serving_kube(server):
        config = write_kubeconfig(directory / "kubeconfig", server.url)
        async with await Kube.connect(kubeconfig=config, telemetry=NoTraces(), user_agent="test") as kube:
            server.reach_stage(Stage.POD_ANNOTATED)
            yield server, kube


VMI, _ = at_stage(Stage.POD_ANNOTATED)


async def test_status_is_derived_from_objects_when_the_api_does_not_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):
        server.status_of_api = api_status(Stage.MULTUS_ATTACHED)
        assert await read_status(kube, VMI) == StatusView(server.status_of_api.items)
        server.status_of_api = api_status(Stage.MULTUS_ATTACHED, degraded="bus")
        assert (await read_status(kube, VMI)).degraded == "bus"
        server.status_of_api = None
        shown = await read_status(kube, VMI)
        assert (shown.degraded, [nic_status.stage for nic_status in shown.nic_statuses]) == (
            "api",
            [Stage.POD_ANNOTATED],
        )
        assert shown.cause


async def test_status_of_objects_beside_kubevirt_says_what_to_do(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):
        server.put("kubevirts", "kubevirt", "kubevirt", status={"observedKubeVirtVersion": "v1.9.0"})
        (nic_status,) = (await read_status(kube, VMI)).nic_statuses
        assert nic_status.docs is None, "KubeVirt's controllers were stopped"
        labels = {"kubevirt.io": "virt-controller"}
        server.put("pods", "kubevirt", "virt-controller-1", metadata={"labels": labels}, status={"phase": "Pending"})
        (nic_status,) = (await read_status(kube, VMI)).nic_statuses
    reason, remedy, page, warning = explain(nic_status, ["FailedAddingInterface: no lease"])
    assert reason.startswith("NoNetworksController: ")
    assert remedy.startswith("what to do: run networks and multus")
    assert page == "see docs/beside-kubevirt.md#nonetworkscontroller"
    assert warning == "FailedAddingInterface: no lease"


def test_message_of_a_failure_replaces_the_warnings() -> None:
    failed = InterfaceHotplugStatus(
        "iface1", "net1", OperationKind.PLUG, Stage.REQUESTED, "op", reason="CniFailed", message="no lease"
    )
    assert explain(failed, ["the same again"]) == ["CniFailed: no lease"]
    beside = msgspec.structs.replace(failed, docs="page", message="the last Event is AddFailed: no lease")
    assert explain(beside, ["AddFailed: no lease", "AttachFailed: again", "a warning"])[1:] == ["see page", "a warning"]
    assert explain(msgspec.structs.replace(failed, message=None), ["a warning"]) == ["a warning"]


def put_warning(server: Cluster, name: str, uid: str, message: str, second: int) -> None:
    server.put(
        EVENTS,
        "default",
        name,
        involvedObject={"uid": uid},
        type="Warning",
        reason="InterfaceChangeRejected",
        message=message,
        lastTimestamp=f"2026-01-01T00:00:0{second}Z",
    )


async def test_warnings_on_the_vm_the_vmi_and_the_pod_are_read(tmp_path: Path) -> None:
    vmi, pod = at_stage(Stage.POD_ANNOTATED)
    vm = objects.vm()
    owner = OwnerReference("kubevirt.io/v1", "VirtualMachine", "vm1", vm.metadata.uid, controller=True)
    owned = msgspec.structs.replace(vmi, metadata=msgspec.structs.replace(vmi.metadata, owner_references=[owner]))
    async with cluster(tmp_path) as (server, kube):
        put_warning(server, "a", pod.metadata.uid, f"{pod_interface('iface1')}: no lease", 1)
        put_warning(server, "b", vm.metadata.uid, "cannot change interface iface1: the API server refuses: no", 2)
        put_warning(server, "c", vmi.metadata.uid, "interface name 'iface1' is malformed: no", 3)
        put_warning(server, "d", vm.metadata.uid, "interface 'iface2' is not meant", 4)
        put_warning(server, "e", "another", "interface iface1: of another VM", 5)
        assert [
            text.removeprefix("InterfaceChangeRejected: ") for text in await read_warnings(kube, owned, "iface1")
        ] == [
            f"{pod_interface('iface1')}: no lease",
            "cannot change interface iface1: the API server refuses: no",
            "interface name 'iface1' is malformed: no",
        ]
        assert len(await read_warnings(kube, vmi, "iface1")) == 2


async def snapshot_of_vm1(kube: Kube) -> VmSnapshot:
    """Return the doctor's snapshot of the VM, without its node."""
    (found,) = await with_hotplug_status(kube, [VmSnapshot("default", "vm1", None, VMI)])
    return found


async def test_stored_status_is_read_or_not_visible(tmp_path: Path) -> None:
    held = (StoredEntry("7e0055a6880"),)
    async with cluster(tmp_path) as (server, kube):
        server.status_of_api = msgspec.structs.replace(api_status(Stage.MULTUS_ATTACHED), stored=held)
        assert (await snapshot_of_vm1(kube)).hotplug_status == held
        for status_of_api, why in (
            (api_status(Stage.MULTUS_ATTACHED, degraded="bus"), "is not connected to NATS"),
            (api_status(Stage.MULTUS_ATTACHED), "an older version"),
            (None, "hotnic's api does not return it"),
        ):
            server.status_of_api = status_of_api
            found = (await snapshot_of_vm1(kube)).hotplug_status
            assert isinstance(found, NotVisible)
            assert why in found.message


async def test_unavailable_api_gets_no_request_for_every_vm(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):
        machines = [VmSnapshot("default", "vm1", None, VMI)] * 100
        found = await with_hotplug_status(kube, machines)
        assert all(isinstance(one.hotplug_status, NotVisible) for one in found)
        assert 1 <= server.status_requests <= MAX_CONCURRENT_READS
        assert (await with_hotplug_status(kube, [VmSnapshot("default", "gone", None, None)]))[
            0
        ].hotplug_status == NotVisible("not read")


async def test_status_without_permission_to_read_vms(tmp_path: Path) -> None:
    def forbid(_method: str, plural: str, _name: str) -> None:
        if plural == "virtualmachines":
            raise Refused(403, "Forbidden", "no")

    async with cluster(tmp_path) as (server, kube):
        server.before = forbid
        assert (await read_status(kube, VMI)).degraded == "api"


async def test_watch_continues_after_a_bookmark_and_shows_each_change_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):
        first, second = api_status(Stage.POD_ANNOTATED, version="1"), api_status(Stage.GUEST_ATTACHED, version="2")
        server.streams = [
            [HotplugStatusEvent("ADDED", first), HotplugStatusEvent("BOOKMARK", first)],
            [
                HotplugStatusEvent("MODIFIED", first),
                HotplugStatusEvent("MODIFIED", second),
                HotplugStatusEvent("BOOKMARK", second),
            ],
            [HotplugStatusEvent("DELETED", second), HotplugStatusEvent("BOOKMARK", second)],
        ]
        shown: list[StatusView] = []
        async with asyncio.timeout(5):
            await follow_status(kube, VMI, shown.append)
        assert [one.nic_statuses for one in shown] == [first.items, second.items]
        assert server.resume_versions == ["", "1", "2"]


async def test_watch_that_breaks_continues_with_objects_and_returns_to_the_api(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):
        first, back = api_status(Stage.POD_ANNOTATED), api_status(Stage.GUEST_ATTACHED)
        server.streams = [[HotplugStatusEvent("ADDED", first), None]]
        shown: list[StatusView] = []

        def show(found: StatusView) -> None:
            shown.append(found)
            if found.degraded == "api":
                server.streams = [[HotplugStatusEvent("ADDED", back), HotplugStatusEvent("DELETED", back)]]

        async with asyncio.timeout(5):
            await follow_status(kube, VMI, show, retry_delay=0.2)
        assert [(one.degraded, one.nic_statuses[0].stage) for one in shown] == [
            (None, Stage.POD_ANNOTATED),
            ("api", Stage.POD_ANNOTATED),
            (None, Stage.GUEST_ATTACHED),
        ]


async def test_watch_of_objects_ends_when_the_vmi_is_deleted(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (server, kube):

        def show(_found: StatusView) -> None:
            server.delete(VMIS, "default", "vm1")

        async with asyncio.timeout(5):
            await follow_status(kube, VMI, show)


def test_watch_table_prints_only_changes() -> None:
    lines = WatchTable(wide=False)
    head, first = lines.update(api_status(Stage.REQUESTED, None).items)
    assert head.split() == list(COLUMNS)
    assert first.split()[:4] == ["iface1", "net1", "requested", UNKNOWN]
    assert lines.update(api_status(Stage.REQUESTED, None).items) == []
    (second,) = lines.update(api_status(Stage.GUEST_ATTACHED).items)
    assert second.split()[2:4] == ["guest-attached", THEN]
    (removed,) = lines.update(())
    assert removed.split()[:3] == ["iface1", "net1", "removed"]
