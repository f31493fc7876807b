"""Every error is a Status with a code, a reason, details and a message that clients know."""

import json
import ssl

import aiohttp
import pytest

from tests.cluster.tools import Api, CustomKind, Object, Response

CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"


def check(response: Response, code: int, reason: str) -> Object:
    """Check that the response is a Failure Status with that code and reason; return the Status."""
    status: Object = response.body
    assert (response.code, status["code"]) == (code, code)
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
    response = await api("POST", f"/api/v1/namespaces/{unique}/configmaps", {"metadata": {"name": "x"}})
    assert check(response, 404, "NotFound")["details"] == {"name": unique, "kind": "namespaces"}


async def test_already_exists_names_the_object(api: Api, unique: str) -> None:
    """StatusReasonAlreadyExists: 409."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    status = check(await api("POST", CONFIGMAPS, {"metadata": {"name": unique}}), 409, "AlreadyExists")
    assert status["details"] == {"name": unique, "kind": "configmaps"}


async def test_unsupported_methods_are_not_allowed(api: Api, unique: str) -> None:
    """StatusReasonMethodNotAllowed: 405."""
    check(await api("PUT", CONFIGMAPS, {}), 405, "MethodNotAllowed")
    check(await api("POST", f"{CONFIGMAPS}/{unique}", {}), 405, "MethodNotAllowed")
    check(await api("DELETE", "/api/v1/namespaces"), 405, "MethodNotAllowed")


async def test_unknown_content_type_is_unsupported(api: Api) -> None:
    """StatusReasonUnsupportedMediaType: 415."""
    response = await api("POST", CONFIGMAPS, "name=x", content="application/x-www-form-urlencoded")
    check(response, 415, "UnsupportedMediaType")


async def test_unsupported_accept_is_not_acceptable(api: Api) -> None:
    """406 NotAcceptable."""
    check(await api("GET", CONFIGMAPS, accept="image/png"), 406, "NotAcceptable")


async def test_yaml_bodies_are_accepted(api: Api, unique: str) -> None:
    """application/yaml is a media type of the API."""
    text = f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {unique}\ndata:\n  a: '1'\n"
    response = await api("POST", CONFIGMAPS, text, content="application/yaml")
    assert (response.code, response.body["data"]) == (201, {"a": "1"})
    response = await api("GET", f"{CONFIGMAPS}/{unique}", accept="application/yaml")
    assert response.headers["Content-Type"] == "application/yaml"
    assert "data:\n  a: " in response.body


@pytest.mark.parametrize("body", ["{", "[]", '"x"', '{"metadata": []}', '{"metadata": {"name": 1}}'])
async def test_body_without_an_object_is_a_bad_request(api: Api, body: str) -> None:
    """StatusReasonBadRequest: 400."""
    check(await api("POST", CONFIGMAPS, body), 400, "BadRequest")


async def test_object_of_another_kind_is_a_bad_request(api: Api, unique: str) -> None:
    """The kind in the body must be the kind of the path."""
    obj = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": unique}}
    check(await api("POST", CONFIGMAPS, obj), 400, "BadRequest")


async def test_different_names_in_body_and_path_are_a_bad_request(api: Api, unique: str) -> None:
    """400: the name of the object does not match the name on the URL; the same applies to namespaces."""
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
        ({"name": "x", "ownerReferences": [{"kind": "X"}]}, "metadata.ownerReferences.apiVersion"),
    ],
    ids=["name", "no-name", "label-value", "label-key", "annotation-key", "finalizer", "annotations-size", "owner"],
)
async def test_invalid_metadata_is_rejected_by_field(api: Api, metadata: Object, field: str) -> None:
    """ValidateObjectMeta: 422 with the field."""
    status = check(await api("POST", CONFIGMAPS, {"metadata": metadata}), 422, "Invalid")
    assert field in [cause["field"] for cause in status["details"]["causes"]]


async def test_too_large_body_gets_413(api: Api, unique: str) -> None:
    """413 RequestEntityTooLarge above 3 MiB (apiserver MaxRequestBodyBytes)."""
    obj = {"metadata": {"name": unique}, "data": {"a": "x" * (3 * 1024 * 1024 + 1)}}
    check(await api("POST", CONFIGMAPS, obj), 413, "RequestEntityTooLarge")


async def test_resource_version_on_creation_is_rejected(api: Api, unique: str) -> None:
    """resourceVersion should not be set on objects to be created."""
    response = await api("POST", CONFIGMAPS, {"metadata": {"name": unique, "resourceVersion": "5"}})
    assert response.code >= 400
    assert "resourceVersion" in response.body["message"]


async def test_uid_of_another_object_is_a_conflict(api: Api, unique: str) -> None:
    """A PUT with the uid of a deleted predecessor: 409, Precondition failed."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    body = json.loads(json.dumps(made.body))
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    status = check(await api("PUT", f"{CONFIGMAPS}/{unique}", body), 409, "Conflict")
    assert "Precondition failed: UID in precondition" in status["message"]


async def test_deletion_with_failed_precondition_is_a_conflict(api: Api, unique: str) -> None:
    """DeleteOptions.preconditions: uid and resourceVersion."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    for condition in ({"uid": "00000000-0000-0000-0000-000000000000"}, {"resourceVersion": "1"}):
        response = await api("DELETE", f"{CONFIGMAPS}/{unique}", {"preconditions": condition})
        check(response, 409, "Conflict")


async def test_invalid_options_are_rejected(api: Api, unique: str) -> None:
    """dryRun, fieldValidation and numbers are checked."""
    for query in ("dryRun=Some", "fieldValidation=Sometimes"):
        response = await api("POST", f"{CONFIGMAPS}?{query}", {"metadata": {"name": unique}})
        assert response.code in (400, 422), query
    assert (await api("GET", f"{CONFIGMAPS}?limit=many")).code == 400


async def test_unknown_token_is_unauthorized(api: Api) -> None:
    """An unknown bearer token: 401 Unauthorized."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session,
        session.get(api.url(CONFIGMAPS), headers={"Authorization": "Bearer nobody"}) as response,
    ):
        response = Response(response.status, await response.json(), response.headers)
    check(response, 401, "Unauthorized")
