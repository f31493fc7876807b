"""Requests of the client: what is sent, what is returned, errors and spans."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from opentelemetry.trace import SpanKind, StatusCode

from schemas.kubernetes.objects import NADS, PODS, VMIS
from services.common.kube import errors, patch
from services.common.kube.client import Kube
from services.common.kube.session import transport
from services.common.telemetry.propagation import context_of, span_context
from tests.support.telemetry.spans import named


async def test_get_decodes_the_object_and_sends_credentials(kube: Kube, script: Any, make_pod: Any) -> None:
    script.respond(make_pod("a", "7"))
    pod = await kube.get(PODS, "ns", "a")
    assert (pod.metadata.resource_version, pod.spec.node_name) == ("7", "n1")
    request = script.requests[0]
    assert (request.method, request.path) == ("GET", "/api/v1/namespaces/ns/pods/a")
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert request.headers["User-Agent"] == "hotnic-test/1"
    assert request.headers["Accept"] == "application/json"


async def test_access_has_server_context_and_namespace(kube: Kube, script: Any) -> None:
    assert (kube.access.server, kube.access.context, kube.access.namespace) == (script.url, "test", "from-context")


async def test_list_counts_undecodable_objects(kube: Kube, script: Any, make_pod: Any) -> None:
    script.listing(make_pod("a", "1"), make_pod("bad", "2") | {"spec": 1}, version="42")
    listing = await kube.list(PODS, labels="a=b", fields="metadata.name=x")
    assert [pod.metadata.name for pod in listing.items] == ["a"]
    assert (listing.resource_version, listing.skipped) == ("42", 1)
    assert script.requests[0].path == "/api/v1/pods"
    assert dict(script.requests[0].query) == {"labelSelector": "a=b", "fieldSelector": "metadata.name=x"}


async def test_a_list_that_expires_between_two_pages_is_read_again(
    kube: Kube, script: Any, make_pod: Any, make_failure: Any
) -> None:
    first = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [make_pod("a", "1")]}
    script.respond(first)
    script.respond(make_failure(410, "Expired"), 410)
    script.listing(make_pod("a", "1"), make_pod("b", "2"))
    assert [pod.metadata.name for pod in (await kube.list(PODS)).items] == ["a", "b"]
    for _ in range(2):
        script.respond(first)
        script.respond(make_failure(410, "Expired"), 410)
    with pytest.raises(errors.Gone):
        await kube.list(PODS)


async def test_a_list_that_is_too_large_for_a_response_is_read_in_smaller_pages(
    kube: Kube, script: Any, make_pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may create pods chooses how large those are that a selector finds."""
    monkeypatch.setattr(transport, "MAX_RESPONSE", 3000)
    large = [make_pod(str(n), str(n)) | {"filler": "x" * 1000} for n in range(8)]
    script.listing(*large)
    script.listing(*large[:4])
    script.respond({"metadata": {"continue": "more"}, "items": large[:2]})
    script.respond({"metadata": {"continue": "most"}, "items": large[2:4]})
    listing = await kube.list(PODS, labels="a=b", most=4)
    assert [pod.metadata.name for pod in listing.items] == ["0", "1", "2", "3"]
    assert [dict(request.query) | {"labelSelector": ""} for request in script.requests] == [
        {"labelSelector": ""},
        {"labelSelector": "", "limit": "8"},
        {"labelSelector": "", "limit": "2"},
        {"labelSelector": "", "limit": "2", "continue": "more"},
    ]


