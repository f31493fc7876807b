"""The api's routes: every verb in every group and version, the feature gate, the operation header and discovery."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from yarl import URL

from schemas.kubernetes.operations import read_operation
from schemas.stages import Stage
from services.api.server import REQUESTS
from services.common.telemetry.propagation import context_of, span_context
from tests.support.kube.node_kube import NADS, Refused
from tests.support.kube.served_api import HOTNIC, ServedApi, serve_api
from tests.support.kube.webhooks import PREFIX, MacPool
from tests.support.observed import objects
from tests.support.telemetry.spans import named, one_trace, tree

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
VERSIONS = [HOTNIC, "subresources.kubevirt.io/v1", "subresources.kubevirt.io/v1alpha3"]
PLUG = {"networkAttachmentDefinitionName": "net1", "name": "iface1"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ServedApi]:
    async with serve_api(tmp_path) as served:
        yield served


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
async def test_every_verb_is_served_in_every_group_and_version(
    api: ServedApi, version: str, resource: str, verb: str
) -> None:
    code, status, _ = await api.request(resource, verb, PLUG, name="nobody", version=version)
    assert code == 404
    assert (status["kind"], status["reason"]) == ("Status", "NotFound")
    assert status["message"] == f'{resource[:-1]}.kubevirt.io "nobody" not found'
    async with api.session.get(f"/apis/{version}") as answer:
        served = {(found["name"], found["kind"]) for found in (await answer.json())["resources"]}
    assert (f"{resource}/{verb}", f"{verb[0].upper()}{verb[1:-9]}InterfaceOptions") in served


@pytest.mark.parametrize(
    "name", ["a%00b", "a%0Ab", "vm1%3FdryRun=All", "vm1%2Fstatus", "%2e%2e%2fnodes", "VM1", "a" * 254]
)
async def test_a_name_that_no_object_can_have_is_not_found(api: ServedApi, name: str) -> None:
    """The api would put it into a path of the Kubernetes API, with its own rights."""
    api.put(VMIS, objects.vmi())
    asked: list[str] = []
    api.kube.before = lambda _method, _plural, name: asked.append(name)
    base = f"/apis/{HOTNIC}/namespaces/default/{VMIS}"
    other = f"/apis/{HOTNIC}/namespaces/{name}/{VMS}/vm1/addinterface"
    for method, path in (("PUT", f"{base}/{name}/addinterface"), ("GET", f"{base}/{name}/interfaces"), ("PUT", other)):
        async with api.session.request(method, URL(path, encoded=True), json=PLUG) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (404, "NotFound")
    assert not asked


async def test_no_route_answers_head(api: ServedApi) -> None:
    """The chunks of a watch would be taken for the answer to the next request of a connection, which is another's."""
    api.put(VMIS, objects.vmi())
    watch = f"/apis/{HOTNIC}/namespaces/default/{VMIS}/vm1/interfaces?watch=true&timeoutSeconds=1"
    host, _, port = api.address.rpartition(":")
    for path in (watch, "/apis", "/readyz", "/openapi/v2", f"/apis/{HOTNIC}/healthz"):
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(50):
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_virtctl_1_0_is_served_as_by_virt_api(api: ServedApi) -> None:
    """virtctl sends no Content-Type, and compares versions before it prints an error."""
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    for verb, body in (("addinterface", PLUG), ("removeinterface", {"name": "iface1"})):
        path = f"/apis/subresources.kubevirt.io/v1/namespaces/default/{VMS}/vm1/{verb}"
        data = msgspec.json.encode(body)
        async with api.session.put(path, data=data, skip_auto_headers=["Content-Type"]) as answer:
            assert (answer.status, await answer.read()) == (202, b"")
    async with api.session.get("/apis/subresources.kubevirt.io") as answer:
        group = await answer.json()
    preferred = group["preferredVersion"]["groupVersion"]
    assert (group["kind"], preferred) == ("APIGroup", "subresources.kubevirt.io/v1")
    async with api.session.get(f"/apis/{preferred}/version") as answer:
        version = await answer.json()
    assert version["gitVersion"].startswith("v1.0.")
    assert {"gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"} < version.keys()


