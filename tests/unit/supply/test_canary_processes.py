"""Roles and the command line as processes, with a secret in every variable and file that they read."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from lab.layout import ROLES
from schemas.kubernetes.objects import PODS
from services.common.bus.nats.stored.reader import open_reader
from services.common.bus.protocol import BusUnavailable
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from services.common.telemetry.redact import redact_text
from tests.support.telemetry.spans import recording_telemetry

ROOT = Path(__file__).parents[3]
CANARY = "hotnicCanary"
PROXY = f"http://user:{CANARY}@127.0.0.1:2"

VARIABLES = {
    "HOTNIC_LOG_LEVEL": "debug",
    "HOTNIC_NODE_NAME": "n1",
    "HOTNIC_VM_OWNER": "hotnic",
    "HOTNIC_LISTEN": "127.0.0.1:0",
    "NATS_URL": f"nats://user:{CANARY}@127.0.0.1:1,tls://{CANARY}@127.0.0.1:1",
    "HTTP_PROXY": PROXY,
    "HTTPS_PROXY": PROXY,
    "ALL_PROXY": PROXY,
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Basic%20{CANARY}",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "SOME_TOKEN": CANARY,
}

KUBECONFIG = """apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {{server: "{server}"{cluster}}}}}]
users: [{{name: u, user: {user}}}]
"""
TOKEN = f'{{token: "{CANARY}"}}'
KUBECONFIGS = {
    "token": KUBECONFIG.format(server="https://127.0.0.1:1", cluster="", user=TOKEN),
    "user in the address": KUBECONFIG.format(server=f"https://u:{CANARY}@127.0.0.1:1", cluster="", user=TOKEN),
    "proxy": KUBECONFIG.format(server="https://api.test", cluster=f', proxy-url: "{PROXY}"', user=TOKEN),
    "token with a line break": KUBECONFIG.format(
        server="https://127.0.0.1:1", cluster="", user=f'{{token: "{CANARY}\\nx"}}'
    ),
    "certificate that is none": KUBECONFIG.format(
        server="https://127.0.0.1:1",
        cluster="",
        user=f'{{client-certificate-data: "{CANARY}", client-key-data: "{CANARY}"}}',
    ),
    "user that is none": KUBECONFIG.format(server="https://127.0.0.1:1", cluster="", user=CANARY),
    "password": KUBECONFIG.format(
        server="https://127.0.0.1:1", cluster="", user=f'{{username: a, password: "{CANARY}"}}'
    ),
    "exec plugin": KUBECONFIG.format(
        server="https://127.0.0.1:1",
        cluster="",
        user="{exec: {apiVersion: client.authentication.k8s.io/v1, command: printf, interactiveMode: Never, "
        f'args: ["no json {CANARY}"], env: [{{name: A, value: {CANARY}}}]}}}}',
    ),
    "no YAML": f'users:\n- name: u\n  user:\n    token: "{CANARY}\n',
    "wrong indent": f"users:\n- name: u\n  user:\n    token: {CANARY}\n   x: y\n",
    "no mapping": f"{CANARY}\n",
}


async def run(tmp_path: Path, *arguments: str, until: str | None = None, **variables: str) -> tuple[int | None, str]:
    """Run a module until it ends, or logs something; return exit code and everything that it has written."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "HOTNIC_TRACE_DIR": str(tmp_path / "traces"),
        **VARIABLES,
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environ, cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    written = b""
    async with asyncio.timeout(50):
        while line := await process.stdout.readline():
            written += line
            if until is not None and re.search(until, line.decode()):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        await process.wait()
    traces = "".join(path.read_text() for path in (tmp_path / "traces").glob("*"))
    return process.returncode, written.decode() + traces


@pytest.mark.parametrize("role", ROLES)
async def test_print_config_shows_no_secret(tmp_path: Path, role: str) -> None:
    code, written = await run(tmp_path, f"services.{role}", "--print-config")
    assert code == 0, written
    assert CANARY not in written
    if role != "multus":
        assert "nats://***@127.0.0.1:1,tls://***@127.0.0.1:1" in written


@pytest.mark.parametrize("kubeconfig", ["token", "user in the address"])
async def test_a_role_that_reaches_nothing_reveals_no_secret(tmp_path: Path, kubeconfig: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIGS[kubeconfig])
    _, written = await run(
        tmp_path, "services.controller", until="NATS connection failed", KUBECONFIG=str(path), HOTNIC_HEALTH_LISTEN=""
    )
    assert "NATS connection failed" in written
    assert CANARY not in written


async def test_a_command_that_reaches_nothing_reveals_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIGS["proxy"])
    code, written = await run(tmp_path, "services.cli", "status", "vm1", KUBECONFIG=str(path))
    assert code == 5, written
    assert CANARY not in written


@pytest.mark.parametrize("kubeconfig", KUBECONFIGS)
async def test_no_error_about_a_kubeconfig_has_its_secrets(
    tmp_path: Path, kubeconfig: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIGS[kubeconfig])
    caplog.set_level("DEBUG")
    telemetry, spans = recording_telemetry()
    try:
        async with await Kube.connect(kubeconfig=str(path), telemetry=telemetry, user_agent="test") as client:
            await client.get(PODS, "default", "p")
    except (KubeError, ValueError) as error:
        # The logs, spans and errors of a process pass through the same function.
        shown = redact_text("".join(traceback.format_exception(error)))
    assert CANARY not in shown
    assert CANARY not in redact_text(caplog.text)
    assert CANARY not in "".join(span.to_json() for span in spans.get_finished_spans())


@asynccontextmanager
async def nats_with_nonce() -> AsyncIterator[str]:
    """Serve what a NATS server says first, so that the client reads its credentials, and yield its address."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.12.0", "max_payload": 1024, "auth_required": True, "nonce": "abc"}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "content",
    [
        f"-----BEGIN NATS USER JWT-----\n{CANARY}\n------END NATS USER JWT------\n",
        f"-----BEGIN USER NKEY SEED-----\n{CANARY}\n------END USER NKEY SEED------\n",
        f"-----BEGIN NATS USER JWT-----\n{CANARY}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\nSU{CANARY}\n------END USER NKEY SEED------\n",
        f"{CANARY}\n",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n",
    ],
    ids=["JWT alone", "seed alone", "wrong seed", "no PEM", "wrong key"],
)
@pytest.mark.parametrize("variable", ["NATS_CREDS", "NATS_KEY", "NATS_CA"])
async def test_credentials_of_nats_that_cannot_be_used_are_an_error_without_a_secret(
    tmp_path: Path, content: str, variable: str
) -> None:
    path = tmp_path / "credentials"
    path.write_text(content)
    logged = LogCapture()
    log = structlog.wrap_logger(None, processors=[logged])
    files = {variable: str(path)} | ({"NATS_CERT": str(path)} if variable == "NATS_KEY" else {})
    async with nats_with_nonce() as url:
        with pytest.raises(BusUnavailable) as caught:
            async with open_reader(url, files, log=log):
                pass
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in repr(logged.entries)
