"""The four kinds of PATCH, by HTTP and by kubectl."""

import json
from typing import Any

import pytest

from tests.cluster.tools import Api, CustomKind, Kubectl, Object

JSON_PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"


async def configmap(api: Api, name: str, **data: str) -> str:
    """Create a ConfigMap and return its path."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": name}, "data": data})
    assert made.code == 201
    return f"{CONFIGMAPS}/{name}"


async def test_json_patch_applies_operations_in_order(api: Api, unique: str) -> None:
    """RFC 6902: add, replace, remove, move, copy and test, one after another, ~1 and ~0 in paths."""
    path = await configmap(api, unique, a="1", b="2")
    operations = [
        {"op": "test", "path": "/data/a", "value": "1"},
        {"op": "add", "path": "/metadata/annotations", "value": {"example.com/x": "old"}},
        {"op": "replace", "path": "/metadata/annotations/example.com~1x", "value": "new"},
        {"op": "move", "from": "/data/a", "path": "/data/c"},
        {"op": "copy", "from": "/data/b", "path": "/data/d"},
        {"op": "remove", "path": "/data/b"},
    ]
    answer = await api("PATCH", path, operations, content=JSON_PATCH)
    assert answer.code == 200
    assert answer.body["data"] == {"c": "1", "d": "2"}
    assert answer.body["metadata"]["annotations"] == {"example.com/x": "new"}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/a", "value": "other"},
        {"op": "remove", "path": "/data/none"},
        {"op": "replace", "path": "/none/deep", "value": "x"},
        {"op": "add", "path": "/none/deep", "value": "x"},
    ],
    ids=["test", "remove", "replace", "add"],
)
async def test_json_patch_that_does_not_apply_changes_nothing(api: Api, unique: str, operation: Object) -> None:
    """422 Invalid for the whole patch (apiserver, jsonPatcher.applyJSPatch), without the library's message."""
    path = await configmap(api, unique, a="1")
    added = {"op": "add", "path": "/data/b", "value": "2"}
    answer = await api("PATCH", path, [added, operation], content=JSON_PATCH)
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")
    assert answer.body["message"] == "the server rejected our request due to an error in our request"
    assert (await api("GET", path)).body["data"] == {"a": "1"}


async def test_json_patch_replaces_a_missing_key(api: Api, unique: str) -> None:
    """Against RFC 6902, which requires that it exists (evanphx/json-patch v4)."""
    path = await configmap(api, unique, a="1")
    operations = [{"op": "replace", "path": "/data/b", "value": "2"}]
    answer = await api("PATCH", path, operations, content=JSON_PATCH)
    assert (answer.code, answer.body["data"]) == (200, {"a": "1", "b": "2"})


async def test_kubectl_reports_failed_test_operation_as_invalid(kubectl: Kubectl, unique: str) -> None:
    """kubectl patch --type=json: "The request is invalid: ..."."""
    kubectl("create", "configmap", unique)
    patch = json.dumps([{"op": "test", "path": "/metadata/name", "value": "x"}])
    rejected = kubectl("patch", "configmap", unique, "--type=json", "-p", patch, fails=True)
    assert rejected.stderr.startswith("The request is invalid: the server rejected our request")


async def test_patch_with_stale_version_is_a_conflict(api: Api, unique: str) -> None:
    """A patch that sets metadata.resourceVersion is an optimistic lock: 409 when it is not the current one."""
    path = await configmap(api, unique)
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"a": "b"}}
    answer = await api("PATCH", path, stale, content=MERGE)
    assert (answer.code, answer.body["reason"]) == (409, "Conflict")


async def test_merge_patch_merges_objects_and_null_deletes(api: Api, unique: str) -> None:
    """RFC 7386."""
    path = await configmap(api, unique, a="1", b="2")
    answer = await api("PATCH", path, {"data": {"a": None, "c": "3"}}, content=MERGE)
    assert answer.body["data"] == {"b": "2", "c": "3"}


async def test_patch_without_effect_does_not_change_the_version(api: Api, unique: str) -> None:
    """The API server does not write an unchanged object: resourceVersion is unchanged, watchers get no event."""
    path = await configmap(api, unique, a="1")
    before = (await api("GET", path)).body["metadata"]["resourceVersion"]
    answer = await api("PATCH", path, {"data": {"a": "1"}}, content=MERGE)
    assert answer.body["metadata"]["resourceVersion"] == before


