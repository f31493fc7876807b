"""Credentials (client certificates, tokens, token files, exec plugins, service accounts) and their refresh."""

import base64
import os
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from schemas.kubernetes.objects import PODS
from services.common.http.server import make_app, serve
from services.common.http.tls import ServerTls, peer_common_name
from services.common.kube.client import Kube
from services.common.kube.errors import KubeconfigError, Unauthorized, Unavailable
from services.common.kube.session.auth import ClusterAccess
from services.common.kube.session.transport import Transport
from tests.support.kube.certs import Authority

HOME = {"HOME": "/nonexistent"}


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def tls_server(
    tmp_path: Path, recorded: Any, answer: Callable[[web.Request], Awaitable[web.Response]], *, strict: bool = True
) -> AsyncIterator[tuple[str, Authority]]:
    authority = Authority(tmp_path, strict=strict)
    pair = authority.server()
    app = make_app(telemetry=recorded[0], max_body=1024)
    app.router.add_route("*", "/{path:.*}", answer)
    tls = ServerTls(client_ca=authority.ca.read_text())
    tls.use(pair.cert.read_bytes(), pair.key.read_bytes())
    async with serve(app, "127.0.0.1:0", ssl=tls.context) as address:
        yield f"https://{address}", authority


async def who(request: web.Request) -> web.Response:
    name = peer_common_name(request) or request.headers.get("Authorization", "nobody")
    return web.json_response({"metadata": {"name": name}})


@pytest.mark.parametrize("strict", [True, False], ids=["complete CA", "CA without key identifiers"])
async def test_a_client_certificate_authenticates(
    tmp_path: Path, recorded: Any, make_kubeconfig: Any, strict: bool
) -> None:
    async with tls_server(tmp_path, recorded, who, strict=strict) as (server, authority):
        client = authority.client("hotnic:api")
        path = tmp_path / "config"
        user = {"client-certificate": str(client.cert), "client-key": str(client.key)}
        path.write_bytes(make_kubeconfig(server, user, {"certificate-authority": str(authority.ca)}))
        async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
            assert (await kube.get(PODS, "ns", "x")).metadata.name == "hotnic:api"


async def test_a_server_with_an_unknown_ca_is_refused(tmp_path: Path, recorded: Any, make_kubeconfig: Any) -> None:
    async with tls_server(tmp_path, recorded, who) as (server, _):
        other = Authority(tmp_path, "other-ca")
        path = tmp_path / "config"
        path.write_bytes(make_kubeconfig(server, {"token": "secret"}, {"certificate-authority": str(other.ca)}))
        async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await kube.get(PODS, "ns", "x")
        path.write_bytes(make_kubeconfig(server, {"token": "secret"}, {"insecure-skip-tls-verify": True}))
        async with await Kube.connect(kubeconfig=str(path), telemetry=recorded[0], user_agent="t") as kube:
            assert (await kube.get(PODS, "ns", "x")).metadata.name == "Bearer secret"


async def test_a_token_file_is_read_again_every_minute(tmp_path: Path, make_kubeconfig: Any) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    path, clock = tmp_path / "config", Clock()
    path.write_bytes(make_kubeconfig("http://127.0.0.1:1", {"tokenFile": str(token)}))
    access = ClusterAccess(str(path), environ=HOME, clock=clock)
    await access.load()
    assert await access.headers() == {"Authorization": "Bearer one"}
    token.write_text("two\n")
    clock.now = 59
    assert await access.headers() == {"Authorization": "Bearer one"}
    clock.now = 61
    assert await access.headers() == {"Authorization": "Bearer two"}


async def test_old_credentials_are_used_if_the_new_ones_cannot_be_read(
    tmp_path: Path, make_kubeconfig: Any, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    path, clock = tmp_path / "config", Clock()
    path.write_bytes(make_kubeconfig("http://127.0.0.1:1", {"tokenFile": str(token)}))
    access = ClusterAccess(str(path), environ=HOME, clock=clock)
    await access.load()
    path.unlink()
    clock.now = 100
    assert await access.headers() == {"Authorization": "Bearer one"}
    assert "credentials not refreshed" in caplog.text


def plugin(tmp_path: Path, status: dict[str, Any]) -> dict[str, Any]:
    """Return a user with an exec plugin that puts the number of its runs into the token."""
    script, count = tmp_path / "plugin", tmp_path / "count"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    text = msgspec.json.encode(credential).decode().replace("RUN", "'$(wc -c < " + str(count) + ")'")
    script.write_text(f"#!/bin/sh\nprintf x >> {count}\nprintf '%s' '{text}'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": credential["apiVersion"], "command": str(script), "interactiveMode": "Never"}}