async def test_discovery_documents_list_groups_and_resources(api: ServedApi) -> None:
    documents = {}
    for path in ("/", "/apis", *(f"/apis/{version}" for version in VERSIONS)):
        async with api.session.get(path) as answer:
            documents[path] = await answer.json()
    assert {"/apis", "/openapi/v2", "/apis/subresources.kubevirt.io", "/apis/subresources.kubevirt.io/v1alpha3"} <= set(
        documents["/"]["paths"]
    )
    assert [group["name"] for group in documents["/apis"]["groups"]] == [
        "subresources.hotnic.io",
        "subresources.kubevirt.io",
    ]
    for version in VERSIONS:
        listed = documents[f"/apis/{version}"]
        assert (listed["kind"], listed["apiVersion"], listed["groupVersion"]) == ("APIResourceList", "v1", version)
        names = {resource["name"] for resource in listed["resources"] if resource["namespaced"]}
        assert {f"{r}/{v}" for r in (VMS, VMIS) for v in ("addinterface", "removeinterface")} <= names


@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
async def test_a_request_that_cannot_be_published_is_refused_before_anything_changes(api: ServedApi, verb: str) -> None:
    """A VMI's user may write its status."""
    api.put(VMIS, objects.vmi(objects.nic("iface1"), nodeName="n" * 3000))
    before = {key: dict(found) for key, found in api.kube.objects.items()}
    code, status, _ = await api.request(VMIS, verb, PLUG if verb == "addinterface" else {"name": "iface1"})
    assert (code, status["reason"]) == (422, "Invalid")
    assert "status.nodeName has 3000 characters" in status["message"]
    assert (api.kube.objects, api.bus.published) == (before, [])


