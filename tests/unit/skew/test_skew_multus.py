"""Both sides of the multus daemon's socket, and its records, against those of an earlier version."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import web
from opentelemetry.trace import NoOpTracer

from schemas import cni, multus
from schemas.kubernetes.networks import NetworkSelectionElement
from schemas.kubernetes.objects import Pod
from services.common.cri.sandbox import Sandbox
from services.common.http.client import UnixHttpClient
from services.common.node.files import install_executable
from services.multus.cni.call import decode
from services.multus.container_runtime import shim
from services.multus.records.sandbox import AttachmentState, SandboxState
from services.multus.records.store import SETTLED, Records
from services.networks.multus_client import FAILED, AttachmentFailure, MultusClient
from tests.support.skew.recording import Json, Recording, round_trip
from tests.support.telemetry.spans import recording_telemetry


def exchanges(recording: Recording, path: str) -> list[Json]:
    return [one for one in recording.multus_exchanges if one["path"].startswith(path)]


def environment(exchange: Json) -> dict[str, str]:
    env: dict[str, str] = json.loads(exchange["request"])["env"]
    return env


def is_add(exchange: Json) -> bool:
    return environment(exchange)["CNI_COMMAND"] == "ADD"


@asynccontextmanager
async def earlier_daemon(exchange: Json, socket: Path) -> AsyncIterator[list[Any]]:
    """Serve the recorded response on a socket; yield the bodies of the requests that arrive."""
    bodies: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        assert (request.method, request.raw_path) == (exchange["method"], exchange["path"])
        body = await request.text()
        bodies.append(json.loads(body) if body else None)
        headers = {"Content-Type": exchange["contentType"]}
        return web.Response(status=exchange["status"], text=exchange["response"], headers=headers)

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield bodies
    finally:
        await runner.cleanup()


@asynccontextmanager
async def todays_client(socket: Path) -> AsyncIterator[MultusClient]:
    http = UnixHttpClient(str(socket), recording_telemetry()[0])
    try:
        yield MultusClient(http, str(socket))
    finally:
        await http.close()


async def delegate(client: MultusClient, exchange: Json) -> cni.CniResult | None:
    """Send the call of a recorded request as today's networks role does."""
    body, env = json.loads(exchange["request"]), environment(exchange)
    names = dict(pair.split("=") for pair in env["CNI_ARGS"].split(";"))
    meta = {"namespace": names["K8S_POD_NAMESPACE"], "name": names["K8S_POD_NAME"], "uid": names["K8S_POD_UID"]}
    pod, sandbox = msgspec.convert({"metadata": meta}, Pod), Sandbox(env["CNI_CONTAINERID"], env["CNI_NETNS"], 0)
    config = base64.b64decode(body["config"])
    if is_add(exchange):
        element = msgspec.convert({"name": "n", **body.get("interfaceAttributes", {})}, NetworkSelectionElement)
        return await client.add(pod, sandbox, env["CNI_IFNAME"], config, element)
    await client.delete(pod, sandbox, env["CNI_IFNAME"], config)
    return None


def test_the_daemon_accepts_every_request(recording: Recording) -> None:
    for exchange in (*exchanges(recording, multus.CNI_PATH), *exchanges(recording, multus.DELEGATE_PATH)):
        assert round_trip(exchange["request"], multus.CniRequest) == json.loads(exchange["request"])
        call, env = decode(exchange["request"].encode()), environment(exchange)
        assert (call.command, call.sandbox_id) == (env["CNI_COMMAND"], env["CNI_CONTAINERID"])
        assert (call.netns, call.ifname) == (env["CNI_NETNS"], env["CNI_IFNAME"])
        assert call.pod is not None
        assert f"K8S_POD_UID={call.pod.uid}" in env["CNI_ARGS"]
        assert call.config_object["name"]
        attributes = json.loads(exchange["request"]).get("interfaceAttributes", {})
        assert call.attributes.runtime == {key: value for key, value in attributes.items() if key != "cni-args"}


def test_a_recording_has_every_kind_of_call(recording: Recording) -> None:
    kinds = {
        (one["path"], environment(one)["CNI_COMMAND"], one["status"])
        for one in recording.multus_exchanges
        if one["method"] == "POST"
    }
    assert kinds == {
        ("/cni", "ADD", 200),
        ("/cni", "DEL", 200),
        ("/delegate", "ADD", 200),
        ("/delegate", "ADD", 400),
        ("/delegate", "DEL", 200),
    }
    assert any("interfaceAttributes" in one["request"] for one in exchanges(recording, multus.DELEGATE_PATH))


