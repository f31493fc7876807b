"""Requests that addinterface refuses, through the API server's aggregation layer: a Status, and no change."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import yaml

from lab.layout import API_PORT
from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.kubernetes.operations import read_operation
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, Lab

BASE = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances"


@pytest.fixture
async def http(lab: Lab) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session as the cluster's administrator, in which the test sets all headers and bodies."""
    config = yaml.safe_load(lab.layout.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    pki = lab.layout.dir / "test-pki"
    pki.mkdir(exist_ok=True)
    files = {}
    for key, data in {"ca": cluster, "cert": user, "key": user}.items():
        field = {"ca": "certificate-authority", "cert": "client-certificate", "key": "client-key"}[key]
        files[key] = data.get(field) or _write(pki / key, data[f"{field}-data"])
    context = ssl.create_default_context(cafile=files["ca"])
    context.load_cert_chain(files["cert"], files["key"])
    async with aiohttp.ClientSession(cluster["server"], connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


def _write(path: Any, data: str) -> str:
    import base64

    path.write_bytes(base64.b64decode(data))
    return str(path)


async def send(
    http: aiohttp.ClientSession, method: str, path: str, body: bytes, content_type: str | None
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": content_type} if content_type else {}
    skip = [] if content_type else ["Content-Type"]
    async with (
        asyncio.timeout(45),
        http.request(method, path, data=body, headers=headers, skip_auto_headers=skip) as answer,
    ):
        return answer.status, await answer.json(content_type=None) if answer.status >= 400 else {}


def body(name: str = "refused", nad: str = SAMPLE_NAD) -> bytes:
    return f'{{"networkAttachmentDefinitionName":"{nad}","name":"{name}"}}'.encode()


MACVLAN = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: macvlan-net, namespace: default}
spec: {config: '{"cniVersion":"1.0.0","type":"macvlan","master":"eth0"}'}
"""

CASES = [
    ("unknown VMI", "PUT", f"{BASE}/nobody/addinterface", body(), 404, "NotFound"),
    ("unknown NAD", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(nad="nowhere"), 404, "NotFound"),
    ("unknown namespace of the NAD", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(nad="no/where"), 404, "NotFound"),
    ("name missing", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(name=""), 400, "BadRequest"),
    ("name malformed", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(name="a b"), 400, "BadRequest"),
    ("NAD missing", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(nad=""), 400, "BadRequest"),
    ("name taken", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(name="default"), 409, "AlreadyExists"),
    ("unfit network", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", body(nad="macvlan-net"), 422, "Invalid"),
    ("bad JSON", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", b'{"name": ', 400, "BadRequest"),
    ("bad YAML", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", b"name: [\n", 400, "BadRequest"),
    ("no body", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", b"", 400, "BadRequest"),
    ("too large", "PUT", f"{BASE}/{SAMPLE_VM}/addinterface", b"#" * (64 * 1024 + 1), 413, "RequestEntityTooLarge"),
    ("wrong method", "DELETE", f"{BASE}/{SAMPLE_VM}/addinterface", b"", 405, "MethodNotAllowed"),
    ("wrong path", "PUT", f"{BASE}/{SAMPLE_VM}/addnothing", body(), 404, "NotFound"),
]


@pytest.mark.parametrize("content_type", [None, "application/json", "application/yaml"])
@pytest.mark.parametrize(
    ("method", "path", "payload", "code", "reason"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
async def test_invalid_request_gets_a_status_and_changes_nothing(
    lab: Lab,
    http: aiohttp.ClientSession,
    method: str,
    path: str,
    payload: bytes,
    code: int,
    reason: str,
    content_type: str | None,
) -> None:
    if "macvlan" in payload.decode(errors="replace"):
        lab.kubectl("apply", "-f", "-", stdin=MACVLAN)
    before = shape(lab.vmi(SAMPLE_VM))
    status, answer = await send(http, method, path, payload, content_type)
    assert status == code, answer
    assert (answer["kind"], answer["apiVersion"], answer["status"]) == ("Status", "v1", "Failure")
    assert (answer["code"], answer["reason"]) == (code, reason)
    assert answer["message"]
    assert shape(lab.vmi(SAMPLE_VM)) == before


async def test_request_for_a_vmi_that_does_not_run_is_refused(lab: Lab, http: aiohttp.ClientSession) -> None:
    stopped = """
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: never-runs, namespace: default}
spec: {nodeSelector: {nowhere: "true"}, domain: {devices: {}}}
"""
    lab.kubectl("apply", "-f", "-", stdin=stopped)
    try:
        status, answer = await send(http, "PUT", f"{BASE}/never-runs/addinterface", body(), None)
        assert (status, answer["reason"]) == (409, "Conflict")
        assert "not running" in answer["message"]
    finally:
        lab.kubectl("delete", "vmi", "never-runs", "--wait=false")


async def test_kubevirts_paths_are_served(lab: Lab, http: aiohttp.ClientSession) -> None:
    for version in ("v1", "v1alpha3"):
        path = f"/apis/subresources.kubevirt.io/{version}/namespaces/default/virtualmachineinstances"
        status, answer = await send(http, "PUT", f"{path}/nobody/addinterface", body(), None)
        assert status == 404
        assert answer["message"] == 'virtualmachineinstance.kubevirt.io "nobody" not found'


def test_yaml_body_is_accepted(lab: Lab, vm: str, interface: str) -> None:
    text = f"networkAttachmentDefinitionName: {SAMPLE_NAD}\nname: {interface}\n"
    code, output = lab.raw(f"{BASE}/{vm}/addinterface", text)
    assert code == 0, output
    operation = read_operation(lab.vmi(vm).metadata.annotations, interface)
    assert operation is not None
    assert operation.traceparent is not None
    lab.wait_for_spans(operation.traceparent.split("-")[1], {"send hotplug.guest-attached"})


def test_api_rejects_clients_other_than_the_aggregation_layer(lab: Lab) -> None:
    url = f"https://127.0.0.1:{API_PORT}{BASE}/{SAMPLE_VM}/addinterface"
    done = lab.hotnic("lab", "exec", "--", sys.executable, "-c", ANONYMOUS, url, body().decode())
    assert '"code":401' in done.stdout.replace(" ", ""), done.stdout + done.stderr


ANONYMOUS = """
import ssl, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], data=sys.argv[2].encode(), method="PUT")
try:
    urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=10)
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


def shape(vmi: VirtualMachineInstance) -> tuple[Any, ...]:
    """Return the parts of a VMI that a refused request must not change."""
    operations = {key: value for key, value in vmi.metadata.annotations.items() if "operation" in key}
    return vmi.spec.networks, vmi.spec.domain.devices.interfaces, operations