@pytest.mark.parametrize("version", VERSIONS)
async def test_healthz_reports_the_connection_to_the_api_server_and_asks_it_once(api: ServedApi, version: str) -> None:
    asked = []
    api.kube.before = lambda _method, plural, _name: asked.append(plural)

    async def check() -> tuple[int, str]:
        async with api.session.get(f"/apis/{version}/healthz") as answer:
            return answer.status, (await answer.json())["apiserver"]["connectivity"]

    assert await asyncio.gather(*(check() for _ in range(20))) == [(200, "ok")] * 20
    assert asked == ["version"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_healthz_reports_that_the_api_server_fails(api: ServedApi, version: str) -> None:
    def fail(_method: str, plural: str, _name: str) -> None:
        if plural == "version":
            raise Refused(503, "ServiceUnavailable", "etcd is down")

    api.kube.before = fail
    async with api.session.get(f"/apis/{version}/healthz") as answer:
        report = (await answer.json())["apiserver"]
        assert (answer.status, report["connectivity"]) == (500, "failed")
        assert "etcd is down" in report["error"]


@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("verb", ["addinterface", "removeinterface"])
async def test_disabled_feature_gate_refuses_both_verbs_in_kubevirts_words(
    api: ServedApi, resource: str, verb: str
) -> None:
    api.enabled = False
    code, status, _ = await api.request(resource, verb, "whatever")
    assert (code, status["reason"]) == (400, "BadRequest")
    assert status["message"] == 'Unable to Add Interface because the "HotplugNICs" feature gate is not enabled.'


async def test_vmi_plug_and_unplug_are_published_and_repeated_requests_join(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi())
    code, _, plugged = await api.request(VMIS, "addinterface", PLUG)
    again = await api.request(VMIS, "addinterface", PLUG)
    assert (code, again[0], again[2]) == (202, 202, plugged)
    code, _, unplugged = await api.request(VMIS, "removeinterface", {"name": "iface1"})
    again = await api.request(VMIS, "removeinterface", {"name": "iface1"})
    assert (code, again[0], again[2]) == (202, 202, unplugged)
    assert plugged != unplugged
    assert [(event.stage, event.operation.id) for event in api.bus.published] == [
        (Stage.REQUESTED, plugged),
        (Stage.REQUESTED, unplugged),
    ]
    code, status, _ = await api.request(VMIS, "addinterface", PLUG)
    assert (code, status["reason"]) == (409, "AlreadyExists")


async def test_concurrent_requests_for_one_vmi_all_succeed(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi())
    bodies = [PLUG | {"name": f"iface{i}"} for i in range(12)]
    answers = await asyncio.gather(*(api.request(VMIS, "addinterface", body) for body in bodies))
    assert [code for code, _, _ in answers] == [202] * len(bodies)
    interfaces = api.kube.objects[VMIS, "default", "vm1"]["spec"]["domain"]["devices"]["interfaces"]
    assert {interface["name"] for interface in interfaces} >= {body["name"] for body in bodies}


async def test_vm_request_changes_the_template_only_and_publishes_nothing(api: ServedApi) -> None:
    api.put(VMS, objects.vm())
    code, _, plugged = await api.request(VMS, "addinterface", PLUG)
    assert code == 202
    written = read_operation(api.kube.annotations(VMS, "default", "vm1"), "iface1")
    assert written is not None
    assert (written.id, written.traceparent is not None) == (plugged, True)
    template = api.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert template["networks"][1] == {"name": "iface1", "multus": {"networkName": "net1"}}
    code, _, unplugged = await api.request(VMS, "removeinterface", {"name": "iface1"})
    assert (code, (await api.request(VMS, "removeinterface", {"name": "iface1"}))[2]) == (202, unplugged)
    template = api.kube.objects[VMS, "default", "vm1"]["spec"]["template"]["spec"]
    assert template["domain"]["devices"]["interfaces"][1]["state"] == "absent"
    assert api.bus.published == []


@pytest.mark.parametrize("resource", [VMS, VMIS])
async def test_a_dry_run_asks_the_api_server_and_changes_nothing(api: ServedApi, resource: str) -> None:
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    before = {key: dict(found) for key, found in api.kube.objects.items()}
    code, _, operation = await api.request(resource, "addinterface", PLUG, query={"dryRun": "All"})
    assert (code, operation, api.kube.counted("PATCH", resource)) == (202, "", 1)
    assert (api.kube.objects, api.bus.published) == (before, [])


async def test_a_mac_of_a_webhook_that_another_vm_has_is_told_and_costs_nothing_without_one(api: ServedApi) -> None:
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    await api.request(VMIS, "addinterface", PLUG)
    assert (api.warnings, ("GET", VMS, "") in api.kube.requests) == ([], False)
    mac = f"{PREFIX}01"  # the pool's second one: the first is for the primary interface
    api.put(VMS, objects.vm(objects.nic("red", "default/net1", macAddress=mac), name="vm2", uid="other"))
    api.put(VMS, objects.vm(objects.nic("red", "net2", macAddress=mac), name="elsewhere", uid="third"))
    api.put(VMIS, objects.vmi(owned=True))
    api.kube.mutate = MacPool()
    assert (await api.request(VMS, "addinterface", PLUG))[0] == 202
    (warning,) = api.warnings
    assert f"interface 'iface1' has the MAC address {mac} of interface 'red' of VM vm2 on the same network" in warning
    assert api.kube.requests.count(("GET", VMS, "")) == 1


async def test_invalid_request_has_its_message_in_a_cause_for_kubectl(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi())
    code, status, _ = await api.request(VMIS, "removeinterface", {"name": "default"})
    assert (code, status["reason"]) == (422, "Invalid")
    (cause,) = status["details"]["causes"]
    assert cause["message"] == status["message"]
    assert "primary network" in cause["message"]


@pytest.mark.parametrize("resource", [VMS, VMIS])
@pytest.mark.parametrize("exists", [True, False], ids=["existing", "missing"])
async def test_nad_of_another_namespace_requires_permission_to_read_it(
    api: ServedApi, resource: str, exists: bool
) -> None:
    api.put(VMS, objects.vm())
    api.put(VMIS, objects.vmi(owned=True))
    if exists:
        api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    api.kube.may = lambda spec: False
    foreign = {"networkAttachmentDefinitionName": "secret/net1", "name": "iface1"}
    code, status, _ = await api.request(resource, "addinterface", foreign)
    assert (code, status["reason"]) == (403, "Forbidden")
    assert 'User "someone" cannot get resource' in status["message"]
    (review,) = api.kube.reviewed
    caller = {name: value for name, value in review.items() if name != "resourceAttributes"}
    assert caller == {
        "user": "someone",
        "uid": "u-1",
        "groups": ["system:authenticated"],
        "extra": {"scopes": ["a"]},
    }
    attributes = {"group": "k8s.cni.cncf.io", "version": "v1", "resource": NADS, "verb": "get"}
    assert review["resourceAttributes"] == {**attributes, "namespace": "secret", "name": "net1"}

    api.kube.may = lambda spec: True
    code, _, _ = await api.request(resource, "addinterface", foreign)
    assert code == (202 if exists else 404)
    # A NAD of the VM's own namespace needs no review, and a removal names no NAD.
    code, _, _ = await api.request(resource, "addinterface", PLUG | {"name": "iface2"})
    assert code == 202
    await api.request(resource, "removeinterface", {"name": "iface2"})
    assert len(api.kube.reviewed) == 2


async def test_requests_of_one_namespace_leave_slots_to_others(api: ServedApi) -> None:
    document = msgspec.to_builtins(objects.vm())
    for number in range(2 * REQUESTS):
        metadata = document["metadata"] | {"name": f"vm{number}", "uid": f"uid-{number}"}
        api.kube.put(VMS, "default", f"vm{number}", **document | {"metadata": metadata})
    api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    waiting, answered = asyncio.Semaphore(0), asyncio.Event()

    async def review(body: Any) -> web.Response:
        waiting.release()
        await answered.wait()
        return web.json_response({**body, "status": {"allowed": True}}, status=201)

    api.kube.review = review
    foreign = {"networkAttachmentDefinitionName": "secret/net1", "name": "iface1"}
    requests = [
        asyncio.create_task(api.request(VMS, "addinterface", foreign, name=f"vm{number}"))
        for number in range(2 * REQUESTS)
    ]
    async with asyncio.timeout(60):
        for _ in range(REQUESTS * 3 // 4):
            await waiting.acquire()
        path = f"/apis/{HOTNIC}/namespaces/other/{VMIS}/vm1/interfaces"
        async with api.session.get(path) as response:
            assert response.status == 404
        assert waiting.locked(), "no further request of the namespace is worked on"
        answered.set()
        assert {code for code, _, _ in await asyncio.gather(*requests)} == {202}


def forbid_own(api: ServedApi, method: str, plural: str, times: float) -> None:
    """Forbid the api's ServiceAccount a call, this many times."""
    left = times

    def refuse(sent: str, requested: str, _name: str) -> None:
        nonlocal left
        if (sent, requested) == (method, plural) and left > 0:
            left -= 1
            user = "system:serviceaccount:hotnic:hotnic-api"
            message = f'User "{user}" cannot x resource "{plural}" in API group "g" at the cluster scope'
            raise Refused(403, "Forbidden", f"{plural} is forbidden: {message}")

    api.kube.before = refuse


OWN_CALLS = [("POST", "subjectaccessreviews"), ("GET", VMIS), ("GET", NADS), ("PATCH", VMIS)]
FOREIGN_PLUG = PLUG | {"networkAttachmentDefinitionName": "secret/net1"}


@pytest.mark.parametrize(("method", "plural"), OWN_CALLS)
async def test_a_permission_that_the_api_gets_a_moment_later_is_waited_for(
    api: ServedApi, method: str, plural: str
) -> None:
    """An API server that has just started forbids what its RBAC caches do not list yet."""
    api.put(VMIS, objects.vmi())
    api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    forbid_own(api, method, plural, 2)
    assert (await api.request(VMIS, "addinterface", FOREIGN_PLUG))[0] == 202
    forbid_own(api, "GET", VMIS, 2)
    async with api.session.get(f"/apis/{HOTNIC}/namespaces/default/{VMIS}/vm1/interfaces") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(("method", "plural"), OWN_CALLS)
async def test_a_permission_that_the_api_lacks_is_no_refusal_of_the_user(
    api: ServedApi, method: str, plural: str
) -> None:
    api.put(VMIS, objects.vmi())
    api.kube.put(NADS, "secret", "net1", spec={"config": '{"type":"bridge"}'})
    forbid_own(api, method, plural, float("inf"))
    code, status, _ = await api.request(VMIS, "addinterface", FOREIGN_PLUG)
    assert (code, status["reason"]) == (500, "InternalError")
    assert status["message"].startswith(
        f"hotnic's api lacks a permission: ServiceAccount hotnic/hotnic-api may not x {plural}.g in all namespaces; "
    )
    assert read_operation(api.kube.annotations(VMIS, "default", "vm1"), "iface1") is None


async def test_a_webhooks_refusal_is_the_answer_to_the_user(api: ServedApi) -> None:
    api.put(VMIS, objects.vmi())

    def refuse(method: str, _plural: str, _name: str) -> None:
        if method == "PATCH":
            raise Refused(403, "Forbidden", "admission webhook denied the request")

    api.kube.before = refuse
    code, status, _ = await api.request(VMIS, "addinterface", PLUG)
    assert (code, status["message"]) == (403, "admission webhook denied the request")
    assert api.kube.counted("PATCH", VMIS) == 1


AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
AGGREGATED_BETA = "application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io"


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        (None, 200),
        ("*/*", 200),
        ("application/json", 200),
        ("application/json, */*", 200),
        ("application/vnd.kubernetes.protobuf,application/json", 200),
        (f"{AGGREGATED},{AGGREGATED_BETA},application/json", 200),
        ("application/json;q=0.9", 200),
        ("application/json;q=0", 406),
        ("application/vnd.kubernetes.protobuf", 406),
    ],
)
@pytest.mark.parametrize("path", ["/apis", "/apis/subresources.hotnic.io", f"/apis/{HOTNIC}"])
async def test_discovery_is_plain_json_or_not_acceptable(
    api: ServedApi, path: str, accept: str | None, code: int
) -> None:
    headers = {"Accept": accept} if accept is not None else {}
    async with api.session.get(path, headers=headers, skip_auto_headers=["Accept"]) as answer:
        assert (answer.status, answer.content_type) == (code, "application/json")
        kind = (await answer.json())["kind"]
    assert (kind == "Status") is (code == 406)


