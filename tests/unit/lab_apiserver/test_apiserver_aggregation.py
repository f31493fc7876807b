"""The aggregation layer, with a backend on loopback that accepts only the front proxy's certificate."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lab.apiserver.app import Settings
from lab.apiserver.identity import pki
from tests.cluster.tools import DEADLINE, Api

GROUP = "extra.test.hotnic.io"
BASE = f"/apis/{GROUP}/v1"
APISERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
RESOURCES = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": f"{GROUP}/v1",
    "resources": [
        {"name": "nics", "singularName": "nic", "namespaced": True, "kind": "Nic", "verbs": ["get"]},
        {"name": "nics/plug", "singularName": "", "namespaced": True, "kind": "Nic", "verbs": ["update"]},
    ],
}


@dataclass
class Backend:
    """An aggregated server: records requests, and delays slow responses until `gate` is set."""

    port: int = 0
    requests: list[web.BaseRequest] = field(default_factory=list)
    certificates: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if request.path == BASE:
            return web.json_response(RESOURCES)
        self.requests.append(request)
        assert request.transport is not None
        self.certificates.append(request.transport.get_extra_info("peercert"))
        self.bodies.append(body)
        if request.path.endswith("/slow"):
            await self.gate.wait()
        if "watch" in request.query or request.path.endswith("/half"):
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"n":1}\n')
            await self.gate.wait()
            await response.write(b'{"n":2}\n')
            await response.write_eof()
            return response
        return web.json_response({"method": request.method}, status=202, headers={"Hotnic-Operation": "op-1"})


async def serve(settings: Settings, backend: Backend, dns_name: str) -> web.ServerRunner:
    pair = pki.issue_server(settings.directory, dns_name, [dns_name], [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    context.load_verify_locations(pki.ca_file(settings.directory, "front-proxy-ca"))
    context.verify_mode = ssl.CERT_REQUIRED
    runner = web.ServerRunner(web.Server(backend, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    backend.port = runner.addresses[0][1]
    return runner


@pytest.fixture
async def backend(settings: Settings, api: Api) -> AsyncIterator[Backend]:
    found = Backend()
    runner = await serve(settings, found, "extra.default.svc")
    yield found
    found.gate.set()
    await runner.cleanup()


async def register(settings: Settings, api: Api, port: int) -> None:
    """Create Service, Endpoints and APIService, as an installation does."""
    metadata = {"name": "extra"}
    service = {"metadata": metadata, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]}}
    assert (await api("POST", "/api/v1/namespaces/{ns}/services", service)).code == 201
    subsets = [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "https", "port": port}]}]
    assert (
        await api("POST", "/api/v1/namespaces/{ns}/endpoints", {"metadata": metadata, "subsets": subsets})
    ).code == 201
    spec = {
        "group": GROUP,
        "version": "v1",
        "groupPriorityMinimum": 1000,
        "versionPriority": 15,
        "caBundle": base64.b64encode(pki.ca_file(settings.directory).read_bytes()).decode(),
        "service": {"name": "extra", "namespace": "default", "port": 443},
    }
    answer = await api("POST", APISERVICES, {"metadata": {"name": f"v1.{GROUP}"}, "spec": spec})
    assert answer.code == 201, answer.body


async def condition(api: Api, status: str) -> dict[str, Any]:
    """Return the Available condition once it has that status."""
    path = f"{APISERVICES}?watch=true&fieldSelector=metadata.name=v1.{GROUP}"
    async with asyncio.timeout(DEADLINE):
        async for event in api.watch(path):
            for found in (event["object"].get("status") or {}).get("conditions") or []:
                if found["type"] == "Available" and found["status"] == status:
                    return dict(found)
    raise AssertionError(f"never Available={status}")


async def test_forwarded_request_carries_user_identity(settings: Settings, api: Api, backend: Backend) -> None:
    """X-Remote-* carry the user; the client's headers of these names and its credentials are dropped."""
    await register(settings, api, backend.port)
    api.defaults |= {"X-Remote-User": "root", "X-Remote-Extra-Scope": "all", "traceparent": "00-1-2-01"}
    answer = await api("PUT", f"{BASE}/namespaces/default/nics/a/plug?dryRun=All", {"name": "nic"})
    assert (answer.code, answer.body) == (202, {"method": "PUT"})
    assert answer.headers["Hotnic-Operation"] == "op-1"
    [request] = backend.requests
    assert request.raw_path == f"{BASE}/namespaces/default/nics/a/plug?dryRun=All"
    assert request.headers.getall("X-Remote-User") == ["kubernetes-admin"]
    assert request.headers.getall("X-Remote-Group") == ["system:masters", "system:authenticated"]
    assert "X-Remote-Extra-Scope" not in request.headers
    assert "Authorization" not in request.headers
    assert request.headers["traceparent"] == "00-1-2-01"
    assert request.headers["Content-Type"] == "application/json"
    assert backend.bodies == [b'{"name": "nic"}']
    assert (("commonName", "front-proxy-client"),) in backend.certificates[0]["subject"]


