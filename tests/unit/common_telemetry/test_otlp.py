"""The export of spans by OTLP: which collector, by which protocol, and that the spans arrive there."""

import gzip
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from services.common.telemetry import configure
from services.common.telemetry.otlp import (
    MAX_ANSWER,
    InvalidOtelVariable,
    OtlpProtocol,
    OtlpTarget,
    bounded_session,
    span_exporter,
    target_of,
)
from services.common.telemetry.setup import build
from tests.support.kube.certs import Authority
from tests.support.telemetry.otlp_receiver import grpc_receiver, http_receiver

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
BASE, EXACT = "http://collector:4318", "http://traces:9/mine"
HTTP: Final[OtlpProtocol] = "http/protobuf"
GRPC: Final[OtlpProtocol] = "grpc"


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
        ({ENDPOINT: "http://collector"}, (HTTP, "http://collector/v1/traces")),
        ({ENDPOINT: "http://collector/?tenant=a"}, (HTTP, "http://collector/v1/traces?tenant=a")),
        ({ENDPOINT: "HTTPS://collector"}, (HTTP, "https://collector/v1/traces")),
        ({ENDPOINT: "https://[::1]:4318"}, (HTTP, "https://[::1]:4318/v1/traces")),
        ({ENDPOINT: " http://collector_1:4318\n"}, (HTTP, "http://collector_1:4318/v1/traces")),
        # A variable that is not used is not checked.
        ({ENDPOINT: "collector:4318", TRACES_ENDPOINT: EXACT}, (HTTP, EXACT)),
        # Forms of the gRPC client itself, which the specification allows too.
        *(
            ({ENDPOINT: name, PROTOCOL: GRPC}, (GRPC, name))
            for name in (
                "https://collector:4317",
                "http://collector:4317/ignored",
                "collector:4317",
                "collector",
                "127.0.0.1:4317",
                "[::1]:4317",
                "dns:collector:4317",
                "dns:///collector:4317",
                "ipv4:127.0.0.1:4317",
                "unix:/run/otlp.sock",
                "unix:///run/otlp.sock",
            )
        ),
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
    with pytest.raises(InvalidOtelVariable, match=f"{variable}: '{value}' is not supported; set grpc or http/protobuf"):
        target_of({ENDPOINT: BASE, variable: value})


INVALID = [
    ("ftp://collector:4318", "has the scheme 'ftp'"),
    ("grpc://collector:4317", "has the scheme 'grpc'"),
    ("://collector", "has no scheme"),
    ("http://", "has no host"),
    ("http://:4318", "has no host"),
    ("http:///v1/traces", "has no host"),
    ("http://collector:0", "has an invalid port"),
    ("http://collector:65536", "has an invalid port"),
    ("http://collector:otlp", "has an invalid port"),
    ("http://::1:4318", "has no host"),
    ("http://[::1", "is no URL"),
    ("http://my collector:4318", "contains white space"),
    ("http://collector\t:4318", "contains white space"),
    ("http://me@collector", "contains a user"),
    ("http://me:s3cr3t@collector:4318", "contains a user"),
    ("http://me:s3/cr3t@collector:4318", "has an invalid port"),
]
INVALID_BY_PROTOCOL = [
    *((protocol, *case) for protocol in (HTTP, GRPC) for case in INVALID),
    (HTTP, "collector:4318", "has no scheme"),
    (HTTP, "collector", "has no scheme"),
    (HTTP, "//collector:4318", "has no scheme"),
    (HTTP, "http:collector:4318", "has no scheme"),
    (HTTP, "unix:/run/otlp.sock", "has no scheme"),
    (GRPC, "collector:99999", "has an invalid port"),
    (GRPC, "me:s3cr3t@collector:4317", "contains a user"),
    (GRPC, "/v1/traces", "has no host"),
    (GRPC, "collector/v1/traces", "has no host"),
    (GRPC, "dns:///", "has no host"),
    (GRPC, "dns://8.8.8.8/collector:4317", "has an authority"),
]


@pytest.mark.parametrize("variable", [ENDPOINT, TRACES_ENDPOINT])
@pytest.mark.parametrize(("protocol", "endpoint", "problem"), INVALID_BY_PROTOCOL)
def test_an_endpoint_to_which_nothing_can_be_sent_is_refused(
    variable: str, protocol: str, endpoint: str, problem: str
) -> None:
    with pytest.raises(InvalidOtelVariable) as error:
        target_of({variable: endpoint, PROTOCOL: protocol})
    message = str(error.value)
    assert message.startswith(f"{variable}: '")
    assert problem in message
    assert f"; set http://HOST:{4317 if protocol == GRPC else 4318}" in message
    assert "s3" not in message


