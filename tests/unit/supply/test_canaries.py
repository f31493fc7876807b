"""Secrets are planted in the configuration of networks and in texts of libraries, and nothing that is written has them.

The settings and logs are the subject of ``tests/unit/common_telemetry/test_redact.py``, whole processes that of
``test_canary_processes.py``, a lab that of ``tests/e2e/test_canaries.py``.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture

from schemas.bus.events import Failed, ObjectRef
from schemas.inputs import Edge
from schemas.kubernetes.objects import Pod
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.cri.sandbox import Sandbox
from services.common.http.client import UnixHttpClient
from services.common.http.server import serve
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.node.files import replace_file
from services.common.runtime.recording_bus import RecordingBus
from services.common.telemetry.redact import redact_configuration
from services.common.telemetry.tracer import fail_span
from services.multus.cni import network
from services.multus.cni.call import PodId
from services.multus.cni.conflist import AttachmentAttributes, decode_object, parse
from services.multus.cni.errors import CniError
from services.multus.cni.executor import Executor
from services.multus.cni.network import AttachmentTarget
from services.multus.records.store import Records
from services.networks.multus_client import AttachmentFailure, MultusClient
from tests.support.bus.memory import MemoryBus
from tests.support.kube.node_kube import EVENTS, FakeKube, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

ROOT = Path(__file__).parents[3]
CANARY = "cAnArY"
CONFIG: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "n",
    "type": "leaky",
    "mtu": 1400,
    "ipam": {
        "type": "etcd",
        "endpoints": [f"https://root:{CANARY}1@etcd:2379", "https://etcd:2380"],
        "password": f'{CANARY}2"<é\\',
        "auth": {"user": f"{CANARY}3", "tokens": [f"{CANARY}4"]},
        "kubernetes": {"clientKeyData": f"{CANARY}5"},
    },
    "dbPass": f"{CANARY}6",
    "apiKey": f"{CANARY}7",
}
ARGS = {"wifi_psk": f"{CANARY}8"}
PLACE = AttachmentTarget("abc", "/run/netns/x", "net1", PodId("default", "pod", "uid"))


class Daemon:
    """The execution of plugins, with everything that it logs and traces."""

    def __init__(self, folder: Path) -> None:
        self.telemetry, self.spans = recording_telemetry()
        self.logged = LogCapture()
        log = structlog.wrap_logger(None, processors=[self.logged])
        self.executor = Executor([str(folder)], tracer=self.telemetry.tracer, log=log, environ={})

    def written(self) -> str:
        return repr(self.logged.entries) + "".join(span.to_json() for span in self.spans.get_finished_spans())


@pytest.mark.parametrize(
    "script",
    [
        "import sys, json; c = sys.stdin.read(); print(json.dumps({'code': 101, 'msg': c, 'details': c})); sys.exit(1)",
        "import sys, json; c = json.load(sys.stdin); print(json.dumps({'code': 101, 'msg': repr(c)})); sys.exit(1)",
        "import sys; c = sys.stdin.read(); print(c, file=sys.stderr); sys.exit(1)",
        "import sys; c = sys.stdin.read(); print('x' * 3900 + c, file=sys.stderr); sys.exit(1)",
        "import sys; c = sys.stdin.read(); print('panic', c); sys.exit(2)",
        "import sys; c = sys.stdin.read(); print('not a result', c)",
        "import sys, json; c = sys.stdin.read(); print(json.dumps({'code': 7, 'msg': c}))",
    ],
)
async def test_a_plugin_that_quotes_its_configuration_reveals_no_secret(tmp_path: Path, script: str) -> None:
    plugin = tmp_path / "leaky"
    plugin.write_text(f"#!/usr/bin/python3\n{script}\n")
    plugin.chmod(0o755)
    daemon = Daemon(tmp_path)
    with pytest.raises(CniError) as caught:
        await network.add(daemon.executor, parse(json.dumps(CONFIG)), PLACE, AttachmentAttributes({}, ARGS))
    said = f"{caught.value.msg} {caught.value.details}"
    assert CANARY not in said
    assert CANARY not in daemon.written()
    assert "***" in said + daemon.written()


@pytest.mark.parametrize(
    "text",
    [
        f'{{"type": "leaky", "password": "{CANARY}',
        f'{{"type": "leaky", "password": "{CANARY}"}} x',
        f'{{"type": {{"password": "{CANARY}"}}}}',
        f'{{"plugins": ["{CANARY}"]}}',
        f'{{"type": "leaky", "ipam": "{CANARY}"}}',
        f'{{"type": "leaky", "password": "{CANARY}", "cniVersion": "9.9.9"}}',
        f'"{CANARY}"',
        f"{CANARY}: not JSON",
    ],
)
def test_what_is_wrong_with_a_configuration_is_said_without_quoting_it(text: str) -> None:
    said = []
    for decode in (parse, lambda given: decode_object(given.encode(), Edge.NETWORK)):
        try:
            decode(text)
        except CniError as error:
            said.append(f"{error.msg} {error.details} {error.__cause__}")
    assert CANARY not in repr(said)


async def test_what_another_daemon_says_of_a_network_reveals_no_secret(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        # Upstream's daemon answers with the plugin's text.
        call = await request.json()
        return web.Response(status=400, text=f"error adding: config {json.dumps(call)} {CONFIG}")

    app = web.Application()
    app.router.add_post("/delegate", answer)
    telemetry, spans = recording_telemetry()
    path = str(tmp_path / "multus.sock")
    async with serve(app, f"unix:{path}"):
        http = UnixHttpClient(path, telemetry=telemetry)
        with pytest.raises(AttachmentFailure) as caught:
            await call_multus(MultusClient(http, path), json.dumps(CONFIG).encode())
        await http.close()
    assert "error adding" in caught.value.message
    assert CANARY not in caught.value.message
    assert CANARY not in "".join(span.to_json() for span in spans.get_finished_spans())


async def call_multus(client: MultusClient, config: bytes) -> None:
    pod = msgspec.convert({"metadata": {"name": "p", "namespace": "default", "uid": "u"}}, Pod)
    await client.delete(pod, Sandbox("abc", "/run/netns/x", 1), "net1", config)


async def test_failures_on_the_bus_and_in_events_have_no_address_with_a_password(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    message = f"cannot reach https://user:{CANARY}@etcd:2379/v3?token={CANARY}"
    vmi = ObjectRef("default", "vm1", "uid-vm1")
    async with serving_kube(FakeKube()) as kube:
        config = write_kubeconfig(tmp_path / "kubeconfig", kube.url)
        async with await Kube.connect(kubeconfig=config, telemetry=telemetry, user_agent="test") as client:
            memory = MemoryBus(telemetry=telemetry, log=structlog.get_logger())
            recorder = EventRecorder(client, "handler", log=structlog.get_logger(), node="node1")
            bus = RecordingBus(memory, recorder, success_delay=0.01)
            plug = Operation("op", OperationKind.PLUG, "blue")
            await bus.publish(Failed(plug, vmi, at=Stage.MULTUS_ATTACHED, reason="CniFailed", message=message))
            await bus.close()
            await recorder.record(
                about={"kind": "Pod", "name": "p", "namespace": "default"},
                type="Warning", reason="AddFailed", message=message, key=("1",),
            )  # fmt: skip
            events = kube.of(EVENTS)
    assert len(events) == 2
    for text in (repr(events), repr(memory.published)):
        assert "cannot reach https://***@etcd:2379/v3?***" in text
        assert CANARY not in text


def test_the_status_of_a_span_has_no_address_with_a_password() -> None:
    telemetry, spans = recording_telemetry()
    with telemetry.tracer.start_as_current_span("work") as span:
        fail_span(span, f"cannot reach nats://user:{CANARY}@nats:4222")
    (found,) = spans.get_finished_spans()
    assert found.status.description == "cannot reach nats://***@nats:4222"


def test_every_text_of_a_failed_span_is_redacted() -> None:
    """No module but the tracer sets a status with a text itself."""
    direct = re.compile(r"set_status\((?:Status\()?StatusCode\.ERROR,")
    found = [path.name for path in (ROOT / "services").rglob("*.py") if direct.search(path.read_text())]
    assert found == ["tracer.py"]


values = st.text(st.characters(exclude_categories=("Cs",)), min_size=4, max_size=12)


@given(
    values,
    st.sampled_from(
        [
            "password",
            "etcdPassword",
            "client_secret",
            "AUTH_TOKEN",
            "private-key",
            "apikey",
            "sharedKey",
            "dbPwd",
            "Cookie",
        ]
    ),
)
def test_the_value_of_a_secret_key_is_replaced_however_it_is_quoted(value: str, key: str) -> None:
    secret = f"{CANARY}{value}"
    configuration = json.dumps({"type": "t", "nested": [{key: secret}]}).encode()
    for quoted in (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), configuration.decode()):
        assert CANARY not in redact_configuration(f"error: {quoted} end", configuration)


@pytest.mark.parametrize(
    "configuration",
    [
        json.dumps({"tokens": [f"{CANARY}{number}" for number in range(100_000)]}).encode(),
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=["many secrets", "deep", "too deep", "much too deep"],
)
def test_a_hostile_configuration_costs_no_time_and_reveals_nothing(configuration: bytes) -> None:
    shown = redact_configuration(f"{CANARY}1 " * 1000, configuration)
    assert CANARY not in shown or b"tokens" not in configuration


@pytest.mark.parametrize("configuration", [b"", b"{", b"null", b'{"type": "bridge", "bridge": "br0"}'])
def test_a_text_without_secrets_stays(configuration: bytes) -> None:
    assert (
        redact_configuration("bridge br0: no such device (bridge)", configuration)
        == "bridge br0: no such device (bridge)"
    )


def test_short_values_and_other_keys_stay() -> None:
    configuration = json.dumps({"type": "passthru", "auth": True, "token": "no", "keyDir": "/etc/keys"}).encode()
    assert redact_configuration("no passthru in /etc/keys", configuration) == "no passthru in /etc/keys"


def test_a_record_of_a_sandbox_can_be_read_by_root_only(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    Records(tmp_path, tracer=telemetry.tracer, log=structlog.get_logger())
    replace_file(tmp_path / "sandboxes" / "one.json", b"{}")
    assert (tmp_path / "sandboxes").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "sandboxes" / "one.json").stat().st_mode & 0o777 == 0o600
