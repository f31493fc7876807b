"""``hotnic run api`` as a process: it serves with a certificate of its own or from files, or refuses to start."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.kube.api_process import FRONT_PROXY, HOST, SERVICES, ApiProcess, api_process
from tests.support.kube.certs import Authority, tls_get
from tests.support.kube.node_kube import Refused, forbid


@pytest.fixture
async def api(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[ApiProcess]:
    async with api_process(tmp_path, unused_tcp_port) as found:
        yield found


async def test_the_api_makes_its_certificate_and_registers_it(api: ApiProcess) -> None:
    async with api.running(HOTNIC_TLS_SECRET="hotnic-api-tls"):
        await api.until_ready(200, "[+]serving ok")
        bundles = {api.kube.objects["apiservices", "", name]["spec"]["caBundle"] for name in SERVICES}
        assert len(bundles) == 1
        context = ssl.create_default_context(cadata=base64.b64decode(bundles.pop()).decode())
        certificate, body = await tls_get(f"127.0.0.1:{api.port}", context, name=HOST)
        assert "/apis/subresources.hotnic.io/v1" in body
        assert certificate["subjectAltName"] == (("DNS", HOST), ("DNS", f"{HOST}.cluster.local"))


@pytest.mark.parametrize(("verb", "plural"), [("get", "configmaps"), ("list", "kubevirts"), ("list", "pods")])
async def test_an_api_without_a_permission_waits_and_says_which(api: ApiProcess, verb: str, plural: str) -> None:
    api.kube.before = forbid(plural, "hotnic:hotnic-api")
    async with api.running(HOTNIC_TLS_SECRET="hotnic-api-tls"):
        await api.until_ready(
            503, f"[-]started failed: ServiceAccount hotnic/hotnic-api may not {verb} {plural} in all"
        )
        api.kube.before = lambda _method, _plural, _name: None
        await api.until_ready(200, "[+]started ok")


async def test_an_api_without_a_certificate_is_not_ready_and_says_why(api: ApiProcess) -> None:
    secret = ("secrets", "hotnic", "hotnic-api-tls")
    api.kube.put(*secret, data={"tls.crt": "eA=="})
    async with api.running(HOTNIC_TLS_SECRET="hotnic-api-tls"):
        await api.until_ready(503, "[-]serving-certificate failed: Secret hotnic/hotnic-api-tls was not written by hot")
        api.kube.delete(*secret)
        await api.until_ready(200, "[+]serving-certificate ok")


async def test_the_api_serves_a_certificate_from_files(api: ApiProcess) -> None:
    authority = Authority(api.folder)
    pair = authority.server()
    async with api.running(HOTNIC_TLS_CERT=str(pair.cert), HOTNIC_TLS_KEY=str(pair.key)):
        await api.until_ready(200, "[+]serving ok")
        context = ssl.create_default_context(cafile=str(authority.ca))
        certificate, _ = await tls_get(f"127.0.0.1:{api.port}", context)
        assert certificate["subject"] == ((("commonName", "server"),),)
    assert api.kube.counted("GET", "secrets") == 0


async def test_the_api_follows_a_rotation_of_the_front_proxy_ca(api: ApiProcess) -> None:
    authority, rotated = Authority(api.folder), Authority(api.folder, "rotated-ca")
    pair, client = authority.server(), rotated.client("front-proxy-client")
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(client.cert, client.key)
    async with api.running(HOTNIC_TLS_CERT=str(pair.cert), HOTNIC_TLS_KEY=str(pair.key)):
        await api.until_ready(200, "[+]serving ok")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await tls_get(f"127.0.0.1:{api.port}", context)
        # Without a CA the earlier one stays, and the watch goes on.
        api.kube.put(*FRONT_PROXY, data={})
        api.kube.put(*FRONT_PROXY, data={"requestheader-client-ca-file": rotated.ca.read_text()})
        async with asyncio.timeout(50):
            while True:
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    await tls_get(f"127.0.0.1:{api.port}", context)
                    break
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "HOTNIC_TLS_SECRET"),
        ({"HOTNIC_TLS_SECRET": "a", "HOTNIC_TLS_CERT": "/b"}, "is set together with HOTNIC_TLS_CERT"),
        ({"HOTNIC_TLS_CERT": "/no/cert", "HOTNIC_TLS_KEY": "/no/key"}, "cannot read the serving certificate"),
        ({"HOTNIC_TLS_SECRET": "a", "HOTNIC_VM_OWNER": "kubevirt"}, "the cluster has no KubeVirt object"),
        ({"HOTNIC_TLS_SECRET": "a", "HOTNIC_BUS_AUTH_KEYS": "/keys"}, "names no ServiceAccount"),
        (
            {"HOTNIC_TLS_SECRET": "a", "HOTNIC_BUS_AUTH_KEYS": "/keys", "HOTNIC_BUS_AUTH_ACCOUNTS": "a=root"},
            "'a=root' is not SERVICEACCOUNT=ROLE",
        ),
        (
            {"HOTNIC_TLS_SECRET": "a", "HOTNIC_BUS_AUTH_KEYS": "/keys", "NATS_URL": ""},
            "because HOTNIC_BUS_AUTH_KEYS is",
        ),
    ],
)
async def test_unclear_settings_are_refused(api: ApiProcess, settings: dict[str, str], message: str) -> None:
    process = await api.start(**settings)
    _, stderr = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode == 2, stderr
    assert message in stderr.decode()


async def test_an_api_waits_for_an_api_server_that_is_not_up(api: ApiProcess) -> None:
    failures = iter([Refused(503, "ServiceUnavailable", "starting"), Refused(404, "NotFound", "no such ConfigMap")])

    def start_slowly(_method: str, plural: str, _name: str) -> None:
        if plural == "configmaps" and (failure := next(failures, None)) is not None:
            raise failure

    api.kube.before = start_slowly
    async with api.running(HOTNIC_TLS_SECRET="hotnic-api-tls"):
        await api.until_ready(200, "[+]started ok")


@pytest.mark.parametrize(
    ("data", "settings", "code", "message"),
    [
        ({}, {}, 1, "has no requestheader-client-ca-file; enable the aggregation layer"),
        ({"requestheader-client-ca-file": "no PEM"}, {}, 1, "cannot authenticate the aggregation layer"),
        (None, {"HOTNIC_LISTEN": "127.0.0.1:{taken}"}, 2, "HOTNIC_LISTEN"),
        (None, {"HOTNIC_LISTEN": "8443"}, 2, "HOTNIC_LISTEN"),
        (None, {"KUBECONFIG": "/no/kubeconfig"}, 2, "/no/kubeconfig"),
    ],
)
async def test_an_api_that_cannot_start_says_why_in_one_line(
    api: ApiProcess, data: dict[str, str] | None, settings: dict[str, str], code: int, message: str
) -> None:
    if data is not None:
        api.kube.put(*FRONT_PROXY, data=data)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = await api.start(
            HOTNIC_TLS_SECRET="hotnic-api-tls",
            **{name: value.replace("{taken}", port) for name, value in settings.items()},
        )
        _, stderr = await asyncio.wait_for(process.communicate(), 50)
    errors = [line for line in stderr.decode().splitlines() if '"level":"error"' in line]
    assert process.returncode == code, stderr
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in errors[0]
