"""Telemetry of a process: exporters, resource attributes, names of metrics."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opentelemetry import metrics, trace

from schemas.bus.events import Failed, GuestAttached
from schemas.inputs import Edge, RejectReason, reject
from schemas.kubernetes.operations import Operation
from schemas.stages import OperationKind, Stage
from services.common.telemetry import configure
from tests.support.telemetry.spans import recording_telemetry


def attributes(line: str) -> dict[str, str]:
    resource = json.loads(line)["resourceSpans"][0]["resource"]
    return {item["key"]: next(iter(item["value"].values())) for item in resource["attributes"]}


def test_every_span_is_written_to_the_file_at_once(tmp_path: Path) -> None:
    telemetry = configure("networks", "node-1", environ={"HOTNIC_TRACE_DIR": str(tmp_path / "traces")})
    with telemetry.tracer.start_as_current_span("outer"), telemetry.tracer.start_as_current_span("inner"):
        pass
    (path,) = (tmp_path / "traces").iterdir()
    assert path.name.startswith("networks-node-1-")
    assert path.suffix == ".jsonl"
    lines = path.read_text().splitlines()
    spans = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]
    assert [span["name"] for span in spans] == ["inner", "outer"]
    assert spans[0]["parentSpanId"] == spans[1]["spanId"]
    resource_attributes = attributes(lines[0])
    assert resource_attributes["service.name"] == "hotnic-networks"
    assert resource_attributes["k8s.node.name"] == "node-1"
    assert resource_attributes["service.instance.id"]
    telemetry.shutdown()


def test_a_node_name_never_leaves_the_directory(tmp_path: Path) -> None:
    telemetry = configure("networks", "../../x", environ={"HOTNIC_TRACE_DIR": str(tmp_path)})
    telemetry.shutdown()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_environment_overrides_resource_attributes(tmp_path: Path) -> None:
    environ = {
        "HOTNIC_TRACE_DIR": str(tmp_path),
        "OTEL_SERVICE_NAME": "mine",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=lab%20one, k8s.cluster.name=c,broken,=x",
    }
    telemetry = configure("api", environ=environ)
    telemetry.tracer.start_span("x").end()
    telemetry.shutdown()
    resource_attributes = attributes(next(tmp_path.iterdir()).read_text())
    assert resource_attributes["service.name"] == "mine"
    assert resource_attributes["deployment.environment.name"] == "lab one"
    assert resource_attributes["k8s.cluster.name"] == "c"
    assert "k8s.node.name" not in resource_attributes


def test_without_exporters_spans_are_created_and_dropped() -> None:
    telemetry = configure("api", environ={})
    with telemetry.tracer.start_as_current_span("x") as span:
        assert span.get_span_context().is_valid
    telemetry.shutdown()


def test_global_providers_are_not_changed() -> None:
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    configure("api", environ={}).shutdown()
    recording_telemetry()[0].shutdown()
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before


def test_exporters_are_imported_only_if_configured() -> None:
    code = (
        "import sys; from services.common.telemetry import configure; configure('api', environ={});"
        "print([m for m in sys.modules if m.startswith('opentelemetry.exporter.otlp') or m in ('requests', 'aiohttp')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rejected_inputs_are_counted_by_edge_and_reason() -> None:
    telemetry = configure("handler", environ={})

    def counted() -> float:
        # The counter is the process', so other tests count too.
        lines = telemetry.metrics_text().decode().splitlines()
        found = [line for line in lines if 'edge="domain"' in line and 'reason="TooMany"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in found if line.startswith("hotnic_rejected"))

    before = counted()
    for _ in range(2):
        reject(Edge.DOMAIN, RejectReason.TOO_MANY, "65 devices")
    assert counted() == before + 2
    telemetry.shutdown()


def test_metrics_of_two_telemetries_are_separate() -> None:
    one, two = configure("api", environ={}), configure("handler", environ={})
    one.metrics.record_dead_letter("Oversized")
    assert b"hotnic_dead_letters_total" in one.metrics_text()
    two.metrics.record_dropped()
    assert b"hotnic_dead_letters_total" not in two.metrics_text()
    assert b'service_name="hotnic-handler"' in two.metrics_text()
    one.shutdown()
    two.shutdown()


@pytest.mark.parametrize(
    ("requested_at", "expected"),
    [
        ("2026-11-23T10:00:00Z", "0.25"),
        ("2026-11-23T11:00:00.000+01:00", "0.25"),
        ("2026-11-23T10:00:05Z", "0.0"),
    ],
)
def test_stage_latency_starts_at_the_request(requested_at: str, expected: str) -> None:
    telemetry, _ = recording_telemetry()
    event = GuestAttached(operation=Operation("1", OperationKind.PLUG, "a", None, requested_at))
    telemetry.metrics.record_published(event, now=datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC))
    line = f'hotnic_stage_seconds_sum{{kind="plug",stage="guest-attached"}} {expected}'
    assert line in telemetry.metrics_text().decode()


@pytest.mark.parametrize("requested_at", [None, "", "yesterday", "2026-11-23T10:00:00"])
def test_an_operation_without_a_request_time_has_no_latency(requested_at: str | None) -> None:
    telemetry, _ = recording_telemetry()
    telemetry.metrics.record_published(
        GuestAttached(operation=Operation("1", OperationKind.PLUG, "a", None, requested_at))
    )
    assert b"hotnic_stage_seconds" not in telemetry.metrics_text()


def test_failures_are_counted_by_stage_and_reason() -> None:
    telemetry, _ = recording_telemetry()
    operation = Operation("1", OperationKind.PLUG, "a")
    for _ in range(2):
        telemetry.metrics.record_published(Failed(operation=operation, at=Stage.MULTUS_ATTACHED, reason="CniFailed"))
    assert b'hotnic_failures_total{reason="CniFailed",stage="multus-attached"} 2.0' in telemetry.metrics_text()