@pytest.mark.parametrize(
    ("extra", "again"), [({}, "Bearer run1"), ({"expirationTimestamp": "2020-01-01T00:00:00Z"}, "Bearer run2")]
)
async def test_an_exec_plugin_runs_again_when_its_token_expires(
    tmp_path: Path, make_kubeconfig: Any, extra: dict[str, Any], again: str
) -> None:
    path, clock = tmp_path / "config", Clock()
    path.write_bytes(make_kubeconfig("http://127.0.0.1:1", plugin(tmp_path, {"token": "runRUN", **extra})))
    access = ClusterAccess(str(path), environ=HOME, clock=clock)
    await access.load()
    assert await access.headers() == {"Authorization": "Bearer run1"}
    clock.now = 100
    assert await access.headers() == {"Authorization": again}


async def test_a_401_is_retried_once_with_new_credentials(
    tmp_path: Path, recorded: Any, script: Any, make_pod: Any, make_failure: Any, make_kubeconfig: Any
) -> None:
    path, clock = tmp_path / "config", Clock()
    path.write_bytes(make_kubeconfig(script.url, {"token": "old"}))
    access = ClusterAccess(str(path), environ=HOME, clock=clock)
    await access.load()
    kube = Kube(Transport.open(access, recorded[0], "t"))
    async with kube:
        path.write_bytes(make_kubeconfig(script.url, {"token": "new"}))
        clock.now = 10
        script.respond(make_failure(401, "Unauthorized"), 401)
        script.respond(make_pod("a", "1"))
        assert (await kube.get(PODS, "ns", "a")).metadata.name == "a"
        assert [request.headers["Authorization"] for request in script.requests] == ["Bearer old", "Bearer new"]
        script.respond(make_failure(401, "Unauthorized"), 401)
        with pytest.raises(Unauthorized):
            await kube.get(PODS, "ns", "a")
        assert len(script.requests) == 3


