"""The fields that the server writes into metadata, and the deletion of objects."""

import asyncio
import time
from datetime import datetime

from tests.cluster.tools import Api, CustomKind, Kubectl, Object, events

MERGE = "application/merge-patch+json"
CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"
PODS = "/api/v1/namespaces/{ns}/pods"
CONTROLLERS_DEADLINE = 300.0
"""Seconds. A new kind waits for the garbage collector, which looks every 30 s for kinds that are new."""


async def disappears(api: Api, path: str) -> bool:
    """Return whether an object disappears within the time that a real cluster's controllers need."""
    deadline = time.monotonic() + CONTROLLERS_DEADLINE
    while (await api("GET", path)).code != 404:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


async def test_creation_sets_system_fields(api: Api, unique: str) -> None:
    """API conventions, metadata: uid, resourceVersion, creationTimestamp and namespace come from the server."""
    first = await api("POST", CONFIGMAPS, {"metadata": {"name": f"{unique}-1", "uid": "mine", "generation": 9}})
    second = await api("POST", CONFIGMAPS, {"metadata": {"name": f"{unique}-2"}})
    assert (first.code, first.body["kind"], first.body["apiVersion"]) == (201, "ConfigMap", "v1")
    metadata = first.body["metadata"]
    assert metadata["namespace"] == api.namespace
    assert len(metadata["uid"]) == 36
    assert metadata["uid"] != second.body["metadata"]["uid"]
    assert datetime.fromisoformat(metadata["creationTimestamp"]).tzinfo is not None
    assert int(second.body["metadata"]["resourceVersion"]) > int(metadata["resourceVersion"])


async def test_system_fields_cannot_be_changed(api: Api, unique: str) -> None:
    """A patch of creationTimestamp or generation has no effect; one of the deletion is 422."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    path = f"{CONFIGMAPS}/{unique}"
    other = {"metadata": {"creationTimestamp": "2000-01-01T00:00:00Z", "generation": 7}}
    answer = await api("PATCH", path, other, content=MERGE)
    assert answer.body["metadata"] == made.body["metadata"]
    for field, value in (("deletionTimestamp", "2000-01-01T00:00:00Z"), ("deletionGracePeriodSeconds", 5)):
        answer = await api("PATCH", path, {"metadata": {field: value}}, content=MERGE)
        assert (answer.code, answer.body["reason"]) == (422, "Invalid")
        assert {cause["field"] for cause in answer.body["details"]["causes"]} == {f"metadata.{field}"}


async def test_generated_names_are_unique(api: Api, unique: str) -> None:
    """metadata.generateName: the name is the prefix and five characters; the status is 201."""
    names = set()
    for _ in range(3):
        answer = await api("POST", CONFIGMAPS, {"metadata": {"generateName": f"{unique}-"}})
        names.add(answer.body["metadata"]["name"])
    assert len(names) == 3
    assert all(name.startswith(f"{unique}-") and len(name) == len(unique) + 6 for name in names)


async def test_put_without_version_is_unconditional_for_built_in_kinds(api: Api, unique: str) -> None:
    """AllowUnconditionalUpdate of built-in kinds."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}, "data": {"a": "1"}})
    answer = await api("PUT", f"{CONFIGMAPS}/{unique}", {"metadata": {"name": unique}, "data": {"b": "2"}})
    assert (answer.code, answer.body["data"]) == (200, {"b": "2"})


