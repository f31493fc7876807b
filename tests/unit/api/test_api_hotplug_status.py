"""The hot-plug status over the API: read once and watched, with and without the bus, and the limit of watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from schemas.bus.encoding import StatusKey
from schemas.bus.hotplug_status import (
    BUCKET,
    HotplugStatus,
    HotplugStatusEvent,
    LastFailure,
    StageHistory,
    StageReached,
    StatusEntry,
    decode_entry,
    encode_entry,
)
from schemas.kubernetes.objects import Pod, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.stages import Stage
from services.api.hotplug_status.watch import MAX_WATCHERS, MAX_WATCHERS_OF_USER
from services.api.observe import ClusterSettings
from services.common.domain.nic import parse_nics
from services.common.domain.status.hotplug_status import derive_statuses
from services.common.http.server import SHUTDOWN_DEADLINE
from tests.support.bus.projecting import at_stage
from tests.support.kube.node_kube import PODS
from tests.support.kube.served_api import HOTNIC, ServedApi, serve_api
from tests.support.observed import objects
from tests.support.observed.kubevirt import capabilities

VMIS = "virtualmachineinstances"
PATH = f"/apis/{HOTNIC}/namespaces/default/{VMIS}/vm1/interfaces"
KEY = str(StatusKey("default", "vm1", interface_hash("iface1")))
THEN = "2026-01-01T00:00:01.000Z"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ServedApi]:
    # Two of them for one namespace.
    async with serve_api(tmp_path, watchers=4) as served:
        reach_stage(served, Stage.POD_ANNOTATED)
        yield served


def reach_stage(api: ServedApi, stage: Stage, namespace: str = objects.NAMESPACE) -> tuple[VirtualMachineInstance, Pod]:
    vmi, pod = (
        msgspec.structs.replace(found, metadata=msgspec.structs.replace(found.metadata, namespace=namespace))
        for found in at_stage(stage)
    )
    assert isinstance(vmi, VirtualMachineInstance)
    assert isinstance(pod, Pod)
    api.put(VMIS, vmi)
    api.put(PODS, pod)
    return vmi, pod


async def store_failure(api: ServedApi, stage: Stage, **fields: Any) -> None:
    """Store an entry with a time and a last failure in the bucket, as the projector does."""
    vmi, pod = at_stage(stage)
    (nic_status,) = derive_statuses(parse_nics(vmi, pod))
    history = StageHistory(
        {stage: StageReached(THEN)}, LastFailure(THEN, 4, Stage.MULTUS_ATTACHED, "CniFailed", "no lease")
    )
    entry = msgspec.structs.replace(StatusEntry(vmi.metadata.uid, pod.metadata.uid, nic_status, history), **fields)
    await api.bus.kv(BUCKET).put(KEY, encode_entry(entry))


async def read(api: ServedApi) -> HotplugStatus:
    async with api.session.get(PATH) as answer:
        assert answer.status == 200
        return msgspec.json.decode(await answer.read(), type=HotplugStatus)


class Stream:
    """The lines of one watch."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def line(self) -> HotplugStatusEvent | None:
        """Return the next event; ``None`` at the end of the stream."""
        async with asyncio.timeout(5):
            line = await self._answer.content.readline()
        return msgspec.json.decode(line, type=HotplugStatusEvent) if line else None

    async def until(self, stage: Stage, *, since: bool = False) -> HotplugStatusEvent:
        """Return the first event in which the only interface has reached a stage.

        :param since: whether the time of the stage must be known.
        """
        while True:
            event = await self.line()
            assert event is not None
            (nic_status,) = event.object.items
            if nic_status.stage is stage and since is (nic_status.since is not None):
                return event


@contextlib.asynccontextmanager
async def watching(api: ServedApi, **query: str) -> AsyncIterator[Stream]:
    async with api.session.get(PATH, params={"watch": "true", **query}) as answer:
        assert answer.status == 200, await answer.text()
        yield Stream(answer)


