"""Lists: selectors, pages, tables and partial metadata."""

import asyncio
import base64
import json
from urllib.parse import quote

import pytest

from tests.cluster.tools import DEADLINE, Api, CustomKind, events

CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"
PODS = "/api/v1/namespaces/{ns}/pods"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


async def fill(api: Api, unique: str, count: int) -> None:
    for n in range(count):
        labels = {"case": unique, "n": str(n), **({"odd": "yes"} if n % 2 else {})}
        await api("POST", CONFIGMAPS, {"metadata": {"name": f"{unique}-{n}", "labels": labels}})


@pytest.mark.parametrize(
    ("selector", "numbers"),
    [
        ("", "0123"),
        (",odd=yes", "13"),
        (",odd==yes", "13"),
        (",odd!=yes", "02"),
        (",odd", "13"),
        (",!odd", "02"),
        (",n in (0,3)", "03"),
        (",n notin (0,3)", "12"),
        (",n in (0,1),odd=yes", "1"),
        (",n>1", "23"),
        (",n<1", "0"),
    ],
)
async def test_label_selectors(api: Api, unique: str, selector: str, numbers: str) -> None:
    """Labels and selectors: equality-based and set-based requirements, joined by comma."""
    await fill(api, unique, 4)
    answer = await api("GET", f"{CONFIGMAPS}?labelSelector={quote(f'case={unique}{selector}')}")
    assert "".join(item["metadata"]["name"][-1] for item in answer.body["items"]) == numbers


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "=x", "a,,b", "a in (b"])
async def test_invalid_label_selector_is_a_bad_request(api: Api, selector: str) -> None:
    answer = await api("GET", f"{CONFIGMAPS}?labelSelector={selector}")
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")


async def test_field_selectors(api: Api, unique: str) -> None:
    """Field selectors: metadata.name everywhere, spec.nodeName and status.phase for pods, anything else is 400."""
    await fill(api, unique, 2)
    answer = await api("GET", f"{CONFIGMAPS}?fieldSelector=metadata.name={unique}-1")
    assert [item["metadata"]["name"] for item in answer.body["items"]] == [f"{unique}-1"]
    for n, node in enumerate(("a", "b")):
        container = {"name": "main", "image": "example.com/a:1"}
        pod = {
            "metadata": {"name": f"{unique}-{n}"},
            "spec": {"containers": [container], "nodeName": f"{unique}-{node}"},
        }
        assert (await api("POST", PODS, pod)).code == 201
    answer = await api("GET", f"{PODS}?fieldSelector=spec.nodeName={unique}-b,status.phase!=Running")
    assert [item["metadata"]["name"] for item in answer.body["items"]] == [f"{unique}-1"]
    for path, field, message in (
        (CONFIGMAPS, "data.a", '"data.a" is not a known field selector: only "metadata.name", "metadata.namespace"'),
        (PODS, "spec.none", "field label not supported: spec.none"),
    ):
        answer = await api("GET", f"{path}?fieldSelector={field}=1")
        assert (answer.code, answer.body["message"]) == (400, message)
    for n in (0, 1):
        await api("DELETE", f"{PODS}/{unique}-{n}", {"gracePeriodSeconds": 0})


async def test_list_has_a_kind_and_a_version(api: Api, widgets: CustomKind, unique: str) -> None:
    """A list has kind XList and metadata.resourceVersion; items of typed lists have no kind and apiVersion."""
    made = await api("POST", widgets.path, widgets.make(unique))
    listed = (await api("GET", widgets.path)).body
    assert (listed["kind"], listed["apiVersion"]) == ("WidgetList", f"{widgets.group}/v1")
    assert listed["items"][0]["kind"] == "Widget"
    assert int(listed["metadata"]["resourceVersion"]) >= int(made.body["metadata"]["resourceVersion"])
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}})
    listed = (await api("GET", CONFIGMAPS)).body
    assert listed["kind"] == "ConfigMapList"
    assert "kind" not in listed["items"][0]
    assert (await api("GET", widgets.path.replace("/namespaces/{ns}", ""))).code == 200


async def test_pages_cover_all_objects_once(api: Api, unique: str) -> None:
    """limit and continue: pages are in the order of names; remainingItemCount is the number of further items."""
    await fill(api, unique, 5)
    first = (await api("GET", f"{CONFIGMAPS}?limit=2")).body
    assert first["metadata"]["remainingItemCount"] >= 3
    names, page = [], first
    while True:
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
        if not token:
            break
        page = (await api("GET", f"{CONFIGMAPS}?limit=2&continue={token}")).body
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert names == sorted(names)
    assert {f"{unique}-{n}" for n in range(5)} <= set(names)
    assert len(names) == len(set(names))


async def test_pages_show_the_state_of_the_first_one(api: Api, unique: str) -> None:
    """continue: what changes between two pages is in none of them, and a watch from their version delivers it."""
    await fill(api, unique, 4)
    selected = f"{CONFIGMAPS}?labelSelector=case={unique}"
    first = (await api("GET", f"{selected}&limit=2")).body
    version = first["metadata"]["resourceVersion"]
    await api("PATCH", f"{CONFIGMAPS}/{unique}-2", {"data": {"a": "1"}}, content="application/merge-patch+json")
    await api("DELETE", f"{CONFIGMAPS}/{unique}-3")
    await api("POST", CONFIGMAPS, {"metadata": {"name": f"{unique}-4", "labels": {"case": unique}}})
    # A selector may leave a token for the keys after the last object: a larger page reads them, too.
    second = (await api("GET", f"{selected}&limit=500&continue={first['metadata']['continue']}")).body
    assert [(item["metadata"]["name"], "data" in item) for item in second["items"]] == [
        (f"{unique}-2", False),
        (f"{unique}-3", False),
    ]
    assert second["metadata"] == {"resourceVersion": version}
    watched = await events(api.watch(f"{selected}&watch=true&resourceVersion={version}"), 3)
    assert [event["type"] for event in watched] == ["MODIFIED", "DELETED", "ADDED"]
    for limit in ("&limit=1000", "&resourceVersionMatch=Exact"):
        exact = (await api("GET", f"{selected}&resourceVersion={version}{limit}")).body
        assert [item["metadata"]["name"][-1] for item in exact["items"]] == list("0123")


