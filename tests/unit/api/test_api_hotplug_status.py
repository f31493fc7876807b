"""The ladder by API: once and as a stream, with the bus and without it, for as many as there is room for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from schemas.encoding import StatusKey
from schemas.hotplug_status import (
    BUCKET,
    HotplugStatus,
    HotplugStatusEvent,
    LastFailure,
    StageHistory,
    StageReached,
    StatusEntry,
    encode,
    entry_of,
)
from schemas.kube import Pod, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.stages import Stage
from services.common.domain.hotplug_status import fold
from services.common.http.server import SHUTDOWN_DEADLINE
from tests.support import objects
from tests.support.node_kube import PODS
from tests.support.projecting import at_stage
from tests.support.served_api import HOTNIC, Served, serving_api

VMIS = "virtualmachineinstances"
PATH = f"/apis/{HOTNIC}/namespaces/default/{VMIS}/vm1/interfaces"
KEY = str(StatusKey("default", "vm1", interface_hash("iface1")))
THEN = "2026-01-01T00:00:01.000Z"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_api(tmp_path, watchers=2) as served:
        climb(served, Stage.POD_ANNOTATED)
        yield served


def climb(api: Served, stage: Stage) -> tuple[VirtualMachineInstance, Pod]:
    vmi, pod = at_stage(stage)
    api.put(VMIS, vmi)
    api.put(PODS, pod)
    return vmi, pod


async def told(api: Served, stage: Stage, **fields: Any) -> None:
    """The projector writes what it has heard."""
    vmi, pod = at_stage(stage)
    (nic_status,) = fold(vmi, pod)
    history = StageHistory(
        {stage: StageReached(THEN)}, LastFailure(THEN, 4, Stage.MULTUS_ATTACHED, "CniFailed", "no lease")
    )
    entry = msgspec.structs.replace(StatusEntry(vmi.metadata.uid, pod.metadata.uid, nic_status, history), **fields)
    await api.bus.kv(BUCKET).put(KEY, encode(entry))


async def read(api: Served) -> HotplugStatus:
    async with api.session.get(PATH) as answer:
        assert answer.status == 200
        return msgspec.json.decode(await answer.read(), type=HotplugStatus)


class Stream:
    """The lines of one watch."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def line(self) -> HotplugStatusEvent | None:
        """The next one; ``None`` at the end."""
        async with asyncio.timeout(5):
            line = await self._answer.content.readline()
        return msgspec.json.decode(line, type=HotplugStatusEvent) if line else None

    async def until(self, stage: Stage, *, since: bool = False) -> HotplugStatusEvent:
        """The first line in which the one NIC has come to a stage."""
        while True:
            event = await self.line()
            assert event is not None
            (nic_status,) = event.object.items
            if nic_status.stage is stage and since is (nic_status.since is not None):
                return event


@contextlib.asynccontextmanager
async def watching(api: Served, **query: str) -> AsyncIterator[Stream]:
    async with api.session.get(PATH, params={"watch": "true", **query}) as answer:
        assert answer.status == 200, await answer.text()
        yield Stream(answer)


async def test_the_stage_is_the_objects_and_what_events_told_is_added(api: Served) -> None:
    await told(api, Stage.POD_ANNOTATED)
    hotplug_status = await read(api)
    assert (hotplug_status.kind, hotplug_status.api_version, hotplug_status.degraded) == ("HotplugStatus", HOTNIC, None)
    (nic_status,) = hotplug_status.items
    assert (nic_status.stage, nic_status.since, nic_status.reason, nic_status.attempts) == (
        Stage.POD_ANNOTATED,
        THEN,
        "CniFailed",
        4,
    )
    climb(api, Stage.GUEST_ATTACHED)
    (nic_status,) = (await read(api)).items
    assert (nic_status.stage, nic_status.since, nic_status.reason) == (Stage.GUEST_ATTACHED, None, None)