async def test_status_has_stages_of_objects_and_times_of_the_bucket(api: ServedApi) -> None:
    await store_failure(api, Stage.POD_ANNOTATED)
    hotplug_status = await read(api)
    assert (hotplug_status.kind, hotplug_status.api_version, hotplug_status.degraded) == ("HotplugStatus", HOTNIC, None)
    (nic_status,) = hotplug_status.items
    assert (nic_status.stage, nic_status.since, nic_status.reason, nic_status.attempts) == (
        Stage.POD_ANNOTATED,
        THEN,
        "CniFailed",
        4,
    )
    reach_stage(api, Stage.GUEST_ATTACHED)
    (nic_status,) = (await read(api)).items
    assert (nic_status.stage, nic_status.since, nic_status.reason) == (Stage.GUEST_ATTACHED, None, None)


async def test_status_beside_kubevirt_says_what_to_do(api: ServedApi) -> None:
    api.cluster = ClusterSettings(False, "masquerade", capabilities("v1.9.0"))
    _, pod = reach_stage(api, Stage.POD_ANNOTATED)
    (nic_status,) = (await read(api)).items
    assert nic_status.reason == "NoNetworksController"
    metadata = {"labels": {"app": "dynamic-networks-controller"}}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    # Any user may set the label.
    api.kube.put(PODS, "tenant", "dnc-1", metadata=metadata, spec={"nodeName": "node1"}, status=ready)
    (nic_status,) = (await read(api)).items
    assert nic_status.reason == "NoNetworksController"
    spec = {"nodeName": "node1", "volumes": [{"name": "multus", "hostPath": {"path": "/run/multus/multus.sock"}}]}
    api.kube.put(PODS, "multus", "dnc-1", metadata=metadata, spec=spec, status=ready)
    (nic_status,) = (await read(api)).items
    assert nic_status.reason == "WaitingForMultusAttached"
    assert pod.metadata.name in str(nic_status.remedy)
    assert nic_status.docs == "docs/beside-kubevirt.md#waitingformultusattached"
    async with watching(api) as stream:
        first = await stream.line()
        assert first is not None
        assert first.object.items == (nic_status,)


async def test_streams_of_one_vmi_share_its_watch(api: ServedApi) -> None:
    """Each would keep its pods, which may be large, and decode each change."""
    reach_stage(api, Stage.POD_ANNOTATED)
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watching(api)) for _ in range(2)]
        first = [await stream.line() for stream in streams]
        reach_stage(api, Stage.MULTUS_ATTACHED)
        second = [await stream.line() for stream in streams]
        assert [line and line.object.items[0].stage for line in first] == [Stage.POD_ANNOTATED] * 2
        assert [line and line.object.items[0].stage for line in second] == [Stage.MULTUS_ATTACHED] * 2
        assert [api.kube.counted("WATCH", plural) for plural in (PODS, VMIS, "virtualmachines")] == [1, 1, 1]


@pytest.mark.parametrize("fields", [{"vmi_uid": "another"}, {"pod_uid": "another"}])
async def test_entry_of_another_vmi_or_pod_is_ignored(api: ServedApi, fields: dict[str, str]) -> None:
    await store_failure(api, Stage.POD_ANNOTATED, **fields)
    (nic_status,) = (await read(api)).items
    assert (nic_status.since, nic_status.reason) == (None, "WaitingForMultusAttached")
    await api.bus.kv(BUCKET).put(KEY, b"garbage")
    assert (await read(api)).items == (nic_status,)


async def stored(api: ServedApi, **query: str) -> HotplugStatus:
    async with api.session.get(PATH, params={"stored": "true", **query}) as answer:
        assert answer.status == 200, await answer.text()
        return msgspec.json.decode(await answer.read(), type=HotplugStatus)


async def test_stored_parameter_adds_all_bucket_entries_of_the_vmi(api: ServedApi) -> None:
    assert (await stored(api)).stored == ()
    await store_failure(api, Stage.GUEST_ATTACHED)
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
        interface_hash("iface1"): decode_entry(left.value),
        interface_hash("gone"): decode_entry(left.value),
        interface_hash("broken"): None,
    }
    # The statuses are the same with and without the parameter.
    assert found.items == (await read(api)).items
    assert (await read(api)).stored is None
    assert (await stored(api, stored="0")).stored is None


