"""Watches: their start, their events, and their end."""

import asyncio

from tests.cluster.tools import Api, CustomKind, Kubectl, events

MERGE = "application/merge-patch+json"
CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


async def make(api: Api, name: str, **labels: str) -> str:
    """Create a ConfigMap and return its resourceVersion."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": name, "labels": labels}})
    version: str = made.body["metadata"]["resourceVersion"]
    return version


async def test_watch_from_a_version_reports_all_later_changes(api: Api, unique: str) -> None:
    """API concepts, "Efficient detection of changes": ADDED, MODIFIED, DELETED after the given version, in order."""
    await make(api, f"{unique}-before")
    version = (await api("GET", CONFIGMAPS)).body["metadata"]["resourceVersion"]
    await make(api, unique)
    await api("PATCH", f"{CONFIGMAPS}/{unique}", {"data": {"a": "1"}}, content=MERGE)
    await api("DELETE", f"{CONFIGMAPS}/{unique}")
    found = await events(api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}"), 3)
    assert [event["type"] for event in found] == ["ADDED", "MODIFIED", "DELETED"]
    assert {event["object"]["metadata"]["name"] for event in found} == {unique}
    assert {event["object"]["kind"] for event in found} == {"ConfigMap"}
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in found]
    assert versions == sorted(set(versions))
    assert found[2]["object"]["data"] == {"a": "1"}


async def test_watch_without_version_starts_with_current_objects(api: Api, unique: str) -> None:
    """resourceVersion unset or 0: "Get State and Start"; the current objects are sent as ADDED."""
    await make(api, unique, case=unique)
    for start in ("", "&resourceVersion=0"):
        watch = api.watch(f"{CONFIGMAPS}?watch=1&labelSelector=case={unique}{start}")
        [event] = await events(watch, 1)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", unique)
        await api("PATCH", f"{CONFIGMAPS}/{unique}", {"data": {"start": start}}, content=MERGE)
        [event] = await events(watch, 1)
        assert event["type"] == "MODIFIED"


async def test_selected_watch_reports_added_and_deleted_as_labels_change(api: Api, unique: str) -> None:
    """A watched selection: an object that starts to match is ADDED, one that no longer matches is DELETED."""
    version = await make(api, unique)
    watch = api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}&labelSelector=in={unique}")
    path = f"{CONFIGMAPS}/{unique}"
    for value in (unique, unique + "x", unique):
        await api("PATCH", path, {"metadata": {"labels": {"in": value}}}, content=MERGE)
    await api("DELETE", path)
    found = await events(watch, 4)
    assert [event["type"] for event in found] == ["ADDED", "DELETED", "ADDED", "DELETED"]


async def test_one_object_is_watched_by_its_name(api: Api, unique: str) -> None:
    """fieldSelector=metadata.name, as kubectl wait and delete use it."""
    version = await make(api, f"{unique}-other")
    path = f"{CONFIGMAPS}?watch=true&resourceVersion={version}&fieldSelector=metadata.name={unique}"
    await make(api, f"{unique}-another")
    await make(api, unique)
    [event] = await events(api.watch(path), 1)
    assert event["object"]["metadata"]["name"] == unique


async def test_watch_of_all_namespaces(api: Api, unique: str) -> None:
    """The collection in all namespaces can be watched too."""
    version = (await api("GET", CONFIGMAPS)).body["metadata"]["resourceVersion"]
    path = f"/api/v1/configmaps?watch=true&resourceVersion={version}&labelSelector=case={unique}"
    await make(api, unique, case=unique)
    [event] = await events(api.watch(path), 1)
    assert event["object"]["metadata"]["namespace"] == api.namespace


async def test_timeout_seconds_ends_a_watch_cleanly(api: Api, unique: str) -> None:
    """timeoutSeconds: the stream ends cleanly after that time."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    path = f"{CONFIGMAPS}?watch=true&timeoutSeconds=1&labelSelector=case={unique}"
    assert [event async for event in api.watch(path)] == []
    assert 0.9 < loop.time() - start < 10


async def test_watch_supports_tables_and_partial_metadata(api: Api, widgets: CustomKind, unique: str) -> None:
    """as=Table and as=PartialObjectMetadata apply to watches; only the first event has column definitions."""
    made = await api("POST", widgets.path, widgets.make(unique))
    version = made.body["metadata"]["resourceVersion"]
    path = f"{widgets.path}?watch=true&resourceVersion={version}"
    for size in (2, 3):
        await api("PATCH", f"{widgets.path}/{unique}", {"spec": {"size": size}}, content=MERGE)
    first, second = await events(api.watch(path, TABLE), 2)
    assert [column["name"] for column in first["object"]["columnDefinitions"]] == [
        "Name",
        "Size",
        "Phase",
        "Part",
        "Age",
    ]
    assert not second["object"]["columnDefinitions"]
    assert second["object"]["rows"][0]["cells"][:2] == [unique, 3]
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    [event] = await events(api.watch(path, accept), 1)
    assert event["object"]["kind"] == "PartialObjectMetadata"
    assert "spec" not in event["object"]


async def test_deletion_with_finalizers_is_reported_as_modified(api: Api, unique: str) -> None:
    """Finalizers and watches: MODIFIED with a deletionTimestamp, then DELETED when the last finalizer is removed."""
    obj = {"metadata": {"name": unique, "finalizers": ["test.hotnic.io/hold"]}}
    version = (await api("POST", CONFIGMAPS, obj)).body["metadata"]["resourceVersion"]
    path = f"{CONFIGMAPS}/{unique}"
    await api("DELETE", path)
    await api("PATCH", path, {"metadata": {"finalizers": None}}, content=MERGE)
    watch = api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}&fieldSelector=metadata.name={unique}")
    found = await events(watch, 2)
    assert found[0]["type"] == "MODIFIED"
    assert found[0]["object"]["metadata"]["deletionTimestamp"]
    last = found[1] if found[1]["type"] == "DELETED" else (await events(watch, 1))[0]
    assert last["type"] == "DELETED"


async def test_all_watchers_receive_the_same_events(api: Api, unique: str) -> None:
    """Each watch receives every event."""
    version = await make(api, f"{unique}-0")
    path = f"{CONFIGMAPS}?watch=true&resourceVersion={version}"
    watchers = [asyncio.create_task(events(api.watch(path), 3)) for _ in range(5)]
    for n in (1, 2, 3):
        await make(api, f"{unique}-{n}")
    events_per_watcher = await asyncio.gather(*watchers)
    names = [[event["object"]["metadata"]["name"] for event in found] for found in events_per_watcher]
    assert names == [[f"{unique}-1", f"{unique}-2", f"{unique}-3"]] * 5


def test_kubectl_raw_watch_is_unchanged(kubectl: Kubectl, unique: str) -> None:
    """kubectl get --raw prints a watch unchanged."""
    kubectl("create", "configmap", unique)
    options = f"watch=true&timeoutSeconds=1&fieldSelector=metadata.name={unique}"
    path = f"/api/v1/namespaces/{kubectl.namespace}/configmaps?{options}"
    assert kubectl("get", "--raw", path).stdout.startswith('{"type":"ADDED","object":{')
