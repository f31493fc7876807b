"""Discovery and OpenAPI: what kube-aggregator downloads, what kubectl explains, and what an ETag saves."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import openapi

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from services.api.discovery import API_SERVICES, GROUPS, HOTNIC_GROUP, KUBEVIRT_GROUP, claimed_groups, negotiate
from services.api.observe import ClusterSettings
from services.api.openapi.documents import openapi_documents
from tests.support.kube.served_api import ServedApi, serve_api
from tests.support.observed import objects

GROUP_VERSIONS = [(group, version) for group, versions in GROUPS.items() for version in versions]
BOTH = tuple(GROUPS)
OWN = (HOTNIC_GROUP,)
AGGREGATED = {
    version: f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    for version in ("v2", "v2beta1")
}
AGGREGATOR = f"{AGGREGATED['v2']},{AGGREGATED['v2beta1']}"
"""The header that kube-aggregator sends, of 1.30 as of 1.36."""
PARTS = [*AGGREGATED.values(), "application/json", "*/*", ",", ";", "q=", "0.5", "nan", "-1", "as=", "=", "v=v2", " "]
SWAGGER_SCHEMA = {
    *("$ref", "additionalProperties", "default", "description", "enum", "items", "pattern", "properties", "required"),
    *("type", "x-kubernetes-group-version-kind"),
}
"""Keywords of a schema of OpenAPI 2; kube-apiserver refuses the whole merged document for any other."""
KUBECTL_DEADLINE = 50.0
"""Seconds; it takes less than 1 s."""


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ServedApi]:
    async with serve_api(tmp_path) as served:
        yield served


def document(path: str, groups: tuple[str, ...] = BOTH) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(openapi_documents(groups)[path].body)
    return found


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("allOf", ())]
    for one in [*inner, *(schema[key] for key in ("items", "additionalProperties") if key in schema)]:
        yield from subschemas(one)


def paths_of(group: str, version: str) -> set[str]:
    base = f"/apis/{group}/{version}/namespaces/{{namespace}}"
    objects = ("virtualmachines", "virtualmachineinstances")
    found = {f"{base}/{one}/{{name}}/{verb}" for one in objects for verb in ("addinterface", "removeinterface")}
    found |= {f"{base}/addinterfaceoptions", f"{base}/removeinterfaceoptions"}
    if group == HOTNIC_GROUP:
        found |= {f"{base}/virtualmachineinstances/{{name}}/interfaces", f"{base}/hotplugstatuses"}
    return found


@pytest.mark.parametrize("groups", [OWN, BOTH])
def test_every_document_is_valid_and_has_the_paths_of_its_group_version(groups: tuple[str, ...]) -> None:
    found = openapi_documents(groups)
    served = [one for one in GROUP_VERSIONS if one[0] in groups]
    index = document("/openapi/v3", groups)["paths"]
    assert set(index) == {f"apis/{group}/{version}" for group, version in served}
    assert len(found) == 2 + len(served)
    for group, version in served:
        path = f"/openapi/v3/apis/{group}/{version}"
        assert index[path.removeprefix("/openapi/v3/")]["serverRelativeURL"] == f"{path}?hash={found[path].hash}"
        described = document(path, groups)
        openapi.from_dict(described).validate()
        assert set(described["paths"]) == paths_of(group, version)
    swagger = document("/openapi/v2", groups)
    openapi.from_dict(swagger).validate()
    assert set(swagger["paths"]) == set().union(*(paths_of(*one) for one in served))
    ids = [operation["operationId"] for methods in swagger["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_version_2_has_no_keyword_that_the_merged_document_cannot_have() -> None:
    for name, schema in document("/openapi/v2")["definitions"].items():
        for part in subschemas(schema):
            assert part.keys() <= SWAGGER_SCHEMA, name


@pytest.mark.parametrize(("group", "version"), GROUP_VERSIONS)
def test_bodies_and_status_are_described_from_the_structs(group: str, version: str) -> None:
    schemas = document(f"/openapi/v3/apis/{group}/{version}")["components"]["schemas"]
    named = {name.rpartition(".")[2]: schema for name, schema in schemas.items()}
    for kind in ("AddInterfaceOptions", "RemoveInterfaceOptions", "HotplugStatus"):
        assert named[kind]["x-kubernetes-group-version-kind"] == [{"group": group, "version": version, "kind": kind}]
    assert named["AddInterfaceOptions"]["required"] == ["name", "networkAttachmentDefinitionName"]
    status = named["InterfaceHotplugStatus"]
    assert set(status["properties"]) == set(InterfaceHotplugStatus.__struct_encode_fields__)
    assert "the next stage" in status["properties"]["waitingFor"]["description"]
    assert all("description" in schema for schema in schemas.values())


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_the_aggregated_document_has_what_the_lists_have(api: ServedApi, version: str) -> None:
    async with api.session.get("/apis", headers={"Accept": AGGREGATED[version]}) as answer:
        assert answer.headers["Content-Type"] == AGGREGATED[version]
        found = await answer.json()
    assert (found["kind"], found["apiVersion"]) == ("APIGroupDiscoveryList", f"apidiscovery.k8s.io/{version}")
    # As client-go converts the document.
    aggregated = set()
    for group in found["items"]:
        for one in group["versions"]:
            assert one["freshness"] == "Current"
            for resource in one["resources"]:
                entries = [(resource["resource"], resource)]
                subresources = resource.get("subresources", ())
                entries += [(f"{resource['resource']}/{sub['subresource']}", sub) for sub in subresources]
                for name, entry in entries:
                    kind = entry["responseKind"]
                    if kind["kind"]:
                        assert (kind["group"], kind["version"]) == (group["metadata"]["name"], one["version"])
                        aggregated.add((kind["group"], kind["version"], name, kind["kind"], *entry["verbs"]))
    listed = set()
    for group_name, version_name in GROUP_VERSIONS:
        async with api.session.get(f"/apis/{group_name}/{version_name}") as answer:
            for resource in (await answer.json())["resources"]:
                listed.add((group_name, version_name, resource["name"], resource["kind"], *resource["verbs"]))
    assert aggregated == listed


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (AGGREGATOR, AGGREGATED["v2"]),
        (f"{AGGREGATOR},application/json", AGGREGATED["v2"]),
        (f"{AGGREGATED['v2beta1']},application/json", AGGREGATED["v2beta1"]),
        (f"{AGGREGATED['v2']};q=0.5,application/json", "application/json; charset=utf-8"),
        (f"{AGGREGATED['v2']};q=0,application/json", "application/json; charset=utf-8"),
        ("application/json;as=APIGroupDiscoveryList;v=v9;g=apidiscovery.k8s.io,*/*", "application/json; charset=utf-8"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "application/json; charset=utf-8"),
    ],
)
async def test_a_client_gets_the_form_that_it_prefers(api: ServedApi, accept: str, content_type: str) -> None:
    async with api.session.get("/apis", headers={"Accept": accept}) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/apis", "application/json;as=APIGroupDiscoveryList;v=v9;g=apidiscovery.k8s.io"),
        ("/apis", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        ("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"),
        ("/openapi/v3/apis/subresources.hotnic.io/v1", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"),
        ("/openapi/v3", "text/html;q=x"),
    ],
)
async def test_other_forms_are_not_acceptable(api: ServedApi, path: str, accept: str) -> None:
    async with api.session.get(path, headers={"Accept": accept}) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (406, "NotAcceptable")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/apis", AGGREGATOR),
        ("/openapi/v2", "application/json"),
        ("/openapi/v3", "*/*"),
        *((f"/openapi/v3/apis/{group}/{version}", "application/json") for group, version in GROUP_VERSIONS),
    ],
)
async def test_an_unchanged_document_is_not_sent_again(api: ServedApi, path: str, accept: str) -> None:
    async with api.session.get(path, headers={"Accept": accept}) as answer:
        etag, body = answer.headers["ETag"], await answer.read()
    assert body
    for known in (etag, f'"other", W/{etag}', "*"):
        async with api.session.get(path, headers={"Accept": accept, "If-None-Match": known}) as answer:
            assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", etag)
    async with api.session.get(path, headers={"Accept": accept, "If-None-Match": '"other"'}) as answer:
        assert (answer.status, await answer.read()) == (200, body)


@pytest.mark.parametrize("known", ["", "x", '"', "W/", '"a', ",", '"a",,"b"', "é"])
async def test_an_etag_that_is_none_gets_the_document(api: ServedApi, known: str) -> None:
    async with api.session.get("/openapi/v3", headers={"If-None-Match": known}) as answer:
        assert answer.status == 200


@given(accept=st.text() | st.lists(st.sampled_from(PARTS), max_size=12).map("".join), aggregated=st.booleans())
def test_any_accept_header_gets_a_form_or_none(accept: str, aggregated: bool) -> None:
    assert negotiate(accept, aggregated=aggregated) in ({None, "", "v2", "v2beta1"} if aggregated else {None, ""})


async def test_a_document_may_be_kept_under_its_hash_only(api: ServedApi) -> None:
    async with api.session.get("/openapi/v3") as answer:
        url = (await answer.json())["paths"]["apis/subresources.hotnic.io/v1"]["serverRelativeURL"]
    for path, kept in ((url, True), (url + "0", False), (url.partition("?")[0], False)):
        async with api.session.get(path) as answer:
            assert (answer.status, "immutable" in answer.headers.get("Cache-Control", "")) == (200, kept)


@pytest.mark.parametrize(
    ("names", "owned", "groups"),
    [
        (API_SERVICES, True, BOTH),
        (API_SERVICES, False, OWN),
        ((f"v1.{HOTNIC_GROUP}",), True, OWN),
        ((), True, OWN),
    ],
)
def test_kubevirts_group_is_claimed_only_where_it_is_registered_and_free(
    names: tuple[str, ...], owned: bool, groups: tuple[str, ...]
) -> None:
    assert claimed_groups(names, owned_by_hotnic=owned) == groups


async def test_beside_kubevirt_no_document_names_its_group(api: ServedApi) -> None:
    """kube-aggregator would take KubeVirt's own documents from every client."""
    api.cluster = ClusterSettings(owned_by_hotnic=False, default_binding="masquerade")
    for path, accept in (("/apis", "*/*"), ("/apis", AGGREGATOR), ("/openapi/v2", "*/*"), ("/openapi/v3", "*/*")):
        async with api.session.get(path, headers={"Accept": accept}) as answer:
            body = await answer.text()
            assert HOTNIC_GROUP in body
            assert KUBEVIRT_GROUP not in body
    async with api.session.get(f"/openapi/v3/apis/{KUBEVIRT_GROUP}/v1") as answer:
        assert (answer.status, (await answer.json())["reason"]) == (404, "NotFound")