async def test_stored_entries_are_missing_without_the_bus(api: ServedApi) -> None:
    await store_failure(api, Stage.POD_ANNOTATED)
    api.bus.broker.stop()
    found = await stored(api)
    assert (found.degraded, found.stored, len(found.items)) == ("bus", None, 1)


async def test_flag_that_is_neither_true_nor_false_is_refused(api: ServedApi) -> None:
    async with api.session.get(PATH, params={"stored": "perhaps"}) as answer:
        assert (answer.status, "perhaps" in (await answer.json())["message"]) == (400, True)


async def test_status_without_the_bus_is_degraded(api: ServedApi) -> None:
    await store_failure(api, Stage.POD_ANNOTATED)
    api.bus.broker.stop()
    hotplug_status = await read(api)
    assert hotplug_status.degraded == "bus"
    assert [(nic_status.stage, nic_status.since) for nic_status in hotplug_status.items] == [
        (Stage.POD_ANNOTATED, None)
    ]


async def test_watch_streams_changes_of_objects_and_of_the_bucket(api: ServedApi) -> None:
    async with watching(api) as stream:
        first = await stream.line()
        assert first is not None
        assert first.type == "ADDED"
        await store_failure(api, Stage.POD_ANNOTATED)
        assert (await stream.until(Stage.POD_ANNOTATED, since=True)).type == "MODIFIED"
        reach_stage(api, Stage.GUEST_ATTACHED)
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


async def test_watch_ends_with_a_bookmark_and_resumes_from_it(api: ServedApi) -> None:
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
    reach_stage(api, Stage.MULTUS_ATTACHED)
    async with watching(api, resourceVersion=token) as stream:
        changed = await stream.line()
        assert changed is not None
        assert (changed.type, changed.object.items[0].stage) == ("MODIFIED", Stage.MULTUS_ATTACHED)


async def test_watch_reports_when_the_bus_is_unavailable_and_back(api: ServedApi) -> None:
    api.bus.broker.stop()
    async with watching(api) as stream:
        first = await stream.line()
        assert first is not None
        assert first.object.degraded == "bus"
        api.bus.broker.start()
        second = await stream.line()
        assert second is not None
        assert second.object.degraded is None


async def test_watches_are_limited_and_a_closed_one_frees_its_place(api: ServedApi) -> None:
    async with watching(api) as one, watching(api) as two:
        await one.line()
        await two.line()
        async with api.session.get(PATH, params={"watch": "1"}) as answer:
            status = await answer.json()
            assert (answer.status, status["reason"], answer.headers["Retry-After"]) == (429, "TooManyRequests", "1")
        assert (await read(api)).items
        # Another user of the namespace is refused, too; one of another namespace is not.
        user = {"X-Remote-User": "another"}
        async with api.session.get(PATH, params={"watch": "1"}, headers=user) as answer:
            assert (answer.status, "2 of one namespace" in (await answer.json())["message"]) == (429, True)
        reach_stage(api, Stage.POD_ANNOTATED, "other")
        async with api.session.get(PATH.replace("/default/", "/other/"), params={"watch": "1"}) as answer:
            assert answer.status == 200
    reach_stage(api, Stage.MULTUS_ATTACHED)
    async with asyncio.timeout(5):
        while True:
            async with api.session.get(PATH, params={"watch": "1", "timeoutSeconds": "1"}) as answer:
                if answer.status == 200:
                    break


async def test_one_user_cannot_use_up_the_watches_of_others(tmp_path: Path) -> None:
    async with serve_api(tmp_path) as api, contextlib.AsyncExitStack() as opened:
        reach_stage(api, Stage.POD_ANNOTATED)
        streams = [await opened.enter_async_context(watching(api)) for _ in range(MAX_WATCHERS_OF_USER)]
        async with api.session.get(PATH, params={"watch": "1"}) as answer:
            assert answer.status == 429
        async with api.session.get(PATH, params={"watch": "1"}, headers={"X-Remote-User": "another"}) as answer:
            assert answer.status == 200
        assert await streams[0].line() is not None


