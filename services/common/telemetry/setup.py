"""Builds a process' tracer, meter and exporters from its environment.

Not the propagation of trace context (:mod:`services.common.telemetry.propagation`) and not the list of metrics
(:mod:`services.common.telemetry.metrics`). Exporters are imported only where they are configured: each costs
tens of milliseconds at start.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import uuid4

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry, generate_latest

from services.common.telemetry.metrics import Metrics

TRACE_DIR = "HOTNIC_TRACE_DIR"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


class Telemetry:
    """The tracer, meter and metrics of one process.

    :ivar tracer: named ``hotnic.<role>``.
    :ivar meter: named ``hotnic.<role>``; for instruments of the role's own.
    :ivar metrics: the instruments that all roles share.
    """

    def __init__(self, role: str, tracers: TracerProvider, meters: MeterProvider, registry: CollectorRegistry) -> None:
        self._tracers = tracers
        self._meters = meters
        self._registry = registry
        self.role = role
        self.tracer: Tracer = tracers.get_tracer(f"hotnic.{role}")
        self.meter: Meter = meters.get_meter(f"hotnic.{role}")
        self.metrics = Metrics(self.meter)

    def metrics_text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def shutdown(self) -> None:
        """Export what is left and close the exporters; blocks until done, at most the exporter's own time limit."""
        self._tracers.shutdown()
        self._meters.shutdown()


def build(role: str, resource: Resource, processors: list[SpanProcessor]) -> Telemetry:
    """A telemetry with exactly these span processors and a metrics registry of its own.

    Sampling is OpenTelemetry's default: parent based and always on, unless ``OTEL_TRACES_SAMPLER`` says otherwise.
    """
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    for processor in processors:
        tracers.add_span_processor(processor)
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    return Telemetry(role, tracers, meters, registry)


def configure(role: str, node: str = "_", *, environ: Mapping[str, str] = os.environ) -> Telemetry:
    """The telemetry of one process.

    Spans go to an OTLP endpoint (in batches) when ``OTEL_EXPORTER_OTLP_ENDPOINT`` or
    ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set, and to the file ``<role>-<node>-<pid>.jsonl`` under
    ``HOTNIC_TRACE_DIR`` (OTLP-JSON, one span at a time, so that none is lost when the process is killed) when
    that is set; with neither they are made, carried on to others, and dropped.

    :param node: the Kubernetes node, ``_`` for a role that belongs to none.
    :raises OSError: the trace directory cannot be written.
    """
    processors: list[SpanProcessor] = []
    if endpoint := _traces_endpoint(environ):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        processors.append(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    if directory := environ.get(TRACE_DIR):
        processors.append(_file_processor(Path(directory), role, node))
    return build(role, resource_of(role, node, environ), processors)


def resource_of(role: str, node: str, environ: Mapping[str, str]) -> Resource:
    """What the process says about itself: ``service.name`` ``hotnic-<role>``, a fresh instance id, its node.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win. Read here and not by the SDK's detectors, which
    start a thread pool and scan every installed package's entry points.
    """
    attributes: dict[str, str | int] = {
        "service.name": f"hotnic-{role}",
        "service.namespace": "hotnic",
        "service.instance.id": str(uuid4()),
        "process.pid": os.getpid(),
    }
    if node and node != "_":
        attributes["k8s.node.name"] = node
    for item in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = item.partition("=")
        if equals and key.strip():
            attributes[key.strip()] = unquote(value.strip())
    if name := environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    return Resource(attributes)


def _traces_endpoint(environ: Mapping[str, str]) -> str | None:
    if exact := environ.get(_TRACES_ENDPOINT):
        return exact
    base = environ.get(_ENDPOINT)
    return f"{base.rstrip('/')}/v1/traces" if base else None


def _file_processor(directory: Path, role: str, node: str) -> SpanProcessor:
    from opentelemetry.exporter.otlp.json.file import FileSpanExporter

    directory.mkdir(parents=True, exist_ok=True)
    name = f"{quote(role, safe='')}-{quote(node or '_', safe='')}-{os.getpid()}.jsonl"
    # Not the exporter's entry point (it writes to stdout) and no batches (they are lost at SIGKILL).
    return SimpleSpanProcessor(FileSpanExporter(directory / name))