def pod(name: str) -> Object:
    container = {"name": "main", "image": "example.com/a:1", "env": [{"name": "A", "value": "1"}]}
    other = {"name": "side", "image": "example.com/b:1"}
    # A scheduler that does not exist keeps real clusters from starting the pod.
    spec = {"containers": [container, other], "schedulerName": "nobody", "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


async def test_strategic_merge_merges_lists_by_their_keys(api: Api, unique: str) -> None:
    """Strategic merge patch: containers are merged by name; the container in the patch changes, the other does not."""
    made = await api("POST", "/api/v1/namespaces/{ns}/pods", pod(unique))
    assert made.code == 201
    path = f"/api/v1/namespaces/{{ns}}/pods/{unique}"
    patch: Any = {"spec": {"containers": [{"name": "side", "image": "example.com/b:2"}]}}
    answer = await api("PATCH", path, patch, content=STRATEGIC)
    assert answer.code == 200
    images = [container["image"] for container in answer.body["spec"]["containers"]]
    assert images == ["example.com/a:1", "example.com/b:2"]
    finalizers = {"metadata": {"finalizers": ["test.hotnic.io/a"], "$setElementOrder/finalizers": ["test.hotnic.io/a"]}}
    answer = await api("PATCH", path, finalizers, content=STRATEGIC)
    assert answer.body["metadata"]["finalizers"] == ["test.hotnic.io/a"]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["test.hotnic.io/a"]}}
    answer = await api("PATCH", path, patch, content=STRATEGIC)
    assert "finalizers" not in answer.body["metadata"]
    condition = {"type": "Ready", "status": "False", "reason": "Testing"}
    answer = await api("PATCH", f"{path}/status", {"status": {"conditions": [condition]}}, content=STRATEGIC)
    other = {"type": "test.hotnic.io/x", "status": "True"}
    answer = await api("PATCH", f"{path}/status", {"status": {"conditions": [other]}}, content=STRATEGIC)
    assert {c["type"] for c in answer.body["status"]["conditions"]} >= {"Ready", "test.hotnic.io/x"}
    gone = {"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}
    answer = await api("PATCH", f"{path}/status", gone, content=STRATEGIC)
    assert "Ready" not in {c["type"] for c in answer.body["status"]["conditions"]}
    assert (await api("DELETE", path)).code == 200


@pytest.mark.parametrize("content", [MERGE, JSON_PATCH])
async def test_the_status_of_a_pod_takes_annotations_and_labels_but_no_image_and_no_owner(
    api: Api, unique: str, content: str
) -> None:
    """pods/status: the node roles of hotnic write annotations through it, and need no right to patch pods."""
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "one", "uid": "0f0f0f0f-0000-4000-8000-000000000000"}
    made = pod(unique)
    made["metadata"]["annotations"] = {"example.com/old": "1"}
    assert (await api("POST", "/api/v1/namespaces/{ns}/pods", made)).code == 201
    path = f"/api/v1/namespaces/{{ns}}/pods/{unique}"
    before = (await api("GET", path)).body
    version = before["metadata"]["resourceVersion"]
    if content == MERGE:
        meta = {"annotations": {"example.com/a": "1", "example.com/old": None}, "labels": {"example.com/b": "2"}}
        meta |= {"ownerReferences": [owner], "resourceVersion": version}
        image = {"containers": [{"name": "main", "image": "example.com/other:1"}]}
        patch: Any = {"metadata": meta, "spec": image}
    else:
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "test", "path": "/spec/containers/0/image", "value": "example.com/a:1"},
            {"op": "add", "path": "/metadata/annotations/example.com~1a", "value": "1"},
            {"op": "remove", "path": "/metadata/annotations/example.com~1old"},
            {"op": "add", "path": "/metadata/labels", "value": {"example.com/b": "2"}},
            {"op": "add", "path": "/metadata/ownerReferences", "value": [owner]},
            {"op": "replace", "path": "/spec/containers/0/image", "value": "example.com/other:1"},
        ]
    answer = await api("PATCH", f"{path}/status", patch, content=content)
    assert answer.code == 200
    after = (await api("GET", path)).body
    assert after["metadata"]["annotations"] == {"example.com/a": "1"}
    assert after["metadata"]["labels"] == {"example.com/b": "2"}
    assert "ownerReferences" not in after["metadata"]
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])
    assert after["metadata"]["resourceVersion"] != version
    stale = {"metadata": {"resourceVersion": version, "annotations": {"example.com/a": "2"}}}
    assert (await api("PATCH", f"{path}/status", stale, content=MERGE)).code == 409
    assert (await api("DELETE", path)).code == 200


async def test_custom_kinds_reject_strategic_merge(api: Api, widgets: CustomKind, unique: str) -> None:
    """CustomResources: strategic merge is 415 UnsupportedMediaType; kubectl falls back to a merge patch."""
    await api("POST", widgets.path, widgets.make(unique))
    path = f"{widgets.path}/{unique}"
    answer = await api("PATCH", path, {"spec": {"size": 2}}, content=STRATEGIC)
    assert (answer.code, answer.body["reason"]) == (415, "UnsupportedMediaType")
    assert (await api("PATCH", path, {"spec": {"size": 2}}, content=MERGE)).body["spec"]["size"] == 2


@pytest.mark.parametrize("content", ["application/json", "text/plain", "application/x-patch"])
async def test_unknown_patch_type_is_unsupported(api: Api, unique: str, content: str) -> None:
    """415; only for custom resources the message has the accepted media types."""
    path = await configmap(api, unique)
    answer = await api("PATCH", path, {"data": {}}, content=content)
    assert (answer.code, answer.body["reason"]) == (415, "UnsupportedMediaType")
    assert answer.body["message"] == "415: Unsupported Media Type"