def test_a_command_with_an_endpoint_without_a_scheme_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "removeinterface", "vm", "--name", "a"],
        env={ENDPOINT: "collector:4318", "KUBECONFIG": "/no/kubeconfig"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{ENDPOINT}: 'collector:4318' has no scheme; set http://HOST:4318" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_role_with_an_endpoint_without_a_scheme_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.multus", "--print-config"],
        env={TRACES_ENDPOINT: "collector:4318"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"hotnic run multus: {TRACES_ENDPOINT}: 'collector:4318' has no scheme; set http://HOST" in done.stderr


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
    assert telemetry.undelivered_spans == 0


def export_two(exporter: SpanExporter) -> list[SpanExportResult]:
    tracer = TracerProvider().get_tracer("test")
    results = []
    for name in ("one", "two"):
        span = tracer.start_span(name)
        span.end()
        assert isinstance(span, ReadableSpan)
        results.append(exporter.export([span]))
    exporter.shutdown()
    return results


@pytest.mark.parametrize(("size", "unread"), [(100, 0), (100 * 1024 * 1024, 2)])
def test_only_the_beginning_of_a_collectors_answer_is_read(size: int, unread: int) -> None:
    with http_receiver(bytes(size)) as (url, received):
        assert export_two(span_exporter(OtlpTarget(HTTP, url))) == [SpanExportResult.SUCCESS] * 2
    assert list(received.spans().values()) == ["one", "two"]
    assert received.unread == unread


@pytest.mark.parametrize("size", [100, 10 * 1024 * 1024])
def test_a_collectors_answer_is_not_decompressed(size: int) -> None:
    """200 KB may stand for as many MB."""
    sent = gzip.compress(bytes(size))
    with http_receiver(sent, "gzip") as (url, _), bounded_session() as session:
        body = ExportTraceServiceRequest().SerializeToString()
        assert session.post(url, body).content == sent
        with http_receiver(sent * 10, "gzip") as (other, _):
            assert session.post(other, body).content == (sent * 10)[:MAX_ANSWER]


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_spans_that_a_collector_redirects_are_not_delivered(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with http_receiver(status=status) as (url, received):
        assert export_two(span_exporter(OtlpTarget(HTTP, url))) == [SpanExportResult.FAILURE] * 2
    assert len(received.paths) == 2
    assert f"answers with {status}, a redirect" in caplog.text


def test_a_large_answer_over_grpc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The exporter tries again until then.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with grpc_receiver(message="x" * 1024 * 1024) as (port, received):
        assert set(export_two(span_exporter(OtlpTarget(GRPC, f"http://127.0.0.1:{port}")))) == {
            SpanExportResult.FAILURE
        }
    assert set(received.paths) == {"TraceService/Export"}


@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "dns:///127.0.0.1:{port}"])
def test_spans_are_sent_over_grpc(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with grpc_receiver() as (port, received):
        telemetry = configure("api", environ={ENDPOINT: form.format(port=port), PROTOCOL: GRPC})
        telemetry.tracer.start_span("exported").end()
        telemetry.shutdown()
    assert received.paths == ["TraceService/Export"]
    assert list(received.spans().values()) == ["exported"]
    assert received.services() == {"hotnic-api"}
    assert telemetry.undelivered_spans == 0


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
def test_spans_that_the_collector_has_not_got_are_counted(protocol: str) -> None:
    with socket.socket() as nothing:
        nothing.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nothing.getsockname()[1]}"
        telemetry = configure("api", environ={ENDPOINT: endpoint, PROTOCOL: protocol})
        for name in ("one", "two"):
            telemetry.tracer.start_span(name).end()
        started = time.monotonic()
        telemetry.shutdown(0.2)
        # Without the timeout this takes as long as the exporter tries, up to 10 s.
        assert time.monotonic() - started < 5
    assert telemetry.undelivered_spans == 2


def test_without_a_collector_no_span_counts_as_undelivered() -> None:
    telemetry = configure("api", environ={})
    telemetry.tracer.start_span("dropped").end()
    telemetry.shutdown()
    assert telemetry.undelivered_spans == 0


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


def test_a_replaced_ca_of_a_collector_is_used_over_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorities = [Authority(tmp_path, name) for name in ("one", "two")]
    ca = tmp_path / "ca.pem"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ca))
    ca.write_bytes(authorities[0].ca.read_bytes())
    with grpc_receiver(authorities[1].server()) as (port, received):
        exporter = span_exporter(OtlpTarget(GRPC, f"https://127.0.0.1:{port}"))
        ca.write_bytes(authorities[1].ca.read_bytes())
        # The file system's clock is too coarse for a test.
        os.utime(ca, (0, 0))
        telemetry = build("api", Resource({}), [SimpleSpanProcessor(exporter)])
        telemetry.tracer.start_span("exported").end()
        ca.unlink()
        telemetry.tracer.start_span("meanwhile").end()
        telemetry.shutdown()
    assert list(received.spans().values()) == ["exported", "meanwhile"]