async def test_aggregated_group_is_discovered_and_available(settings: Settings, api: Api, backend: Backend) -> None:
    await register(settings, api, backend.port)
    found = await condition(api, "True")
    assert (found["reason"], found["message"]) == ("Passed", "all checks passed")
    groups = (await api("GET", "/apis")).body["groups"]
    assert GROUP in [group["name"] for group in groups]
    assert (await api("GET", f"/apis/{GROUP}")).body["preferredVersion"]["version"] == "v1"
    assert (await api("GET", BASE)).body == RESOURCES
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    items = (await api("GET", "/apis", accept=accept)).body["items"]
    [group] = [item for item in items if item["metadata"].get("name") == GROUP]
    [resource] = group["versions"][0]["resources"]
    assert (resource["resource"], resource["scope"], resource["singularResource"]) == ("nics", "Namespaced", "nic")
    assert resource["subresources"][0]["subresource"] == "plug"


async def test_responses_are_streamed_and_watches_have_no_time_limit(
    settings: Settings, api: Api, backend: Backend
) -> None:
    """The first line of a watch arrives before the backend has finished, and the watch outlives the limit."""
    await register(settings, api, backend.port)
    url = api.url(f"{BASE}/namespaces/default/nics?watch=true")
    async with api.session.get(url) as response:
        assert await response.content.readline() == b'{"n":1}\n'
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                asyncio.shield(asyncio.create_task(backend.gate.wait())), settings.request_timeout * 2
            )
        backend.gate.set()
        assert await response.content.readline() == b'{"n":2}\n'
        assert await response.content.read() == b""


async def test_slow_response_is_a_504_status(settings: Settings, api: Api, backend: Backend) -> None:
    await register(settings, api, backend.port)
    answer = await api("GET", f"{BASE}/namespaces/default/nics/slow")
    assert (answer.code, answer.body["reason"]) == (504, "Timeout")


async def test_response_beyond_limit_breaks_the_connection(settings: Settings, api: Api, backend: Backend) -> None:
    """`?watch` on a single object is no watch: the limit ends it, and the client can tell that the body is cut."""
    await register(settings, api, backend.port)
    for path in ("nics/half", "nics/a?watch=true"):
        async with api.session.get(api.url(f"{BASE}/namespaces/default/{path}")) as response:
            assert await response.content.readline() == b'{"n":1}\n'
            with pytest.raises(aiohttp.ClientError):
                await response.read()


async def test_api_service_without_its_service_object_is_unavailable(
    settings: Settings, api: Api, backend: Backend
) -> None:
    await register(settings, api, backend.port)
    await condition(api, "True")
    await api("DELETE", "/api/v1/namespaces/{ns}/services/extra")
    assert (await condition(api, "False"))["reason"] == "ServiceNotFound"
    answer = await api("GET", f"{BASE}/namespaces/default/nics/a")
    assert (answer.code, answer.body["reason"]) == (503, "ServiceUnavailable")
    assert "currently unable to handle the request" in answer.body["message"]


async def test_unreachable_server_is_unavailable(settings: Settings, api: Api, backend: Backend) -> None:
    await register(settings, api, 1)
    assert (await condition(api, "False"))["reason"] == "FailedDiscoveryCheck"
    answer = await api("GET", f"{BASE}/namespaces/default/nics/a")
    assert (answer.code, answer.body["reason"]) == (503, "ServiceUnavailable")


async def test_server_with_wrong_certificate_name_is_unavailable(settings: Settings, api: Api) -> None:
    """The certificate must be issued for <service>.<namespace>.svc by the CA in caBundle."""
    impostor = Backend()
    runner = await serve(settings, impostor, "other.default.svc")
    try:
        await register(settings, api, impostor.port)
        answer = await api("GET", f"{BASE}/namespaces/default/nics/a")
        assert (answer.code, answer.body["reason"]) == (503, "ServiceUnavailable")
        assert impostor.requests == []
    finally:
        await runner.cleanup()


async def test_api_service_without_service_reference_is_local(api: Api) -> None:
    spec = {"group": GROUP, "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15}
    await api("POST", APISERVICES, {"metadata": {"name": f"v1.{GROUP}"}, "spec": spec})
    assert (await condition(api, "True"))["reason"] == "Local"
    assert (await api("GET", f"{BASE}/nics")).code == 404