async def test_the_service_account_is_used_in_a_pod(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.ca.read_bytes())
    (tmp_path / "token").write_text("sa-one\n")
    (tmp_path / "namespace").write_text("hotnic")
    environ = {**HOME, "KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    clock = Clock()
    access = ClusterAccess(None, environ=environ, service_account=str(tmp_path), clock=clock)
    await access.load()
    assert (access.server, access.namespace, access.context) == ("https://[fd00::1]:443", "hotnic", None)
    assert access.ssl is not None
    assert access.ssl.verify_mode is ssl.CERT_REQUIRED
    assert await access.headers() == {"Authorization": "Bearer sa-one"}
    (tmp_path / "token").write_text("sa-two\n")
    clock.now = 10
    assert await access.refresh()
    assert await access.headers() == {"Authorization": "Bearer sa-two"}


async def test_a_replaced_ca_is_used_without_a_401(tmp_path: Path) -> None:
    """With the old CA every handshake fails, so no response would ever ask for another one."""
    cas = [Authority(tmp_path, name).ca.read_bytes() for name in ("one", "two")]
    ca = tmp_path / "ca.crt"
    ca.write_bytes(cas[0])
    (tmp_path / "token").write_text("t")
    environ = {**HOME, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    clock = Clock()
    access = ClusterAccess(None, environ=environ, service_account=str(tmp_path), clock=clock)
    await access.load()
    first = access.ssl
    for content, trusts in ((cas[0], cas[0]), (None, cas[0]), (b"half", cas[0]), (cas[1], cas[1])):
        ca.unlink(missing_ok=True)
        clock.now += 10
        if content is not None:
            ca.write_bytes(content)
            # The file system's clock is too coarse for a test.
            os.utime(ca, (clock.now, clock.now))
        await access.headers()
        assert access.ssl is not None
        assert ssl.PEM_cert_to_DER_cert(trusts.decode()) in access.ssl.get_ca_certs(binary_form=True)
    assert access.ssl is not first


def oidc(tmp_path: Path, issuer: str, expires: int) -> dict[str, Any]:
    """Return a user with an OpenID Connect provider."""
    claims = base64.urlsafe_b64encode(msgspec.json.encode({"exp": expires})).decode().rstrip("=")
    config = {"client-id": "kube", "client-secret": "s", "idp-issuer-url": issuer, "refresh-token": "r"}
    return {"auth-provider": {"name": "oidc", "config": {**config, "id-token": f"a.{claims}.c"}}}


async def test_no_token_of_an_oidc_provider_is_refreshed(tmp_path: Path, recorded: Any, make_kubeconfig: Any) -> None:
    """The library sends the refresh token and the client's secret to whoever answers, whatever its certificate."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        return web.json_response({"token_endpoint": "https://elsewhere"})

    path = tmp_path / "config"
    async with tls_server(tmp_path, recorded, answer) as (server, _):
        path.write_bytes(make_kubeconfig("https://127.0.0.1:1", oidc(tmp_path, server, 4_000_000_000)))
        access = ClusterAccess(str(path), environ=HOME)
        await access.load()
        assert (await access.headers())["Authorization"].startswith("Bearer a.")
        content = make_kubeconfig("https://127.0.0.1:1", oidc(tmp_path, server, 1_000_000_000))
        path.write_bytes(content)
        with pytest.raises(KubeconfigError, match="let kubectl do that"):
            await ClusterAccess(str(path), environ=HOME).load()
    assert not asked
    assert path.read_bytes() == content


async def test_a_removed_auth_provider_is_refused(tmp_path: Path, make_kubeconfig: Any) -> None:
    """The library's one of Google Cloud runs a command."""
    path, ran = tmp_path / "config", tmp_path / "ran"
    user = {"auth-provider": {"name": "gcp", "config": {"cmd-path": "/bin/touch", "cmd-args": str(ran)}}}
    path.write_bytes(make_kubeconfig("https://127.0.0.1:1", user))
    with pytest.raises(KubeconfigError, match="auth-provider gcp is not supported"):
        await ClusterAccess(str(path), environ=HOME).load()
    assert not ran.exists()


@pytest.mark.parametrize("user", [{"token": "secret"}, {"username": "u", "password": "p"}])
async def test_no_credentials_are_sent_in_plain_text(
    tmp_path: Path, make_kubeconfig: Any, user: dict[str, str]
) -> None:
    path = tmp_path / "config"
    path.write_bytes(make_kubeconfig("http://192.0.2.1:8080", user))
    with pytest.raises(KubeconfigError, match="use https"):
        await ClusterAccess(str(path), environ=HOME).load()
    path.write_bytes(make_kubeconfig("http://192.0.2.1:8080"))
    await ClusterAccess(str(path), environ=HOME).load()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"contexts: 3", b":::", b"\t{", b"current-context: x\ncontexts: []\nclusters: []\nusers: []"],
)
async def test_an_invalid_kubeconfig_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(KubeconfigError, match="broken"):
        await ClusterAccess(str(path), environ=HOME).load()


async def test_the_error_without_configuration_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match=r"no KUBECONFIG, no ~/\.kube/config, and not in a pod"):
        await ClusterAccess(None, environ=HOME).load()
    with pytest.raises(KubeconfigError, match="no such kubeconfig"):
        await ClusterAccess(str(tmp_path / "absent"), environ=HOME).load()


async def test_a_context_can_be_selected(tmp_path: Path, make_kubeconfig: Any) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_bytes(make_kubeconfig("http://127.0.0.1:1"))
    second.write_bytes(make_kubeconfig("http://127.0.0.1:2").replace(b"test", b"other").replace(b": c\n", b": d\n"))
    paths = f"{first}:{second}"
    access = ClusterAccess(paths, environ=HOME)
    await access.load()
    other = ClusterAccess(paths, "other", environ=HOME)
    await other.load()
    assert (access.server, access.context) == ("http://127.0.0.1:1", "test")
    assert (other.server, other.context) == ("http://127.0.0.1:2", "other")
