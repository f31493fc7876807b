"""The daemon's HTTP interface as upstream's clients use it: paths, methods, statuses and bodies. No plugin runs."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context, attach, detach

from services.common.http.client import UnixHttpClient
from services.common.http.server import serve
from services.common.telemetry import configure
from services.common.telemetry.propagation import context_of
from services.multus.server import metrics_app
from tests.support.node.multus_daemon import SANDBOX, Daemon, cni_environment, running_daemon
from tests.support.telemetry.spans import named, one_trace, recording_telemetry, tree


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    plugins = tmp_path / "bin"
    plugins.mkdir()
    async with running_daemon(tmp_path, plugins) as running:
        yield running


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", None), ("POST", b"null")])
async def test_probes_succeed_with_any_body(daemon: Daemon, path: str, method: str, body: bytes | None) -> None:
    """Upstream's shim posts the literal ``null``; its networks controller probes with ``curl``."""
    assert await daemon.http.request(method, path, body=body) == (200, b"")


async def test_a_stopping_daemon_is_healthy_and_not_ready(daemon: Daemon) -> None:
    daemon.stopping = True
    assert (await daemon.http.request("GET", "/readyz"))[0] == 500
    assert (await daemon.http.request("GET", "/healthz"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/cni", 405),
        ("PUT", "/delegate", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("POST", "/delegates", 404),
    ],
)
async def test_other_methods_and_paths_are_refused(daemon: Daemon, method: str, path: str, status: int) -> None:
    assert (await daemon.http.request(method, path))[0] == status


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b'{"sandboxId":"abc"'), f"the record of sandbox {SANDBOX} is damaged: "),
        (lambda path: path.symlink_to(path), f"the record of sandbox {SANDBOX} cannot be read: "),
    ],
    ids=["damaged", "I/O error"],
)
async def test_a_record_that_cannot_be_read_is_500_with_the_reason(
    daemon: Daemon, make: Callable[[Path], object], message: str
) -> None:
    path = f"/sandboxes/{SANDBOX}"
    # As upstream's daemon, which serves no records.
    assert (await daemon.http.request("GET", path))[0] == 404
    record = daemon.config.cni_dir / "sandboxes" / f"{SANDBOX}.json"
    make(record)
    for _ in range(2):
        status, body = await daemon.http.request("GET", path)
        error = json.loads(body)
        assert (status, error["code"]) == (500, 5)
        assert error["msg"].startswith(message)
    assert record.is_symlink() or record.exists(), "a request to read changes nothing"


async def test_a_damaged_record_that_the_sweep_has_renamed_is_404(daemon: Daemon) -> None:
    (daemon.config.cni_dir / "sandboxes" / f"{SANDBOX}.json").write_bytes(b"{")
    await daemon.sweep.run_once()
    assert (await daemon.http.request("GET", f"/sandboxes/{SANDBOX}"))[0] == 404


@pytest.mark.parametrize(
    ("sandbox", "message"),
    [
        (SANDBOX, f"the record of sandbox {SANDBOX} cannot be read: "),
        # The runtime does not know the sandbox, so that it uses nothing. The networks are looked for.
        ("other", "neither clusterNetwork nor delegates is configured"),
    ],
)
async def test_gc_frees_nothing_while_a_record_cannot_be_read(daemon: Daemon, sandbox: str, message: str) -> None:
    record = daemon.config.cni_dir / "sandboxes" / f"{SANDBOX}.json"
    record.symlink_to(record)
    document = {"cni.dev/valid-attachments": [{"containerID": sandbox, "ifname": "eth0"}]}
    config = base64.b64encode(json.dumps({"cniVersion": "1.1.0", "name": "m", "type": "m", **document}).encode())
    status, error = await daemon.post("/cni", request("GC", config=config.decode()))
    assert status == 400
    assert error["msg"].startswith(message)