@pytest.mark.parametrize("fields", [{"vmi_uid": "another"}, {"pod_uid": "another"}])
async def test_an_entry_of_somebody_elses_is_not_believed(api: Served, fields: dict[str, str]) -> None:
    await told(api, Stage.POD_ANNOTATED, **fields)
    (nic_status,) = (await read(api)).items
    assert (nic_status.since, nic_status.reason) == (None, "WaitingForMultusAttached")
    await api.bus.kv(BUCKET).put(KEY, b"garbage")
    assert (await read(api)).items == (nic_status,)


async def stored(api: Served, **query: str) -> HotplugStatus:
    async with api.session.get(PATH, params={"stored": "true", **query}) as answer:
        assert answer.status == 200, await answer.text()
        return msgspec.json.decode(await answer.read(), type=HotplugStatus)


async def test_whoever_asks_sees_all_that_the_bucket_holds_for_the_vm(api: Served) -> None:
    assert (await stored(api)).stored == ()
    await told(api, Stage.GUEST_ATTACHED)
    bucket = api.bus.kv(BUCKET)
    left = await bucket.get(KEY)
    assert left is not None
    assert left.value is not None
    await bucket.put(str(StatusKey("default", "vm1", interface_hash("gone"))), left.value)
    await bucket.put(str(StatusKey("default", "vm1", interface_hash("broken"))), b"garbage")
    await bucket.put(str(StatusKey("default", "vm10", interface_hash("gone"))), left.value)
    await bucket.put(str(StatusKey("default", "vm1", interface_hash("deleted"))), left.value)
    await bucket.delete(str(StatusKey("default", "vm1", interface_hash("deleted"))))
    found = await stored(api)
    assert found.stored is not None
    assert {one.hash: one.entry for one in found.stored} == {
        interface_hash("iface1"): entry_of(left.value),
        interface_hash("gone"): entry_of(left.value),
        interface_hash("broken"): None,
    }
    # The ladder itself is the same, and who does not ask is shown nothing more.
    assert found.items == (await read(api)).items
    assert (await read(api)).stored is None
    assert (await stored(api, stored="0")).stored is None


async def test_without_the_bus_nobody_knows_what_the_bucket_holds(api: Served) -> None:
    await told(api, Stage.POD_ANNOTATED)
    api.bus.broker.stop()
    found = await stored(api)
    assert (found.degraded, found.stored, len(found.items)) == ("bus", None, 1)


async def test_a_flag_that_is_neither_true_nor_false_is_refused(api: Served) -> None:
    async with api.session.get(PATH, params={"stored": "perhaps"}) as answer:
        assert (answer.status, "perhaps" in (await answer.json())["message"]) == (400, True)


async def test_without_the_bus_it_answers_from_objects_and_says_so(api: Served) -> None:
    await told(api, Stage.POD_ANNOTATED)
    api.bus.broker.stop()
    hotplug_status = await read(api)
    assert hotplug_status.degraded == "bus"
    assert [(nic_status.stage, nic_status.since) for nic_status in hotplug_status.items] == [
        (Stage.POD_ANNOTATED, None)
    ]


async def test_a_watch_tells_every_change_of_objects_and_of_the_bucket(api: Served) -> None:
    async with watching(api) as stream:
        first = await stream.line()
        assert first is not None
        assert first.type == "ADDED"
        await told(api, Stage.POD_ANNOTATED)
        assert (await stream.until(Stage.POD_ANNOTATED, since=True)).type == "MODIFIED"
        climb(api, Stage.GUEST_ATTACHED)
        await stream.until(Stage.GUEST_ATTACHED)
        api.bus.broker.stop()
        api.kube.delete(VMIS, "default", "vm1")
        while (event := await stream.line()) is not None and event.type != "DELETED":
            pass
        assert event is not None
        ended = await stream.line()
        assert ended is not None
        assert ended.type == "BOOKMARK"
        assert await stream.line() is None


