"""A real Jaeger receives what hotnic exports, over both protocols.

That all spans of a plug arrive at a collector is tested in ``tests/integration/lab/test_lab_collector.py``.
"""

from collections.abc import Iterator

import pytest

from services.common.telemetry import configure
from services.common.telemetry.propagation import trace_id_of
from tests.support.interop.jaeger import Jaeger, jaeger, span_names


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger for all tests of this module."""
    with jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_span_can_be_queried(collector: Jaeger, protocol: str) -> None:
    role = protocol.replace("/", "-")
    endpoint = collector.grpc if protocol == "grpc" else collector.http
    telemetry = configure(
        role, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    )
    with telemetry.tracer.start_as_current_span("outer"):
        trace_id = trace_id_of()
        with telemetry.tracer.start_as_current_span("inner"):
            pass
    telemetry.shutdown()
    assert f"hotnic-{role}" in collector.services()
    assert [trace["traceID"] for trace in collector.traces(f"hotnic-{role}")] == [trace_id]
    assert trace_id is not None
    trace = collector.trace(trace_id)
    assert trace is not None
    assert sorted(span_names(trace).values()) == ["inner", "outer"]


def test_an_unknown_trace_is_not_found(collector: Jaeger) -> None:
    assert collector.trace("0123456789abcdef0123456789abcdef") is None