async def test_deletion_returns_a_status(api: Api, unique: str) -> None:
    """DELETE of a ConfigMap: 200 and a Success Status with the uid in its details."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    answer = await api("DELETE", f"{CONFIGMAPS}/{unique}")
    assert (answer.code, answer.body["status"]) == (200, "Success")
    assert answer.body["details"]["uid"] == made.body["metadata"]["uid"]


async def test_finalizers_delay_the_removal_of_a_deleted_object(api: Api, unique: str) -> None:
    """Finalizers: deletionTimestamp is set, none can be added, and the removal of the last one removes the object."""
    path = f"{CONFIGMAPS}/{unique}"
    await api(
        "POST", CONFIGMAPS, {"metadata": {"name": unique, "finalizers": ["test.hotnic.io/a", "test.hotnic.io/b"]}}
    )
    answer = await api("DELETE", path)
    assert answer.body["metadata"]["deletionTimestamp"]
    assert answer.body["metadata"]["deletionGracePeriodSeconds"] == 0
    three = {"metadata": {"finalizers": ["test.hotnic.io/a", "test.hotnic.io/b", "test.hotnic.io/c"]}}
    rejected = await api("PATCH", path, three, content=MERGE)
    assert (rejected.code, rejected.body["reason"]) == (422, "Invalid")
    one = await api("PATCH", path, {"metadata": {"finalizers": ["test.hotnic.io/b"]}}, content=MERGE)
    assert one.code == 200
    assert (await api("GET", path)).code == 200
    last = await api("PATCH", path, {"metadata": {"finalizers": []}}, content=MERGE)
    assert last.code == 200
    assert (await api("GET", path)).code == 404


def pod(name: str, **spec: object) -> Object:
    containers = [{"name": "main", "image": "example.com/a:1"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, "schedulerName": "nobody", **spec}}


async def test_unscheduled_pod_is_removed_at_once(api: Api, unique: str) -> None:
    """Pod deletion: a pod without a node has no kubelet to wait for."""
    made = await api("POST", PODS, pod(unique))
    assert made.code == 201
    assert made.body["status"]["phase"] == "Pending"
    assert made.body["spec"]["restartPolicy"] == "Always"
    await api("DELETE", f"{PODS}/{unique}")
    assert (await api("GET", f"{PODS}/{unique}")).code == 404


async def test_scheduled_pod_waits_for_its_kubelet(api: Api, unique: str) -> None:
    """Pod deletion with grace: deletionTimestamp is in the future; only the kubelet, or force, sets grace 0."""
    # The node does not exist, so no kubelet ends the pod.
    made = await api("POST", PODS, pod(unique, nodeName=f"no-{unique}", terminationGracePeriodSeconds=60))
    assert made.code == 201
    path = f"{PODS}/{unique}"
    answer = await api("DELETE", path)
    assert answer.body["kind"] == "Pod"
    assert answer.body["metadata"]["deletionGracePeriodSeconds"] == 60
    shorter = await api("DELETE", path, {"gracePeriodSeconds": 5})
    assert shorter.body["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = await api("DELETE", path, {"gracePeriodSeconds": 50})
    assert longer.body["metadata"]["deletionGracePeriodSeconds"] == 5
    await api("DELETE", path, {"gracePeriodSeconds": 0})
    assert (await api("GET", path)).code == 404


async def test_pod_spec_is_immutable_except_images(api: Api, unique: str) -> None:
    """ValidatePodUpdate: only images of containers may change; nodeName is set by binding only."""
    await api("POST", PODS, pod(unique))
    path = f"{PODS}/{unique}"
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "example.com/a:2"}]
    assert (await api("PATCH", path, image, content="application/json-patch+json")).code == 200
    command = [{"op": "add", "path": "/spec/containers/0/command", "value": ["x"]}]
    rejected = await api("PATCH", path, command, content="application/json-patch+json")
    assert rejected.code == 422
    assert "pod updates may not change fields other than" in rejected.body["message"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": unique},
        "target": {"kind": "Node", "name": "n"},
    }
    bound = await api("POST", f"{path}/binding", binding)
    assert (bound.code, bound.body["status"]) == (201, "Success")
    assert (await api("GET", path)).body["spec"]["nodeName"] == "n"
    assert (await api("POST", f"{path}/binding", binding)).code == 409
    await api("DELETE", path, {"gracePeriodSeconds": 0})


async def test_pod_requires_containers(api: Api, unique: str) -> None:
    """ValidatePodSpec: spec.containers is required."""
    answer = await api("POST", PODS, {"metadata": {"name": unique}, "spec": {"containers": []}})
    assert answer.code == 422
    assert "spec.containers" in [cause["field"] for cause in answer.body["details"]["causes"]]


def owned_by(owner: Object, name: str, *, block: bool = False) -> Object:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": block,
    }
    return {"metadata": {"name": name, "ownerReferences": [reference]}}


async def test_dependents_are_deleted_after_their_owner(api: Api, widgets: CustomKind, unique: str) -> None:
    """Garbage collection, background: the owner is removed at once, its dependents and theirs soon after."""
    owner = (await api("POST", widgets.path, widgets.make(unique))).body
    child = (await api("POST", CONFIGMAPS, owned_by(owner, f"{unique}-child"))).body
    await api("POST", CONFIGMAPS, owned_by(child, f"{unique}-grandchild"))
    await api("DELETE", f"{widgets.path}/{unique}")
    assert (await api("GET", f"{widgets.path}/{unique}")).code == 404
    assert await disappears(api, f"{CONFIGMAPS}/{unique}-child")
    assert await disappears(api, f"{CONFIGMAPS}/{unique}-grandchild")


async def test_orphaned_dependent_remains(api: Api, unique: str) -> None:
    """propagationPolicy Orphan: dependents lose the owner reference and remain."""
    owner = (await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})).body
    await api("POST", CONFIGMAPS, owned_by(owner, f"{unique}-child"))
    await api("DELETE", f"{CONFIGMAPS}/{unique}", {"propagationPolicy": "Orphan"})
    assert await disappears(api, f"{CONFIGMAPS}/{unique}")
    child = await api("GET", f"{CONFIGMAPS}/{unique}-child")
    assert child.code == 200
    assert "ownerReferences" not in child.body["metadata"]


async def test_foreground_deletion_waits_for_dependents(api: Api, unique: str) -> None:
    """propagationPolicy Foreground: the owner is removed after the dependents that block it."""
    owner = (await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})).body
    child = owned_by(owner, f"{unique}-child", block=True)
    child["metadata"]["finalizers"] = ["test.hotnic.io/hold"]
    version = (await api("POST", CONFIGMAPS, child)).body["metadata"]["resourceVersion"]
    answer = await api("DELETE", f"{CONFIGMAPS}/{unique}", {"propagationPolicy": "Foreground"})
    assert "foregroundDeletion" in answer.body["metadata"]["finalizers"]
    watch = api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}&fieldSelector=metadata.name={unique}-child")
    [marked] = await events(watch, 1)
    assert marked["object"]["metadata"]["deletionTimestamp"]
    assert (await api("GET", f"{CONFIGMAPS}/{unique}")).code == 200
    await api("PATCH", f"{CONFIGMAPS}/{unique}-child", {"metadata": {"finalizers": None}}, content=MERGE)
    assert await disappears(api, f"{CONFIGMAPS}/{unique}")


async def test_collection_is_deleted_by_selector(api: Api, unique: str) -> None:
    """deletecollection: DELETE on the collection with a selector."""
    for n in (1, 2, 3):
        labels = {"batch": unique, "odd": str(n % 2)}
        await api("POST", CONFIGMAPS, {"metadata": {"name": f"{unique}-{n}", "labels": labels}})
    answer = await api("DELETE", f"{CONFIGMAPS}?labelSelector=batch={unique},odd=1")
    assert answer.code == 200
    left = await api("GET", f"{CONFIGMAPS}?labelSelector=batch={unique}")
    assert [item["metadata"]["name"] for item in left.body["items"]] == [f"{unique}-2"]


async def test_immutable_config_map_rejects_changes(api: Api, unique: str) -> None:
    """ConfigMap immutable: true."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}, "data": {"a": "1"}, "immutable": True})
    answer = await api("PATCH", f"{CONFIGMAPS}/{unique}", {"data": {"a": "2"}}, content=MERGE)
    assert answer.code == 422
    assert "immutable" in answer.body["message"]


def test_secret_string_data_is_stored_as_data(kubectl: Kubectl, unique: str) -> None:
    """Secret stringData is write-only and is returned in data, in base64; the type defaults to Opaque."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": unique}, "stringData": {"a": "hello"}}
    stored = kubectl("create", "-o", "json", "-f", "-", stdin=secret).json
    assert (stored["data"], stored["type"]) == ({"a": "aGVsbG8="}, "Opaque")
    assert "stringData" not in stored
