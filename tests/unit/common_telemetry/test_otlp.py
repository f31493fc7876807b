"""The export of spans by OTLP: which collector, by which protocol, and that the spans arrive there."""

import subprocess
import sys

import pytest

from services.common.telemetry import configure
from services.common.telemetry.otlp import UnsupportedProtocol, target_of
from tests.support.telemetry.otlp_receiver import grpc_receiver, http_receiver

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
BASE, EXACT = "http://collector:4318", "http://traces:9/mine"
HTTP, GRPC = "http/protobuf", "grpc"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({ENDPOINT: ""}, None),
        ({PROTOCOL: GRPC}, None),
        ({ENDPOINT: BASE}, (HTTP, f"{BASE}/v1/traces")),
        ({ENDPOINT: f"{BASE}/prefix/"}, (HTTP, f"{BASE}/prefix/v1/traces")),
        ({ENDPOINT: BASE, PROTOCOL: HTTP}, (HTTP, f"{BASE}/v1/traces")),
        ({ENDPOINT: BASE, PROTOCOL: ""}, (HTTP, f"{BASE}/v1/traces")),
        ({TRACES_ENDPOINT: EXACT}, (HTTP, EXACT)),
        ({ENDPOINT: BASE, TRACES_ENDPOINT: EXACT}, (HTTP, EXACT)),
        ({ENDPOINT: BASE, PROTOCOL: GRPC}, (GRPC, BASE)),
        ({ENDPOINT: BASE, PROTOCOL: f" {GRPC} "}, (GRPC, BASE)),
        ({ENDPOINT: BASE, TRACES_ENDPOINT: EXACT, PROTOCOL: GRPC}, (GRPC, EXACT)),
        ({ENDPOINT: BASE, TRACES_PROTOCOL: GRPC}, (GRPC, BASE)),
        ({ENDPOINT: BASE, PROTOCOL: GRPC, TRACES_PROTOCOL: HTTP}, (HTTP, f"{BASE}/v1/traces")),
        ({ENDPOINT: BASE, PROTOCOL: "http/json", TRACES_PROTOCOL: GRPC}, (GRPC, BASE)),
    ],
)
def test_the_environment_names_collector_and_protocol(
    environ: dict[str, str], expected: tuple[str, str] | None
) -> None:
    found = target_of(environ)
    assert (found and (found.protocol, found.endpoint)) == expected


@pytest.mark.parametrize("variable", [PROTOCOL, TRACES_PROTOCOL])
@pytest.mark.parametrize("value", ["http/json", "GRPC", "http"])
def test_an_unsupported_protocol_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(UnsupportedProtocol, match=f"{variable}: '{value}' is not supported; set grpc or http/protobuf"):
        target_of({ENDPOINT: BASE, variable: value})


def test_a_command_with_an_unsupported_protocol_is_a_usage_error() -> None:
    arguments = ["addinterface", "vm", "--name", "a", "--network-attachment-definition-name", "b"]
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        env={ENDPOINT: BASE, PROTOCOL: "zipkin", "KUBECONFIG": "/no/kubeconfig"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'zipkin' is not supported; set grpc or http/protobuf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_role_with_an_unsupported_protocol_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.multus", "--print-config"],
        env={ENDPOINT: BASE, PROTOCOL: "zipkin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"hotnic run multus: {PROTOCOL}: 'zipkin' is not supported" in done.stderr


def test_spans_are_sent_over_http() -> None:
    with http_receiver() as (url, received):
        telemetry = configure("api", environ={ENDPOINT: url})
        telemetry.tracer.start_span("exported").end()
        telemetry.shutdown()
    assert received.paths == ["/v1/traces"]
    assert list(received.spans().values()) == ["exported"]
    assert received.services() == {"hotnic-api"}


def test_spans_are_sent_over_grpc() -> None:
    with grpc_receiver() as (port, received):
        telemetry = configure("api", environ={ENDPOINT: f"http://127.0.0.1:{port}", PROTOCOL: GRPC})
        telemetry.tracer.start_span("exported").end()
        telemetry.shutdown()
    assert received.paths == ["TraceService/Export"]
    assert list(received.spans().values()) == ["exported"]
    assert received.services() == {"hotnic-api"}


@pytest.mark.parametrize(
    ("environ", "imported"),
    [
        ({}, []),
        ({ENDPOINT: BASE}, ["opentelemetry.exporter.otlp.proto.http.trace_exporter"]),
        ({ENDPOINT: BASE, PROTOCOL: GRPC}, ["grpc", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"]),
    ],
)
def test_only_the_exporter_in_use_is_imported(environ: dict[str, str], imported: list[str]) -> None:
    exporters = "opentelemetry.exporter.otlp.proto"
    code = (
        "import sys; from services.common.telemetry.otlp import *\n"
        f"target = target_of({environ!r})\n"
        "exporter = target and span_exporter(target)\n"
        f"named = ('grpc', '{exporters}.http.trace_exporter', '{exporters}.grpc.trace_exporter')\n"
        "print(sorted(set(named) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(imported)