async def test_a_watch_ends_itself_and_goes_on_where_it_ended(api: Served) -> None:
    async with watching(api, timeoutSeconds="1") as stream:
        first, mark = await stream.line(), await stream.line()
        assert first is not None
        assert mark is not None
        assert (first.type, mark.type, mark.object.items) == ("ADDED", "BOOKMARK", ())
        assert await stream.line() is None
    token = mark.object.metadata["resourceVersion"]
    assert token == first.object.metadata["resourceVersion"]
    async with watching(api, resourceVersion=token, timeoutSeconds="1") as stream:
        again = await stream.line()
        assert again is not None
        assert again.type == "BOOKMARK"
    climb(api, Stage.MULTUS_ATTACHED)
    async with watching(api, resourceVersion=token) as stream:
        changed = await stream.line()
        assert changed is not None
        assert (changed.type, changed.object.items[0].stage) == ("MODIFIED", Stage.MULTUS_ATTACHED)


async def test_a_watch_without_the_bus_says_so_and_when_it_is_back(api: Served) -> None:
    api.bus.broker.stop()
    async with watching(api) as stream:
        first = await stream.line()
        assert first is not None
        assert first.object.degraded == "bus"
        api.bus.broker.start()
        second = await stream.line()
        assert second is not None
        assert second.object.degraded is None


async def test_there_is_room_for_so_many_watchers_and_leaving_makes_room(api: Served) -> None:
    async with watching(api) as one, watching(api) as two:
        await one.line()
        await two.line()
        async with api.session.get(PATH, params={"watch": "1"}) as answer:
            status = await answer.json()
            assert (answer.status, status["reason"], answer.headers["Retry-After"]) == (429, "TooManyRequests", "1")
        assert (await read(api)).items
    climb(api, Stage.MULTUS_ATTACHED)
    async with asyncio.timeout(5):
        while True:
            async with api.session.get(PATH, params={"watch": "1", "timeoutSeconds": "1"}) as answer:
                if answer.status == 200:
                    break


async def test_a_server_that_stops_ends_its_streams_in_order(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as own:
        async with serving_api(tmp_path) as served:
            climb(served, Stage.POD_ANNOTATED)
            answer = await own.get(f"http://{served.address}{PATH}", params={"watch": "true"})
            stream = Stream(answer)
            assert await stream.line() is not None
            stopping = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping < SHUTDOWN_DEADLINE
        mark = await stream.line()
        assert mark is not None
        assert mark.type == "BOOKMARK"
        assert await stream.line() is None


@pytest.mark.parametrize(
    ("query", "code"), [({"watch": "perhaps"}, 400), ({"watch": "true", "timeoutSeconds": "soon"}, 400)]
)
async def test_a_parameter_that_means_nothing_is_refused(api: Served, query: dict[str, str], code: int) -> None:
    async with api.session.get(PATH, params=query) as answer:
        assert (answer.status, (await answer.json())["kind"]) == (code, "Status")


@pytest.mark.parametrize("query", [{}, {"watch": "true"}])
async def test_what_is_not_there_or_cannot_be_read_is_a_status(api: Served, query: dict[str, str]) -> None:
    async with api.session.get(PATH.replace("vm1", "vm2"), params=query) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (404, "NotFound")
    broken = msgspec.to_builtins(objects.vmi())
    broken["spec"]["domain"]["devices"]["interfaces"] = [{"name": 5}]
    api.kube.put(VMIS, "default", "vm1", **broken)
    async with api.session.get(PATH, params=query) as answer:
        status = await answer.json()
        assert (answer.status, status["kind"]) == (500, "Status")
        assert "cannot be read" in status["message"]


async def test_it_is_listed_under_our_own_group_alone(api: Served) -> None:
    for group, listed in ((HOTNIC, True), ("subresources.kubevirt.io/v1", False)):
        async with api.session.get(f"/apis/{group}") as answer:
            found = [one for one in (await answer.json())["resources"] if one["name"].endswith("/interfaces")]
        assert [(one["kind"], one["verbs"]) for one in found] == ([("HotplugStatus", ["get"])] if listed else [])
