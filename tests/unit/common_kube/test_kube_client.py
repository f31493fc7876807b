"""Requests: what is sent, what comes back, which error it is, which span is left."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from schemas.kube import NADS, PODS, VMIS
from services.common.kube import errors, patch
from services.common.kube.client import Kube
from services.common.telemetry.propagation import context_of, span_context
from tests.support.spans import named


async def test_get_decodes_and_says_who_asks(kube: Kube, script: Any, make_pod: Any) -> None:
    script.answer(make_pod("a", "7"))
    pod = await kube.get(PODS, "ns", "a")
    assert (pod.metadata.resource_version, pod.spec.node_name) == ("7", "n1")
    request = script.requests[0]
    assert (request.method, request.path) == ("GET", "/api/v1/namespaces/ns/pods/a")
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert request.headers["User-Agent"] == "hotnic-test/1"
    assert request.headers["Accept"] == "application/json"


async def test_the_context_of_the_kubeconfig_is_known(kube: Kube, script: Any) -> None:
    assert (kube.access.server, kube.access.context, kube.access.namespace) == (script.url, "test", "from-context")


async def test_list_says_what_it_left_out(kube: Kube, script: Any, make_pod: Any) -> None:
    script.listing(make_pod("a", "1"), make_pod("bad", "2") | {"spec": 1}, version="42")
    listing = await kube.list(PODS, labels="a=b", fields="metadata.name=x")
    assert [pod.metadata.name for pod in listing.items] == ["a"]
    assert (listing.resource_version, listing.skipped) == ("42", 1)
    assert script.requests[0].path == "/api/v1/pods"
    assert dict(script.requests[0].query) == {"labelSelector": "a=b", "fieldSelector": "metadata.name=x"}


async def test_patches_are_sent_as_what_they_are(kube: Kube, script: Any, make_pod: Any) -> None:
    script.answer(make_pod("a", "8"))
    script.answer(make_pod("a", "9"))
    annotation = patch.pointer("metadata", "annotations", "k8s.v1.cni.cncf.io/networks")
    await kube.json_patch(PODS, "ns", "a", [patch.test(annotation, None), patch.add(annotation, "[]")])
    await kube.merge_patch(PODS, "ns", "a", {"metadata": {"annotations": {"x": None}}}, subresource="status")
    first, second = script.requests
    assert (first.method, first.headers["Content-Type"]) == ("PATCH", "application/json-patch+json")
    assert msgspec.json.decode(script.bodies[0]) == [
        {"op": "test", "path": "/metadata/annotations/k8s.v1.cni.cncf.io~1networks", "value": None},
        {"op": "add", "path": "/metadata/annotations/k8s.v1.cni.cncf.io~1networks", "value": "[]"},
    ]
    assert (second.path, second.headers["Content-Type"]) == (
        "/api/v1/namespaces/ns/pods/a/status",
        "application/merge-patch+json",
    )


async def test_create_and_delete(kube: Kube, script: Any, make_pod: Any) -> None:
    script.answer(make_pod("a", "1"), 201)
    script.answer({"kind": "Status", "status": "Success"})
    created = await kube.create(PODS, "ns", {"metadata": {"name": "a"}})
    assert created.metadata.uid == "uid-a"
    await kube.delete(PODS, "ns", "a", grace=0, uid="uid-a")
    assert [request.method for request in script.requests] == ["POST", "DELETE"]
    options = msgspec.json.decode(script.bodies[1])
    assert (options["gracePeriodSeconds"], options["preconditions"]) == (0, {"uid": "uid-a"})


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "BadRequest", errors.BadRequest),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (405, "MethodNotAllowed", errors.KubeError),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (410, "Gone", errors.Gone),
        (413, "RequestEntityTooLarge", errors.ObjectTooLarge),
        (422, "Invalid", errors.Invalid),
        (429, "TooManyRequests", errors.Unavailable),
        (500, "InternalError", errors.Unavailable),
        (503, "ServiceUnavailable", errors.Unavailable),
        (504, "Timeout", errors.Unavailable),
    ],
)
async def test_errors_are_classified(
    kube: Kube, script: Any, make_failure: Any, status: int, reason: str, expected: type[errors.KubeError]
) -> None:
    script.answer(make_failure(status, reason, "because"), status)
    with pytest.raises(errors.KubeError) as caught:
        await kube.get(PODS, "ns", "a")
    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.reason, caught.value.message) == (status, reason, "because")


async def test_an_error_that_is_no_status_keeps_its_text(kube: Kube, script: Any) -> None:
    script.answer(b"<html>bad gateway", 502)
    with pytest.raises(errors.Unavailable, match="bad gateway"):
        await kube.get(PODS, "ns", "a")


async def test_later_says_when(kube: Kube, script: Any, make_failure: Any) -> None:
    script.answer(make_failure(429, "TooManyRequests", retryAfterSeconds=3), 429)
    script.answer(b"", 503, **{"Retry-After": "7"})
    for expected in (3.0, 7.0):
        with pytest.raises(errors.Unavailable) as caught:
            await kube.get(PODS, "ns", "a")
        assert caught.value.retry_after == expected


GENERIC = "the server rejected our request due to an error in our request"


@pytest.mark.parametrize(
    ("message", "details", "guarded", "expected"),
    [
        (GENERIC, {}, True, errors.PatchTestFailed),
        (GENERIC, {}, False, errors.Invalid),
        ("testing value /spec/networks failed: test failed", {"kind": "vmi"}, True, errors.PatchTestFailed),
        ('Pod "a" is invalid', {"kind": "Pod", "causes": [{"field": "spec", "message": "test"}]}, True, errors.Invalid),
    ],
)
async def test_a_failed_test_is_told_from_an_invalid_object(
    kube: Kube, script: Any, make_failure: Any, message: str, details: Any, guarded: bool, expected: type[Exception]
) -> None:
    script.answer(make_failure(422, "Invalid", message, **details), 422)
    ops = [patch.test("/spec/a", 1)] if guarded else []
    with pytest.raises(errors.Invalid) as caught:
        await kube.json_patch(VMIS, "ns", "a", [*ops, patch.replace("/spec/a", 2)])
    assert type(caught.value) is expected


async def test_an_answer_of_another_shape_is_bad(kube: Kube, script: Any) -> None:
    script.answer({"metadata": []})
    with pytest.raises(errors.BadApiAnswer):
        await kube.get(NADS, "ns", "a")


async def test_nobody_there_is_unavailable(
    tmp_path: Path, recorded: Any, make_kubeconfig: Any, unused_tcp_port: int
) -> None:
    path = tmp_path / "config"
    path.write_bytes(make_kubeconfig(f"http://127.0.0.1:{unused_tcp_port}"))
    async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
        with pytest.raises(errors.Unavailable) as caught:
            await kube.get(PODS, "ns", "a")
    assert caught.value.reason == "Unreachable"


async def test_no_answer_in_time_is_unavailable(kube: Kube) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        await kube.request("GET", "/api/v1/pods", timeout=0.1)
    assert caught.value.reason == "Timeout"


async def test_every_request_leaves_a_span_and_takes_the_trace_along(
    kube: Kube, script: Any, recorded: Any, make_pod: Any, make_failure: Any
) -> None:
    telemetry, spans = recorded
    script.answer(make_pod("a", "1"))
    script.answer(make_failure(404, "NotFound", "no pod"), 404)
    with telemetry.tracer.start_as_current_span("root") as root:
        await kube.json_patch(PODS, "ns", "a", [patch.remove("/a")], subresource="status")
        with pytest.raises(errors.NotFound):
            await kube.get(PODS, "ns", "b")
    finished = spans.get_finished_spans()
    patched, got = named(finished, "kube patch pods/status"), named(finished, "kube get pods")
    for span in (patched, got):
        assert span.kind is SpanKind.CLIENT
        assert span.parent.span_id == root.get_span_context().span_id
    assert patched.attributes["http.response.status_code"] == 200
    assert patched.status.status_code is StatusCode.UNSET
    assert (got.attributes["error.type"], got.status.status_code) == ("NotFound", StatusCode.ERROR)
    sent = span_context(context_of(script.requests[0].headers["traceparent"]))
    assert sent.span_id == patched.context.span_id


async def test_a_lost_guard_is_no_failure_of_the_trace(
    kube: Kube, script: Any, recorded: Any, make_failure: Any
) -> None:
    script.answer(make_failure(422, "Invalid", GENERIC), 422)
    with pytest.raises(errors.PatchTestFailed):
        await kube.json_patch(PODS, "ns", "a", [patch.test("/spec/a", 1), patch.remove("/spec/a")])
    span = named(recorded[1].get_finished_spans(), "kube patch pods")
    assert (span.attributes["hotnic.guard"], span.status.status_code) == ("lost", StatusCode.UNSET)


async def test_raw_requests_give_the_answer_as_it_is(kube: Kube, script: Any) -> None:
    script.answer(b"raw", 202, **{"Hotnic-Operation": "id"})
    answer = await kube.request("PUT", "/apis/x/v1/y", body={"a": 1}, query={"dryRun": "All"})
    assert (answer.status, answer.body, answer.headers["hotnic-operation"]) == (202, b"raw", "id")
    assert script.bodies == [b'{"a":1}']
    assert script.requests[0].query_string == "dryRun=All"


async def test_one_connection_serves_many_requests(kube: Kube, script: Any, make_pod: Any) -> None:
    for n in range(5):
        script.answer(make_pod("a", str(n)))
    for _ in range(5):
        await kube.get(PODS, "ns", "a")
    assert len({id(request.protocol) for request in script.requests}) == 1


async def test_requests_run_beside_each_other(kube: Kube, script: Any, make_pod: Any) -> None:
    waiting = [asyncio.create_task(kube.get(PODS, "ns", str(n))) for n in range(3)]
    for _ in range(3):
        await asyncio.wait_for(script.arrived.acquire(), 5)
    for n in range(3):
        script.answer(make_pod(str(n), "1"))
    assert len(await asyncio.gather(*waiting)) == 3