async def kubectl(api: ServedApi, *arguments: str) -> tuple[int, str]:
    """Run kubectl, with the api in the place of the Kubernetes API server."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "kubectl",
        f"--server=http://{api.address}",
        "--kubeconfig=/dev/null",
        f"--cache-dir={api.cache}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), KUBECTL_DEADLINE)
    assert process.returncode is not None
    return process.returncode, output.decode()


EXPLAINED = {
    "addinterfaceoptions.networkAttachmentDefinitionName": ("AddInterfaceOptions", "the default namespace is the"),
    "removeinterfaceoptions.name": ("RemoveInterfaceOptions", "name of the interface to unplug"),
    "hotplugstatuses.items.waitingFor": ("HotplugStatus", "the next stage"),
}


@pytest.mark.parametrize(
    ("group", "version", "field"),
    [(*one, field) for one in GROUP_VERSIONS for field in list(EXPLAINED)[: 3 if one[0] == HOTNIC_GROUP else 2]],
)
async def test_kubectl_explains_every_kind(api: ServedApi, group: str, version: str, field: str) -> None:
    kind, meaning = EXPLAINED[field]
    code, text = await kubectl(api, "explain", field, f"--api-version={group}/{version}")
    assert code == 0, text
    assert f"KIND:       {kind}" in text
    assert meaning in " ".join(text.split())


async def test_kubectl_lists_no_resource_that_has_no_object(api: ServedApi) -> None:
    code, text = await kubectl(api, "api-resources", "--no-headers")
    assert (code, text) == (0, "")
    code, text = await kubectl(api, "get", "hotplugstatuses", "--namespace=default")
    assert code == 1
    assert "there are no objects of the kind HotplugStatus" in text


def test_documents_are_built_once() -> None:
    assert openapi_documents(BOTH) is openapi_documents(BOTH)
    assert msgspec.json.decode(openapi_documents(BOTH)["/openapi/v2"].body)


@pytest.mark.parametrize(("seconds", "code"), [("9" * 400, 200), ("9" * 5000, 400), ("-" + "9" * 400, 200), ("x", 400)])
async def test_any_number_of_seconds_is_a_duration(api: ServedApi, seconds: str, code: int) -> None:
    api.put("virtualmachineinstances", objects.vmi())
    path = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/vm1/interfaces"
    async with api.session.get(path, params={"watch": "true", "timeoutSeconds": seconds}) as answer:
        assert answer.status == code
        if code == 200:
            assert b'"ADDED"' in await answer.content.readline()