async def test_token_of_a_forgotten_version_gets_410_and_a_token_for_the_rest(api: Api, unique: str) -> None:
    """continue: with a version that is compacted 410 Expired, and in its metadata a token without that version."""
    await fill(api, unique, 3)
    selected = f"{CONFIGMAPS}?labelSelector=case={unique}"
    token = (await api("GET", f"{selected}&limit=2")).body["metadata"]["continue"]
    content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    old = base64.urlsafe_b64encode(json.dumps(content | {"rv": 1}).encode()).decode().rstrip("=")
    # Kubernetes forgets versions from time to time.
    async with asyncio.timeout(DEADLINE):
        while (answer := await api("GET", f"{selected}&limit=2&continue={old}")).code == 200:
            pass
    assert (answer.code, answer.body["reason"]) == (410, "Expired")
    assert answer.body["message"].startswith("The provided continue parameter is too old to display a consistent list")
    rest = await api("GET", f"{selected}&limit=2&continue={answer.body['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in rest.body["items"]] == [f"{unique}-2"]
    both = await api("GET", f"{selected}&limit=2&continue={token}&resourceVersion={content['rv']}")
    assert (both.code, both.body["reason"]) == (400, "BadRequest")


async def test_version_0_ignores_the_limit(api: Api, unique: str) -> None:
    """resourceVersion=0: from the watch cache, which may be late and has no pages."""
    await fill(api, unique, 3)
    selected = f"{CONFIGMAPS}?labelSelector=case={unique}&limit=1"
    assert "continue" in (await api("GET", selected)).body["metadata"]
    assert "continue" not in (await api("GET", f"{selected}&resourceVersion=0")).body["metadata"]


async def test_invalid_continue_token_is_a_bad_request(api: Api) -> None:
    answer = await api("GET", f"{CONFIGMAPS}?limit=2&continue=nonsense")
    assert (answer.code, answer.body["reason"]) == (400, "BadRequest")


async def test_tables_have_columns_and_rows_with_metadata(api: Api, unique: str) -> None:
    """Receiving resources as Tables: columnDefinitions, cells, and the object's metadata in each row."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}, "data": {"a": "1"}})
    table = (await api("GET", f"{CONFIGMAPS}/{unique}", accept=TABLE)).body
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    [row] = table["rows"]
    assert row["cells"][:2] == [unique, 1]
    assert (row["object"]["kind"], row["object"]["metadata"]["name"]) == ("PartialObjectMetadata", unique)
    listed = (await api("GET", f"{CONFIGMAPS}?includeObject=None", accept=TABLE)).body
    assert all(row.get("object") is None for row in listed["rows"])
    listed = (await api("GET", f"{CONFIGMAPS}?includeObject=Object", accept=TABLE)).body
    assert {row["object"]["kind"] for row in listed["rows"]} == {"ConfigMap"}


async def test_pod_table_has_upstream_columns(api: Api, unique: str) -> None:
    """Printers: READY, STATUS, RESTARTS, AGE, and IP and NODE with -o wide (priority 1)."""
    container = {"name": "main", "image": "example.com/a:1"}
    await api(
        "POST", PODS, {"metadata": {"name": unique}, "spec": {"containers": [container], "schedulerName": "nobody"}}
    )
    table = (await api("GET", f"{PODS}/{unique}", accept=TABLE)).body
    columns = [column["name"] for column in table["columnDefinitions"]]
    assert columns[:7] == ["Name", "Ready", "Status", "Restarts", "Age", "IP", "Node"]
    assert table["rows"][0]["cells"][:3] == [unique, "0/1", "Pending"]
    await api("DELETE", f"{PODS}/{unique}")


async def test_partial_metadata_contains_only_metadata(api: Api, unique: str) -> None:
    """PartialObjectMetadata and its list, which garbage collectors and metadata informers request."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": unique}, "data": {"a": "1"}})
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    one = (await api("GET", f"{CONFIGMAPS}/{unique}", accept=accept)).body
    assert one["kind"] == "PartialObjectMetadata"
    assert "data" not in one
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = (await api("GET", CONFIGMAPS, accept=accept)).body
    assert listed["kind"] == "PartialObjectMetadataList"
    assert unique in [item["metadata"]["name"] for item in listed["items"]]
    assert all("data" not in item for item in listed["items"])


async def test_future_version_gets_504(api: Api) -> None:
    """resourceVersion ahead of the server: 504 Timeout, ResourceVersionTooLarge, after upstream's short wait."""
    current = int((await api("GET", CONFIGMAPS)).body["metadata"]["resourceVersion"])
    answer = await api("GET", f"{CONFIGMAPS}?resourceVersion={current + 1_000_000}")
    assert (answer.code, answer.body["reason"]) == (504, "Timeout")
    assert answer.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
