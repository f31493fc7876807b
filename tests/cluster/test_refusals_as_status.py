"""Every refusal is a Status with a code, a reason, details and a message that clients know."""

import json
import ssl

import aiohttp
import pytest

from tests.cluster.tools import Answer, Api, CustomKind, Object

CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"


def check(answer: Answer, code: int, reason: str) -> Object:
    """The answer is a Failure Status of that code and reason, in the body and in HTTP."""
    status: Object = answer.body
    assert (answer.code, status["code"]) == (code, code)
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert status["reason"] == reason
    assert status["message"]
    return status


async def test_not_found_names_the_object(api: Api, unique: str) -> None:
    """StatusReasonNotFound: details name, group and kind (the resource)."""
    status = check(await api("GET", f"{CONFIGMAPS}/{unique}"), 404, "NotFound")
    assert status["details"] == {"name": unique, "kind": "configmaps"}
    assert status["message"] == f'configmaps "{unique}" not found'


async def test_not_found_of_a_custom_kind_names_its_group(api: Api, widgets: CustomKind, unique: str) -> None:
    status = check(await api("GET", f"{widgets.path}/{unique}"), 404, "NotFound")
    assert status["details"] == {"name": unique, "group": widgets.group, "kind": "widgets"}
    assert status["message"] == f'widgets.{widgets.group} "{unique}" not found'


@pytest.mark.parametrize("path", ["/apis/nowhere.hotnic.io/v1/things", "/api/v1/namespaces/default/nothings"])
async def test_unknown_resources_are_not_found(api: Api, path: str) -> None:
    """404 for API groups and resources that do not exist, whatever the method."""
    assert (await api("GET", path)).code == 404
    assert (await api("POST", path, {})).code == 404


async def test_a_missing_namespace_is_not_found(api: Api, unique: str) -> None:
    """Creating in a namespace that does not exist: 404 of the namespace."""
    answer = await api("POST", f"/api/v1/namespaces/{unique}/configmaps", {"metadata": {"name": "x"}})
    assert check(answer, 404, "NotFound")["details"] == {"name": unique, "kind": "namespaces"}


async def test_already_exists_names_the_object(api: Api, unique: str) -> None:
    """StatusReasonAlreadyExists: 409."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    status = check(await api("POST", CONFIGMAPS, {"metadata": {"name": unique}}), 409, "AlreadyExists")
    assert status["details"] == {"name": unique, "kind": "configmaps"}


async def test_methods_that_a_resource_has_not_are_refused(api: Api, unique: str) -> None:
    """StatusReasonMethodNotAllowed: 405."""
    check(await api("PUT", CONFIGMAPS, {}), 405, "MethodNotAllowed")
    check(await api("POST", f"{CONFIGMAPS}/{unique}", {}), 405, "MethodNotAllowed")
    check(await api("DELETE", "/api/v1/namespaces"), 405, "MethodNotAllowed")


async def test_a_body_of_an_unknown_type_is_unsupported(api: Api) -> None:
    """StatusReasonUnsupportedMediaType: 415."""
    answer = await api("POST", CONFIGMAPS, "name=x", content="application/x-www-form-urlencoded")
    check(answer, 415, "UnsupportedMediaType")


async def test_an_accept_that_cannot_be_met_is_refused(api: Api) -> None:
    """406 NotAcceptable."""
    check(await api("GET", CONFIGMAPS, accept="image/png"), 406, "NotAcceptable")


async def test_yaml_bodies_are_as_good_as_json(api: Api, unique: str) -> None:
    """application/yaml is a media type of the API."""
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {unique}\ndata:\n  a: '1'\n"
    answer = await api("POST", CONFIGMAPS, text, content="application/yaml")
    assert (answer.code, answer.body["data"]) == (201, {"a": "1"})
    told = await api("GET", f"{CONFIGMAPS}/{unique}", accept="application/yaml")
    assert told.headers["Content-Type"] == "application/yaml"
    assert "data:\n  a: " in told.body


@pytest.mark.parametrize("body", ["{", "[]", '"x"', '{"metadata": []}', '{"metadata": {"name": 1}}'])
async def test_a_body_that_is_no_object_is_a_bad_request(api: Api, body: str) -> None:
    """StatusReasonBadRequest: 400."""
    check(await api("POST", CONFIGMAPS, body), 400, "BadRequest")


async def test_an_object_of_another_kind_is_a_bad_request(api: Api, unique: str) -> None:
    """The kind in the body must be the kind of the path."""
    obj = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": unique}}
    check(await api("POST", CONFIGMAPS, obj), 400, "BadRequest")


async def test_names_in_body_and_path_must_agree(api: Api, unique: str) -> None:
    """400: the name of the object does not match the name on the URL; the same for namespaces."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    other = {**made.body, "metadata": {**made.body["metadata"], "name": "other"}}
    status = check(await api("PUT", f"{CONFIGMAPS}/{unique}", other), 400, "BadRequest")
    assert "does not match the name on the URL" in status["message"]
    elsewhere = {"metadata": {"name": "x", "namespace": "elsewhere"}}
    status = check(await api("POST", CONFIGMAPS, elsewhere), 400, "BadRequest")
    assert "namespace" in status["message"]


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"name": "Bad_Name"}, "metadata.name"),
        ({}, "metadata.name"),
        ({"name": "x", "labels": {"a": "not ok"}}, "metadata.labels"),
        ({"name": "x", "labels": {"-a": "b"}}, "metadata.labels"),
        ({"name": "x", "annotations": {"no key": "b"}}, "metadata.annotations"),
        ({"name": "x", "finalizers": ["no spaces"]}, "metadata.finalizers"),
        ({"name": "x", "annotations": {"a": "b" * 300_000}}, "metadata.annotations"),
        ({"name": "x", "ownerReferences": [{"kind": "X"}]}, "metadata.ownerReferences[0].apiVersion"),
    ],
    ids=["name", "no-name", "label-value", "label-key", "annotation-key", "finalizer", "annotations-size", "owner"],
)
async def test_bad_metadata_is_invalid(api: Api, metadata: Object, field: str) -> None:
    """ValidateObjectMeta: 422 with the field."""
    status = check(await api("POST", CONFIGMAPS, {"metadata": metadata}), 422, "Invalid")
    assert field in [cause["field"] for cause in status["details"]["causes"]]