async def test_an_object_that_is_too_large_for_a_response_is_an_error(
    kube: Kube, script: Any, make_pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_RESPONSE", 1000)
    for _ in range(4):
        script.listing(make_pod("a", "1") | {"filler": "x" * 1000})
    with pytest.raises(errors.ResponseTooLarge, match="more than 1000 bytes"):
        await kube.list(PODS, labels="a=b")
    assert [request.query.get("limit") for request in script.requests] == [None, "8", "2", "1"]


async def test_large_responses_are_read_a_few_at_a_time(kube: Kube, script: Any) -> None:
    size, count = 4 * 1024 * 1024, 16

    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(size // 65536):
            await response.write(bytes(65536))
        return response

    async def read() -> int:
        return len((await kube.request("GET", "/large", timeout=100.0)).body)

    for _ in range(count):
        script.responses.put_nowait(respond)
    tracemalloc.start()
    try:
        assert await asyncio.gather(*(read() for _ in range(count))) == [size] * count
        assert tracemalloc.get_traced_memory()[1] < size * (transport.LARGE_AT_ONCE + 5)
    finally:
        tracemalloc.stop()


async def test_large_lines_of_streams_are_read_a_few_at_a_time(kube: Kube, script: Any) -> None:
    """One change of a large object is sent by every watch of it."""
    size, count = 2 * 1024 * 1024, 12
    ended = asyncio.Event()
    lines: list[int] = []
    parts = [bytearray() for _ in range(count)]
    most = 0

    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2):
            for _ in range(size // 65536):
                await response.write(b"x" * 65536)
            await response.write(b"\n")
        # A stream that stays open keeps no turn.
        await ended.wait()
        return response

    async def read(line: bytearray) -> None:
        nonlocal most
        async with kube.stream("/watch", {}, timeout=100.0) as chunks:
            async for chunk in chunks:
                line += chunk
                most = max(most, sum(len(one) > size // 2 for one in parts))
                for _ in range(chunk.count(b"\n")):
                    lines.append(line.index(b"\n"))
                    del line[: lines[-1] + 1]
                if len(lines) == 2 * count:
                    ended.set()

    for _ in range(count):
        script.responses.put_nowait(respond)
    await asyncio.gather(*(read(line) for line in parts))
    assert lines == [size] * 2 * count
    assert most <= transport.LARGE_AT_ONCE


async def test_patches_have_their_content_type(kube: Kube, script: Any, make_pod: Any) -> None:
    script.respond(make_pod("a", "8"))
    script.respond(make_pod("a", "9"))
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
    script.respond(make_pod("a", "1"), 201)
    script.respond({"kind": "Status", "status": "Success"})
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
        (405, "MethodNotAllowed", errors.BadRequest),
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
    script.respond(make_failure(status, reason, "because"), status)
    with pytest.raises(errors.KubeError) as caught:
        await kube.get(PODS, "ns", "a")
    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.reason, caught.value.message) == (status, reason, "because")


async def test_an_error_without_a_status_has_the_body_as_message(kube: Kube, script: Any) -> None:
    script.respond(b"<html>bad gateway", 502)
    with pytest.raises(errors.Unavailable, match="bad gateway"):
        await kube.get(PODS, "ns", "a")


async def test_errors_have_the_retry_time(kube: Kube, script: Any, make_failure: Any) -> None:
    script.respond(make_failure(429, "TooManyRequests", retryAfterSeconds=3), 429)
    script.respond(b"", 503, **{"Retry-After": "7"})
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
async def test_a_failed_test_differs_from_an_invalid_object(
    kube: Kube, script: Any, make_failure: Any, message: str, details: Any, guarded: bool, expected: type[Exception]
) -> None:
    script.respond(make_failure(422, "Invalid", message, **details), 422)
    ops = [patch.test("/spec/a", 1)] if guarded else []
    with pytest.raises(errors.Invalid) as caught:
        await kube.json_patch(VMIS, "ns", "a", [*ops, patch.replace("/spec/a", 2)])
    assert type(caught.value) is expected


async def test_an_undecodable_response_is_bad_api_response(kube: Kube, script: Any) -> None:
    script.respond({"metadata": []})
    with pytest.raises(errors.BadApiResponse):
        await kube.get(NADS, "ns", "a")


async def test_a_refused_connection_is_unavailable(
    tmp_path: Path, recorded: Any, make_kubeconfig: Any, unused_tcp_port: int
) -> None:
    path = tmp_path / "config"
    path.write_bytes(make_kubeconfig(f"http://127.0.0.1:{unused_tcp_port}"))
    async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
        with pytest.raises(errors.Unavailable) as caught:
            await kube.get(PODS, "ns", "a")
    assert caught.value.reason == "Unreachable"


async def test_an_error_does_not_show_the_password_of_a_proxy(
    tmp_path: Path, recorded: Any, make_kubeconfig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    path = tmp_path / "config"
    path.write_bytes(make_kubeconfig("https://198.51.100.1:6443"))
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
        async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
            with pytest.raises(errors.Unavailable) as caught:
                await kube.get(PODS, "ns", "a")
    assert "407" in caught.value.message
    assert "secret" not in caught.value.message


async def test_a_timeout_is_unavailable(kube: Kube) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        await kube.request("GET", "/api/v1/pods", timeout=0.1)
    assert caught.value.reason == "Timeout"


async def test_every_request_has_a_span_and_sends_the_trace_context(
    kube: Kube, script: Any, recorded: Any, make_pod: Any, make_failure: Any
) -> None:
    telemetry, spans = recorded
    script.respond(make_pod("a", "1"))
    script.respond(make_failure(404, "NotFound", "no pod"), 404)
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


@pytest.mark.parametrize(
    ("server", "address", "port"),
    [
        ("https://kube.example", "kube.example", 443),
        ("https://kube.example:6443/prefix", "kube.example", 6443),
        ("http://10.0.0.1", "10.0.0.1", 80),
        ("https://[fd00::1]:6443", "fd00::1", 6443),
    ],
)
def test_server_attributes_are_host_and_port(server: str, address: str, port: int) -> None:
    assert transport._server_attributes(server) == {"server.address": address, "server.port": port}


async def test_spans_name_host_and_port_of_the_server(kube: Kube, script: Any, recorded: Any, make_pod: Any) -> None:
    script.respond(make_pod("a", "1"))
    await kube.get(PODS, "ns", "a")
    (span,) = recorded[1].get_finished_spans()
    assert span.attributes["server.address"] == "127.0.0.1"
    assert f"http://127.0.0.1:{span.attributes['server.port']}" == script.url


async def _patch(kube: Kube) -> None:
    await kube.json_patch(PODS, "ns", "a", [patch.test("/spec/a", 1), patch.remove("/spec/a")])


async def _unguarded_patch(kube: Kube) -> None:
    await kube.json_patch(PODS, "ns", "a", [patch.remove("/spec/a")])


async def _merge(kube: Kube) -> None:
    await kube.merge_patch(PODS, "ns", "a", {"metadata": {"resourceVersion": "1"}})


async def _unguarded_merge(kube: Kube) -> None:
    await kube.merge_patch(PODS, "ns", "a", {"metadata": {"labels": {}}})


async def _delete(kube: Kube) -> None:
    await kube.delete(PODS, "ns", "a", uid="u")


async def _unguarded_put(kube: Kube) -> None:
    await kube.request("PUT", "/apis/x/v1/y", body={"name": "blue"})


@pytest.mark.parametrize(
    ("send", "code", "reason", "kind", "conflict"),
    [
        (_patch, 422, "Invalid", errors.PatchTestFailed, True),
        (_patch, 409, "Conflict", errors.Conflict, True),
        (_patch, 403, "Forbidden", errors.Forbidden, False),
        (_unguarded_patch, 422, "Invalid", errors.Invalid, False),
        (_unguarded_patch, 409, "Conflict", errors.Conflict, False),
        (_merge, 409, "Conflict", errors.Conflict, True),
        (_merge, 422, "Invalid", errors.Invalid, False),
        (_merge, 409, "AlreadyExists", errors.AlreadyExists, False),
        (_unguarded_merge, 409, "Conflict", errors.Conflict, False),
        (_delete, 409, "Conflict", errors.Conflict, True),
        (_unguarded_put, 409, "Conflict", errors.Conflict, False),
    ],
)
async def test_conflict_of_a_guarded_write_is_no_span_error(
    kube: Kube,
    script: Any,
    recorded: Any,
    make_failure: Any,
    send: Callable[[Kube], Awaitable[None]],
    code: int,
    reason: str,
    kind: type[errors.KubeError],
    conflict: bool,
) -> None:
    script.respond(make_failure(code, reason, GENERIC), code)
    telemetry, exporter = recorded
    with (
        pytest.raises(errors.KubeError) as raised,
        telemetry.tracer.start_as_current_span("role's own span"),
    ):
        await send(kube)
    assert (type(raised.value), raised.value.conflict) == (kind, conflict)
    for span in exporter.get_finished_spans():
        assert span.attributes.get("hotnic.conflict", False) is conflict
        assert span.status.status_code is (StatusCode.UNSET if conflict else StatusCode.ERROR)
        assert span.name == "role's own span" or span.attributes["http.response.status_code"] == code
        assert not (conflict and span.events)


async def test_raw_requests_return_the_response_unchanged(kube: Kube, script: Any) -> None:
    script.respond(b"raw", 202, **{"Hotnic-Operation": "id"})
    response = await kube.request("PUT", "/apis/x/v1/y", body={"a": 1}, query={"dryRun": "All"})
    assert (response.status, response.body, response.headers["hotnic-operation"]) == (202, b"raw", "id")
    assert script.bodies == [b'{"a":1}']
    assert script.requests[0].query_string == "dryRun=All"


async def test_warnings_of_a_response_are_read_without_their_quoting(kube: Kube, script: Any) -> None:
    script.respond(b"", 202, Warning=r'299 - "the \"VM\" goes down", 299 k8s "deprecated", 199 - "other"')
    response = await kube.request("PUT", "/apis/x/v1/y")
    assert response.warnings == ('the "VM" goes down', "deprecated")


async def test_a_patch_can_be_tried_without_a_change(kube: Kube, script: Any, make_pod: Any) -> None:
    script.respond(make_pod("a", "8"))
    await kube.json_patch(PODS, "ns", "a", [], dry_run=True)
    assert dict(script.requests[0].query) == {"dryRun": "All"}


async def test_one_connection_serves_many_requests(kube: Kube, script: Any, make_pod: Any) -> None:
    for n in range(5):
        script.respond(make_pod("a", str(n)))
    for _ in range(5):
        await kube.get(PODS, "ns", "a")
    assert len({id(request.protocol) for request in script.requests}) == 1


async def test_requests_run_beside_each_other(kube: Kube, script: Any, make_pod: Any) -> None:
    waiting = [asyncio.create_task(kube.get(PODS, "ns", str(n))) for n in range(3)]
    for _ in range(3):
        await asyncio.wait_for(script.arrived.acquire(), 5)
    for n in range(3):
        script.respond(make_pod(str(n), "1"))
    assert len(await asyncio.gather(*waiting)) == 3