@pytest.mark.parametrize("path", ["/apis/subresources.hotnic.io", f"/apis/{HOTNIC}"])
async def test_only_the_list_of_groups_has_an_aggregated_form(api: ServedApi, path: str) -> None:
    async with api.session.get(path, headers={"Accept": f"{AGGREGATED}, {AGGREGATED_BETA}"}) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (406, "NotAcceptable")


async def test_discovery_needs_neither_the_api_server_nor_the_bus(api: ServedApi) -> None:
    """An aggregated API without an answer blocks the deletion of every namespace, so it depends on nothing."""

    def hang(_method: str, _plural: str, _name: str) -> None:
        raise AssertionError("discovery sent a request")

    api.kube.before = hang
    before = len(api.kube.requests)
    async with asyncio.timeout(1):
        for path in ("/apis", *(f"/apis/{version}" for version in VERSIONS), "/openapi/v2", "/readyz"):
            async with api.session.get(path) as answer:
                assert answer.status == 200
    assert len(api.kube.requests) == before
    assert api.bus.published == []


@pytest.mark.parametrize("sampled", [True, False])
async def test_a_request_is_traced_whether_the_api_server_records_its_own_spans_or_not(
    api: ServedApi, sampled: bool
) -> None:
    """kube-apiserver passes on an unsampled context when it samples nothing, which is its default."""
    caller = f"00-{'1' * 32}-{'a' * 16}-0{sampled:d}"
    api.put(VMIS, objects.vmi())
    code, _, _ = await api.request(VMIS, "addinterface", PLUG, headers={"traceparent": caller})
    spans = api.spans.get_finished_spans()
    assert code == 202
    [(root, children)] = tree(spans)
    assert root == f"PUT /apis/{HOTNIC}/namespaces/{{namespace}}/virtualmachineinstances/{{name}}/addinterface"
    # The objects are read in parallel.
    assert (sorted(children[:-2]), children[-2:]) == (
        [(f"kube get {plural}", []) for plural in ("network-attachment-definitions", VMIS, VMS)],
        [(f"kube patch {VMIS}", []), ("send hotplug.requested", [])],
    )
    request = named(spans, root)
    assert one_trace(spans)
    linked = [f"{link.context.trace_id:x}" for link in request.links]
    assert (f"{request.context.trace_id:x}" == "1" * 32, linked) == (sampled, [] if sampled else ["1" * 32])
    written = read_operation(api.kube.annotations(VMIS, "default", "vm1"), "iface1")
    assert written is not None
    carried = span_context(context_of(written.traceparent))
    assert (carried.span_id, carried.trace_flags.sampled) == (request.context.span_id, True)