async def test_too_large_a_body_is_refused(api: Api, unique: str) -> None:
    """413 RequestEntityTooLarge above 3 MiB (apiserver MaxRequestBodyBytes)."""
    obj = {"metadata": {"name": unique}, "data": {"a": "x" * (3 * 1024 * 1024 + 1)}}
    check(await api("POST", CONFIGMAPS, obj), 413, "RequestEntityTooLarge")


async def test_a_version_at_creation_is_refused(api: Api, unique: str) -> None:
    """resourceVersion should not be set on objects to be created."""
    answer = await api("POST", CONFIGMAPS, {"metadata": {"name": unique, "resourceVersion": "5"}})
    assert answer.code >= 400
    assert "resourceVersion" in answer.body["message"]


async def test_the_uid_of_another_life_is_a_conflict(api: Api, unique: str) -> None:
    """A PUT with the uid of a deleted predecessor: 409, Precondition failed."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    body = json.loads(json.dumps(made.body))
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    status = check(await api("PUT", f"{CONFIGMAPS}/{unique}", body), 409, "Conflict")
    assert "Precondition failed: UID in precondition" in status["message"]


async def test_a_deletion_meant_for_another_object_is_a_conflict(api: Api, unique: str) -> None:
    """DeleteOptions.preconditions: uid and resourceVersion."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    for condition in ({"uid": "00000000-0000-0000-0000-000000000000"}, {"resourceVersion": "1"}):
        answer = await api("DELETE", f"{CONFIGMAPS}/{unique}", {"preconditions": condition})
        check(answer, 409, "Conflict")


async def test_bad_options_are_refused(api: Api, unique: str) -> None:
    """dryRun, fieldValidation and numbers are checked."""
    for query in ("dryRun=Some", "fieldValidation=Sometimes"):
        answer = await api("POST", f"{CONFIGMAPS}?{query}", {"metadata": {"name": unique}})
        assert answer.code in (400, 422), query
    assert (await api("GET", f"{CONFIGMAPS}?limit=many")).code == 400


async def test_an_unknown_caller_is_unauthorized(api: Api) -> None:
    """A bearer token that nobody knows: 401 Unauthorized."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session,
        session.get(api.url(CONFIGMAPS), headers={"Authorization": "Bearer nobody"}) as response,
    ):
        answer = Answer(response.status, await response.json(), response.headers)
    check(answer, 401, "Unauthorized")