@pytest.mark.timeout(400)
async def test_as_many_watches_as_a_replica_has_let_no_request_wait(tmp_path: Path) -> None:
    """Each occupies three connections to the Kubernetes API."""
    async with contextlib.AsyncExitStack() as opened:
        api = await opened.enter_async_context(serve_api(tmp_path))
        namespaces = ("default", "other")
        for namespace in namespaces:
            reach_stage(api, Stage.POD_ANNOTATED, namespace)
        connector = aiohttp.TCPConnector(limit=0)
        session = await opened.enter_async_context(aiohttp.ClientSession(f"http://{api.address}", connector=connector))
        streams: list[Stream] = []
        async with asyncio.timeout(300):
            for n in range(MAX_WATCHERS):
                user = {"X-Remote-User": f"user-{n // MAX_WATCHERS_OF_USER}"}
                path = PATH.replace("/default/", f"/{namespaces[n % 2]}/")
                answer = await session.get(path, params={"watch": "1"}, headers=user)
                opened.callback(answer.close)
                streams.append(Stream(answer))
                assert await streams[-1].line() is not None
            async with session.get(PATH, params={"watch": "1"}, headers={"X-Remote-User": "another"}) as refused:
                assert refused.status == 429
            assert (await read(api)).items
            for namespace in namespaces:
                reach_stage(api, Stage.MULTUS_ATTACHED, namespace)
            for changed in [await stream.line() for stream in streams]:
                assert changed is not None
                assert changed.type == "MODIFIED"


async def test_stopping_server_ends_streams_with_a_bookmark(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as own:
        async with serve_api(tmp_path) as served:
            reach_stage(served, Stage.POD_ANNOTATED)
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
async def test_malformed_parameter_is_refused(api: ServedApi, query: dict[str, str], code: int) -> None:
    async with api.session.get(PATH, params=query) as answer:
        assert (answer.status, (await answer.json())["kind"]) == (code, "Status")


@pytest.mark.parametrize(
    "status", [{"runtimeUser": "x"}, {"interfaces": [{}] * 2000}, {"interfaces": [{"z": [{}] * 20_000}]}]
)
async def test_a_field_of_the_wrong_type_or_size_is_named_and_no_fault_of_the_api(
    api: ServedApi, status: dict[str, Any]
) -> None:
    broken = msgspec.to_builtins(objects.vmi())
    broken["status"] |= status
    api.kube.put(VMIS, "default", "vm1", **broken)
    async with api.session.get(PATH) as answer:
        found = await answer.json()
    assert (answer.status, found["reason"]) == (422, "Invalid")
    assert next(iter(status)) in found["message"]


@pytest.mark.parametrize("query", [{}, {"watch": "true"}])
async def test_missing_or_malformed_vmi_is_a_status_error(api: ServedApi, query: dict[str, str]) -> None:
    async with api.session.get(PATH.replace("vm1", "vm2"), params=query) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (404, "NotFound")
    broken = msgspec.to_builtins(objects.vmi())
    broken["spec"]["domain"]["devices"]["interfaces"] = [{"name": 5}]
    api.kube.put(VMIS, "default", "vm1", **broken)
    async with api.session.get(PATH, params=query) as answer:
        status = await answer.json()
        assert (answer.status, status["kind"]) == (422, "Status")
        assert "cannot be read" in status["message"]


async def test_interfaces_subresource_is_listed_in_the_hotnic_group_only(api: ServedApi) -> None:
    for group, listed in ((HOTNIC, True), ("subresources.kubevirt.io/v1", False)):
        async with api.session.get(f"/apis/{group}") as answer:
            found = [one for one in (await answer.json())["resources"] if one["name"].endswith("/interfaces")]
        assert [(one["kind"], one["verbs"]) for one in found] == ([("HotplugStatus", ["get"])] if listed else [])