async def test_malformed_patch_is_a_bad_request(api: Api, unique: str) -> None:
    """400 for a body that is not JSON, or not a list of operations."""
    path = await configmap(api, unique)
    for body in ("{", '"text"', "[1]"):
        answer = await api("PATCH", path, body, content=JSON_PATCH)
        assert (answer.code, answer.body["reason"]) == (400, "BadRequest"), body


async def test_json_patch_appends_to_a_list(api: Api, widgets: CustomKind, unique: str) -> None:
    """ "-" appends; an index past the end is 422."""
    await api("POST", widgets.path, widgets.make(unique, parts=[{"name": "a"}]))
    path = f"{widgets.path}/{unique}"
    add = {"op": "add", "path": "/spec/parts/-", "value": {"name": "b"}}
    insert = {"op": "add", "path": "/spec/parts/0", "value": {"name": "c"}}
    answer = await api("PATCH", path, [add, insert], content=JSON_PATCH)
    assert [part["name"] for part in answer.body["spec"]["parts"]] == ["c", "a", "b"]
    beyond = {"op": "add", "path": "/spec/parts/9", "value": {"name": "d"}}
    assert (await api("PATCH", path, [beyond], content=JSON_PATCH)).code == 422


# -- server-side apply


async def apply(api: Api, path: str, body: Object, manager: str, *, force: bool = False) -> Any:
    query = f"?fieldManager={manager}" + ("&force=true" if force else "")
    return await api("PATCH", path + query, body, content=APPLY)


def applied(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_apply_creates_object_and_owns_its_fields(api: Api, unique: str) -> None:
    """Server-side apply: 201 when absent, 200 afterwards, and a managedFields entry of the manager."""
    path = f"{CONFIGMAPS}/{unique}"
    first = await apply(api, path, applied(unique, a="1"), "one")
    assert first.code == 201
    entry = first.body["metadata"]["managedFields"][0]
    assert (entry["manager"], entry["operation"], entry["fieldsType"]) == ("one", "Apply", "FieldsV1")
    assert entry["fieldsV1"] == {"f:data": {"f:a": {}}}
    second = await apply(api, path, applied(unique, a="2"), "one")
    assert (second.code, second.body["data"]) == (200, {"a": "2"})


async def test_apply_removes_fields_that_the_manager_leaves_out(api: Api, unique: str) -> None:
    """A field that its only manager no longer applies is removed."""
    path = f"{CONFIGMAPS}/{unique}"
    await apply(api, path, applied(unique, a="1", b="2"), "one")
    await apply(api, path, applied(unique, c="3"), "two")
    answer = await apply(api, path, applied(unique, a="1"), "one")
    assert answer.body["data"] == {"a": "1", "c": "3"}


async def test_apply_conflicts_with_another_manager_unless_forced(api: Api, unique: str) -> None:
    """409 Conflict with a FieldManagerConflict cause per field; force takes over the fields."""
    path = f"{CONFIGMAPS}/{unique}"
    await apply(api, path, applied(unique, a="1"), "one")
    rejected = await apply(api, path, applied(unique, a="2"), "two")
    assert (rejected.code, rejected.body["reason"]) == (409, "Conflict")
    [cause] = rejected.body["details"]["causes"]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".data.a")
    assert cause["message"].startswith('conflict with "one"')
    forced = await apply(api, path, applied(unique, a="2"), "two", force=True)
    assert (forced.code, forced.body["data"]) == (200, {"a": "2"})


async def test_apply_requires_manager_and_matching_name(api: Api, unique: str) -> None:
    """422 without fieldManager; 400 for another name."""
    path = f"{CONFIGMAPS}/{unique}"
    assert (await api("PATCH", path, applied(unique), content=APPLY)).code == 422
    assert (await apply(api, path, applied("other"), "one")).code == 400


async def test_apply_merges_lists_by_their_keys(api: Api, widgets: CustomKind, unique: str) -> None:
    """x-kubernetes-list-type=map: items of two managers coexist."""
    path = f"{widgets.path}/{unique}"
    await apply(api, path, widgets.make(unique, keyed=[{"name": "a", "value": "1"}]), "one")
    answer = await apply(api, path, widgets.make(unique, keyed=[{"name": "b", "value": "2"}]), "two")
    assert answer.code == 200
    assert sorted(item["name"] for item in answer.body["spec"]["keyed"]) == ["a", "b"]
    answer = await apply(api, path, widgets.make(unique), "one")
    assert [item["name"] for item in answer.body["spec"]["keyed"]] == ["b"]


def test_kubectl_applies_on_the_server(kubectl: Kubectl, unique: str) -> None:
    """kubectl apply --server-side: the manager is kubectl, and there is no last-applied annotation."""
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", stdin=applied(unique, a="1")).stdout
    kubectl("apply", "--server-side", "-f", "-", stdin=applied(unique, b="2"))
    found = kubectl("get", "configmap", unique, "-o", "json", "--show-managed-fields").json
    assert found["data"] == {"b": "2"}
    assert found["metadata"]["managedFields"][0]["manager"] == "kubectl"
    assert "annotations" not in found["metadata"]
