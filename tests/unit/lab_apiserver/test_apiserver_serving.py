"""The whole server: authentication, watches, persistence, and the process."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from lab.apiserver.app import RunningServer, Settings, serving
from lab.apiserver.identity import pki
from tests.cluster.tools import Api, events
from tests.unit.lab_apiserver.conftest import client_context

CONFIGMAPS = "/api/v1/namespaces/{ns}/configmaps"
MERGE = "application/merge-patch+json"


@pytest.mark.parametrize("path", ["/version", "/healthz", "/readyz", "/livez", "/readyz/ping"])
async def test_health_and_version_need_no_authentication(unauthenticated: Api, path: str) -> None:
    assert (await unauthenticated("GET", path)).code == 200


async def test_unauthenticated_request_gets_401_status(unauthenticated: Api) -> None:
    answer = await unauthenticated("GET", CONFIGMAPS)
    assert (answer.code, answer.body["reason"]) == (401, "Unauthorized")


async def test_token_of_token_file_authenticates_user(unauthenticated: Api) -> None:
    unauthenticated.defaults["Authorization"] = "Bearer secret-token"
    review = await unauthenticated("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    user_info = review.body["status"]["userInfo"]
    assert user_info == {
        "username": "jane",
        "uid": "uid-7",
        "groups": ["developers", "testers", "system:authenticated"],
    }
    unauthenticated.defaults["Authorization"] = "Bearer secret-toke"
    assert (await unauthenticated("GET", CONFIGMAPS)).code == 401


async def test_certificate_authenticates_user_with_groups(settings: Settings, server: RunningServer) -> None:
    pair = pki.issue_client(settings.directory, "system:node:lab", ["system:nodes"])
    context = client_context(settings.directory, pair)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        review = await Api(server.url, session, "default")(
            "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}
        )
    user_info = review.body["status"]["userInfo"]
    assert user_info == {"username": "system:node:lab", "groups": ["system:nodes", "system:authenticated"]}


async def test_impersonation_changes_the_user(api: Api) -> None:
    api.defaults["Impersonate-User"] = "bob"
    review = await api("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    assert review.body["status"]["userInfo"]["username"] == "bob"


async def test_token_review_uses_token_file(api: Api) -> None:
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    known = await api("POST", path, {"spec": {"token": "secret-token"}})
    assert known.body["status"]["user"]["username"] == "jane"
    unknown = await api("POST", path, {"spec": {"token": "other"}})
    assert not unknown.body["status"].get("authenticated")


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({"user": "x"}, True),
        ({"groups": ["system:authenticated"]}, True),
        ({"user": "system:anonymous", "groups": ["system:unauthenticated"]}, False),
    ],
)
async def test_access_review_allows_authenticated_users(api: Api, spec: dict[str, Any], allowed: bool) -> None:
    body = {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}, **spec}}
    answer = await api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    assert (answer.code, answer.body["status"]["allowed"]) == (201, allowed)


async def test_access_review_without_attributes_is_invalid(api: Api) -> None:
    answer = await api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": {"user": "x"}})
    assert (answer.code, answer.body["reason"]) == (422, "Invalid")


async def test_watch_from_version_before_log_gets_410(api: Api) -> None:
    """The log keeps 20 events; for an older version the watch sends one ERROR event with a 410 Status and ends."""
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": "x"}})
    first = made.body["metadata"]["resourceVersion"]
    for n in range(25):
        await api("PATCH", f"{CONFIGMAPS}/x", {"data": {"n": str(n)}}, content=MERGE)
    received = [event async for event in api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={first}")]
    assert [event["type"] for event in received] == ["ERROR"]
    assert (received[0]["object"]["code"], received[0]["object"]["reason"]) == (410, "Expired")


async def test_watch_from_future_version_gets_504(api: Api) -> None:
    answer = await api("GET", f"{CONFIGMAPS}?watch=true&resourceVersion=999999")
    assert (answer.code, answer.body["reason"]) == (504, "Timeout")


async def test_bookmark_is_sent_without_changes_and_starts_a_watch(api: Api) -> None:
    made = await api("POST", CONFIGMAPS, {"metadata": {"name": "x"}})
    version = made.body["metadata"]["resourceVersion"]
    await api("POST", "/api/v1/namespaces/{ns}/secrets", {"metadata": {"name": "elsewhere"}})
    watch = api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}&allowWatchBookmarks=true")
    [bookmark] = await events(watch, 1)
    assert (bookmark["type"], bookmark["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
    later = bookmark["object"]["metadata"]["resourceVersion"]
    assert int(later) > int(version)
    await api("POST", CONFIGMAPS, {"metadata": {"name": "y"}})
    [event] = await events(api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={later}"), 1)
    assert event["object"]["metadata"]["name"] == "y"


async def test_initial_events_end_with_annotated_bookmark(api: Api) -> None:
    """WatchList: the current objects, then a bookmark with the annotation k8s.io/initial-events-end."""
    await api("POST", CONFIGMAPS, {"metadata": {"name": "x"}})
    options = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    received = await events(api.watch(f"{CONFIGMAPS}?{options}&fieldSelector=metadata.name=x"), 2)
    assert [event["type"] for event in received] == ["ADDED", "BOOKMARK"]
    assert received[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    refused = await api("GET", f"{CONFIGMAPS}?watch=true&sendInitialEvents=true")
    assert refused.code == 422


async def test_objects_and_versions_survive_a_restart(settings: Settings) -> None:
    """Objects, versions and CRDs persist; a watch from a version before the restart gets 410."""
    path, made = f"{CONFIGMAPS}/x", {}
    for round_ in range(2):
        async with serving(settings) as server:
            context = client_context(settings.directory, pki.pair(settings.directory, "admin"))
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
                api = Api(server.url, session, "default")
                if round_ == 0:
                    made = (await api("POST", CONFIGMAPS, {"metadata": {"name": "x"}, "data": {"a": "1"}})).body
                    await api("PATCH", path, {"data": {"b": "2"}}, content=MERGE)
                    continue
                found = (await api("GET", path)).body
                assert found["data"] == {"a": "1", "b": "2"}
                assert found["metadata"]["uid"] == made["metadata"]["uid"]
                version = made["metadata"]["resourceVersion"]
                [gone] = await events(api.watch(f"{CONFIGMAPS}?watch=true&resourceVersion={version}"), 1)
                assert gone["object"]["code"] == 410
                next_ = await api("POST", CONFIGMAPS, {"metadata": {"name": "y"}})
                assert int(next_.body["metadata"]["resourceVersion"]) > int(found["metadata"]["resourceVersion"])
                await api.close()


async def test_pod_log_is_not_implemented(api: Api) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    assert (await api("POST", "/api/v1/namespaces/{ns}/pods", pod)).code == 201
    answer = await api("GET", "/api/v1/namespaces/{ns}/pods/p/log")
    assert (answer.code, answer.body["reason"]) == (501, "NotImplemented")
    assert "pods/log" in answer.body["message"]


async def test_protobuf_is_decoded_only_for_known_kinds(api: Api) -> None:
    content = "application/vnd.kubernetes.protobuf"
    pod = "k8s\x00\n\t\n\x02v1\x12\x03Pod\x12\x00"
    answer = await api("POST", "/api/v1/namespaces/{ns}/pods", pod, content=content)
    assert (answer.code, answer.body["reason"]) == (415, "UnsupportedMediaType")
    for broken in ("nonsense", "k8s\x00\x0a\xff"):
        answer = await api("POST", CONFIGMAPS, broken, content=content)
        assert (answer.code, answer.body["reason"]) == (400, "BadRequest")


async def test_authentication_configmap_is_published(api: Api) -> None:
    path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
    data = (await api("GET", path)).body["data"]
    assert json.loads(data["requestheader-allowed-names"]) == ["front-proxy-client"]
    assert json.loads(data["requestheader-username-headers"]) == ["X-Remote-User"]
    assert json.loads(data["requestheader-group-headers"]) == ["X-Remote-Group"]
    assert json.loads(data["requestheader-extra-headers-prefix"]) == ["X-Remote-Extra-"]
    assert data["client-ca-file"] != data["requestheader-client-ca-file"]
    assert data["client-ca-file"].startswith("-----BEGIN CERTIFICATE-----")


async def test_unchanged_openapi_document_gets_304(api: Api) -> None:
    index = (await api("GET", "/openapi/v3")).body["paths"]
    url = index["api/v1"]["serverRelativeURL"]
    document = await api("GET", url)
    assert document.headers["ETag"].strip('"') in url
    api.defaults["If-None-Match"] = document.headers["ETag"]
    assert (await api("GET", url)).code == 304


class Process:
    """The server in a process of its own."""

    def __init__(self, directory: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        command = [sys.executable, "-m", "lab.apiserver", "--dir", str(directory), *arguments]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=pass_fds)
        assert self.popen.stdout is not None
        self.ready = cast("dict[str, Any]", json.loads(self.popen.stdout.readline()))

    def end(self, number: int) -> int:
        self.popen.send_signal(number)
        code = self.popen.wait(5)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


async def test_process_uses_inherited_sockets_and_ends_on_sigterm(tmp_path: Path, inherited: socket.socket) -> None:
    """--listen and --listen-fd work together; SIGTERM ends the process although a watch is open."""
    port = inherited.getsockname()[1]
    fd = os.dup(inherited.fileno())
    os.set_inheritable(fd, True)
    process = Process(tmp_path, "--listen", "127.0.0.1:0", "--listen-fd", str(fd), pass_fds=(fd,))
    os.close(fd)
    try:
        assert process.ready["listen"][0] == f"127.0.0.1:{port}"
        context = client_context(tmp_path, pki.pair(tmp_path, "admin"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            for listening in process.ready["listen"]:
                assert (await Api(f"https://{listening}", session, "default")("GET", CONFIGMAPS)).code == 200
            api = Api(process.ready["server"], session, "default")
            watch = api.watch(f"{CONFIGMAPS}?watch=true")
            await events(watch, 1)
            assert process.end(signal.SIGTERM) == 0
            await api.close()
    finally:
        if process.popen.poll() is None:
            process.end(signal.SIGKILL)


async def test_object_survives_sigkill_after_response(tmp_path: Path) -> None:
    """After SIGKILL right after the response, the object exists after the next start."""
    process = Process(tmp_path)
    context = client_context(tmp_path, pki.pair(tmp_path, "admin"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        made = await Api(process.ready["server"], session, "default")("POST", CONFIGMAPS, {"metadata": {"name": "x"}})
        process.end(signal.SIGKILL)
        process = Process(tmp_path)
        found = await Api(process.ready["server"], session, "default")("GET", f"{CONFIGMAPS}/x")
        process.end(signal.SIGTERM)
    assert found.body["metadata"] == made.body["metadata"]