@pytest.mark.parametrize("path", ["/cni", "/delegate"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"env":{"A":"\xff"}}', b'{"env":{},"config":"*"}'])
async def test_a_malformed_request_is_answered_with_400_and_text(daemon: Daemon, path: str, body: bytes) -> None:
    status, answer = await daemon.http.request("POST", path, body=body)
    assert status == 400
    assert answer.startswith(b"request body: ")
    assert answer.endswith(b"\n")


def request(command: str, **more: Any) -> dict[str, Any]:
    """Return a request of upstream's shim, which sends its whole environment, whatever it contains."""
    odd = {"PATH": "/bin", "EMPTY": "", "UNICODE": "\u20ac", "EQUALS": "a=b", "LINES": "a\nb"}
    config = base64.b64encode(json.dumps({"cniVersion": "1.1.0", "name": "m", "type": "m"}).encode()).decode()
    return {"env": {**odd, **cni_environment(command, "/nowhere"), **more.pop("env", {})}, "config": config, **more}


@pytest.mark.parametrize("attributes", [None, {"cni-args": None}, {"cni-args": None, "ips": None, "later": [1]}])
async def test_a_failed_call_is_answered_with_400_and_a_cni_error(daemon: Daemon, attributes: Any) -> None:
    daemon.pod()
    status, error = await daemon.post("/cni", request("ADD", interfaceAttributes=attributes))
    assert (status, error["code"]) == (400, 7)
    assert error["msg"] == "neither clusterNetwork nor delegates is configured"
    status, error = await daemon.post("/delegate", request("GC"))
    assert (status, error) == (400, {"code": 4, "msg": "unknown cmd type: GC"})


async def test_a_command_without_a_result_has_an_empty_body(daemon: Daemon) -> None:
    for path, command in (("/cni", "DEL"), ("/cni", "CHECK"), ("/delegate", "DEL")):
        assert await daemon.http.request("POST", path, json=request(command, config=None)) == (200, b""), command


async def test_requests_are_counted_as_upstream_does(tmp_path: Path) -> None:
    """All unknown paths are counted in one series."""
    telemetry = configure("multus", environ={})
    folder = tmp_path / "counted"
    folder.mkdir()
    async with running_daemon(folder, folder, telemetry=telemetry) as daemon:
        for method, path in (
            ("GET", "/healthz"),
            ("POST", "/cni"),
            ("GET", "/a"),
            ("GET", "/b"),
            ("GET", "/sandboxes/a"),
        ):
            await daemon.http.request(method, path)
        client, _ = recording_telemetry("client")
        async with serve(metrics_app(telemetry), f"unix:{folder}/metrics.sock", shutdown=1.0):
            http = UnixHttpClient(f"{folder}/metrics.sock", client)
            status, text = await http.request("GET", "/metrics")
            await http.close()
    telemetry.shutdown()
    assert status == 200
    counted = sorted(line for line in text.decode().splitlines() if line.startswith("multus_server_request_total"))
    assert [line.split("{", 1)[1].replace('"', "") for line in counted] == [
        "code=200,handler=/healthz,method=get} 1.0",
        "code=400,handler=/cni,method=post} 1.0",
        "code=404,handler=/sandboxes/{id},method=get} 1.0",
        "code=404,handler=NotFound,method=get} 2.0",
    ]


async def test_del_of_an_unknown_sandbox_succeeds(daemon: Daemon) -> None:
    """There is no pod, no record, no network namespace and no network configuration."""
    assert await daemon.cni("DEL", "", {"cniVersion": "1.0.0", "name": "m", "type": "m"}) == (200, None)
    assert await daemon.delegate("DEL", "/nowhere", "net1", {}) == (200, None)
    assert daemon.record(SANDBOX) is None


async def test_the_container_runtimes_sampling_is_linked_and_that_of_networks_is_obeyed(daemon: Daemon) -> None:
    unsampled = f"00-{'1' * 32}-{'a' * 16}-00"
    token = attach(context_of(unsampled) or Context())
    try:
        for path in ("/cni", "/delegate"):
            assert (await daemon.http.request("POST", path, json=request("DEL", config=None)))[0] == 200
        await daemon.http.request("GET", "/sandboxes/absent")
    finally:
        detach(token)
    spans = daemon.spans.get_finished_spans()
    root = named(spans, "POST /cni")
    assert [name for name, _ in tree(spans)] == ["POST /cni"]
    assert [f"{link.context.trace_id:x}" for link in root.links] == ["1" * 32]
    assert one_trace(spans)


async def test_calls_of_one_namespace_that_take_long_leave_slots_to_others(tmp_path: Path) -> None:
    def call(command: str, sandbox: str, namespace: str) -> dict[str, Any]:
        environ = cni_environment(command, "/run/netns/none", sandbox) | {
            "CNI_ARGS": f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=p"
        }
        return {"env": environ, "config": base64.b64encode(b'{"name":"a","type":"b"}').decode()}

    (tmp_path / "bin").mkdir()
    async with running_daemon(tmp_path, tmp_path / "bin", connectionLimit=2) as daemon:
        # Each waits until its pod is found to be missing.
        slow = [asyncio.create_task(daemon.post("/delegate", call("ADD", f"s{n}", "hostile"))) for n in range(5)]
        await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        await daemon.post("/delegate", call("DEL", "other", "default"))
        assert sum(task.done() for task in slow) == 1
        await asyncio.gather(*slow)