async def test_networks_sends_the_same_calls_and_decodes_every_response(recording: Recording, tmp_path: Path) -> None:
    for exchange in exchanges(recording, multus.DELEGATE_PATH):
        socket = tmp_path / "multus.sock"
        async with earlier_daemon(exchange, socket) as bodies, todays_client(socket) as client:
            if exchange["status"] == 200:
                result = await delegate(client, exchange)
                assert (result is not None) == is_add(exchange)
                if result is not None:
                    assert result.interfaces[-1].name == environment(exchange)["CNI_IFNAME"]
                    assert result.ips[0].address
            else:
                with pytest.raises(AttachmentFailure, match="no-such-plugin") as failure:
                    await delegate(client, exchange)
                assert failure.value.reason == FAILED
        assert bodies == [json.loads(exchange["request"])]


async def test_networks_decodes_every_record_of_a_sandbox(recording: Recording, tmp_path: Path) -> None:
    found = exchanges(recording, multus.SANDBOXES_PATH)
    assert found
    for exchange in found:
        assert round_trip(exchange["response"], multus.SandboxRecord) == json.loads(exchange["response"])
        socket = tmp_path / "multus.sock"
        async with earlier_daemon(exchange, socket), todays_client(socket) as client:
            sandbox_id = exchange["path"].rpartition("/")[2]
            record = await client.record(Sandbox(sandbox_id, "", 0))
        assert record is not None
        assert record.sandbox_id == sandbox_id
        assert {one.owner for one in record.attachments} <= {"cluster", "networks", "delegate"}


async def test_the_shim_sends_the_same_calls_and_reads_every_response(recording: Recording, tmp_path: Path) -> None:
    plugin, socket = tmp_path / multus.SHIM_NAME, tmp_path / "multus.sock"
    install_executable(Path(shim.__file__), plugin)
    for exchange in exchanges(recording, multus.CNI_PATH):
        request = json.loads(exchange["request"])
        # The runtime's configuration, and in it the socket of this test.
        config = json.dumps(json.loads(base64.b64decode(request["config"])) | {"daemonSocketDir": str(tmp_path)})
        async with earlier_daemon(exchange, socket) as bodies:
            process = await asyncio.create_subprocess_exec(plugin, env=request["env"], stdin=-1, stdout=-1)
            out, _ = await asyncio.wait_for(process.communicate(config.encode()), 20)
        assert process.returncode == 0
        (body,) = bodies
        assert body["env"] == request["env"]
        assert body.keys() == request.keys()
        if is_add(exchange):
            expected = json.loads(exchange["response"])["Result"]
            assert [one["name"] for one in json.loads(out)["interfaces"]] == [
                one["name"] for one in expected["interfaces"]
            ]
        else:
            assert out == b""


def test_the_daemon_loads_every_record_that_is_on_disk(recording: Recording, tmp_path: Path) -> None:
    for number, snapshot in enumerate(recording.snapshots.values()):
        records = Records(tmp_path / str(number), tracer=NoOpTracer(), log=structlog.get_logger())
        for name, text in snapshot.records.items():
            assert round_trip(text, SandboxState) == json.loads(text)
            (tmp_path / str(number) / "sandboxes" / name).write_text(text)
        assert records.ids() == sorted(name.removesuffix(SETTLED) for name in snapshot.records)
        for sandbox_id in records.ids():
            check_record(records.read(sandbox_id), sandbox_id)


def test_the_daemon_loads_every_record_that_was_not_on_disk_yet(recording: Recording, tmp_path: Path) -> None:
    states = set()
    for number, (name, text) in enumerate(recording.unsettled_records):
        folder = tmp_path / str(number)
        unsettled = folder / "unsettled"
        records = Records(folder, tracer=NoOpTracer(), log=structlog.get_logger(), unsettled=unsettled)
        (unsettled / name).write_text(text)
        assert round_trip(text, SandboxState) == json.loads(text)
        record = records.read(name.partition(".")[0])
        check_record(record, name.partition(".")[0])
        states |= {one.state for one in record.attachments} if record is not None else set()
    # The record of a plugin that was running when the daemon ended.
    assert states == set(AttachmentState)


def check_record(record: SandboxState | None, sandbox_id: str) -> None:
    assert record is not None
    assert record.sandbox_id == sandbox_id
    assert record.attachments
    for one in record.attachments:
        # DEL needs the configuration and, for most plugins, the result of the ADD.
        assert one.network_config().name
        assert (one.result is not None and one.ifindex > 0) == (one.state is AttachmentState.ADDED)
