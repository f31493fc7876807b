"""Creation of a process' tracer, meter and exporters from its environment.

Exporters are imported only if they are configured: each costs tens of milliseconds at start. Trace context is
:mod:`services.common.telemetry.propagation`, the list of metrics :mod:`services.common.telemetry.metrics`.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote
from uuid import uuid4

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry, generate_latest

from services.common.telemetry import otlp
from services.common.telemetry.delivery import DeliverySpanProcessor
from services.common.telemetry.metrics import Metrics
from services.common.telemetry.parts import MergedMetrics
from services.common.telemetry.trace_files import MAX_FILES, MIN_FILES, TraceFile
from services.common.telemetry.tracer import MAX_VALUE_CHARS, RoleTracer
from services.common.telemetry.variables import check_variables, integer

TRACE_DIR, TRACE_FILES = "HOTNIC_TRACE_DIR", "HOTNIC_TRACE_FILES"
ATTRIBUTE_LENGTH = "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
SHUTDOWN_TIMEOUT = 0.9
"""Seconds for exporting the remaining spans when a process ends."""
ABANDON_TIMEOUT = 0.2
"""Seconds of these for an exporter to end after its export was interrupted."""


class Telemetry:
    """The tracer, meter and metrics of one process.

    :ivar tracer: named ``hotnic.<role>``.
    :ivar meter: named ``hotnic.<role>``; for instruments of one role.
    :ivar metrics: instruments that all roles share.
    :ivar parts: telemetry of the roles that run in this process beside its own, by role.
    """

    def __init__(
        self,
        role: str,
        tracers: TracerProvider,
        meters: MeterProvider,
        registry: CollectorRegistry,
        deliveries: Sequence[DeliverySpanProcessor] = (),
    ) -> None:
        self._tracers = tracers
        self._meters = meters
        self._registry = registry
        self._deliveries = deliveries
        self.role = role
        self.tracer: Tracer = RoleTracer(tracers.get_tracer(f"hotnic.{role}"))
        self.meter: Meter = meters.get_meter(f"hotnic.{role}")
        self.metrics = Metrics(self.meter)
        self.parts: dict[str, Telemetry] = {}

    def metrics_text(self) -> bytes:
        """Return all metrics in Prometheus' text format; those of its parts have the label ``role``."""
        if not self.parts:
            return generate_latest(self._registry)
        return generate_latest(
            MergedMetrics(self._registry, {role: part._registry for role, part in self.parts.items()})
        )

    @property
    def undelivered_spans(self) -> int:
        """How many spans of this process its collector has not got; 0 if there is no collector."""
        return sum(delivery.undelivered for delivery in self._deliveries)

    def shutdown(self, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """Export the remaining spans and close the exporters.

        :param timeout: seconds to block; what is not exported then is dropped.
        """
        closed: Future[None] = Future()

        def close() -> None:
            try:
                self._tracers.shutdown()
                self._meters.shutdown()
            except Exception as error:
                closed.set_exception(error)
            else:
                closed.set_result(None)

        # A daemon, because an exporter that waits for its collector must not delay the end of the process.
        threading.Thread(target=close, name="close-telemetry", daemon=True).start()
        try:
            closed.result(timeout - ABANDON_TIMEOUT)
        except TimeoutError:
            for delivery in self._deliveries:
                delivery.abandon()
            # The interrupted export is logged by its thread, which must not write while the interpreter ends.
            with suppress(TimeoutError):
                closed.result(ABANDON_TIMEOUT)


def build(role: str, resource: Resource, processors: list[SpanProcessor]) -> Telemetry:
    """Return a telemetry with these span processors and a metrics registry of its own.

    Sampling is OpenTelemetry's default, parent-based and always on, unless ``OTEL_TRACES_SAMPLER`` is set.
    """
    # No exit handler: the process frame shuts telemetry down, within a timeout of its own.
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=_span_limits())
    for processor in processors:
        tracers.add_span_processor(processor)
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    deliveries = [processor for processor in processors if isinstance(processor, DeliverySpanProcessor)]
    return Telemetry(role, tracers, meters, registry, deliveries)


def _span_limits() -> SpanLimits:
    """Return the limits of spans: those of OpenTelemetry's variables, and a length of attributes, which has none."""
    # The SDK would write a line for each attribute that it cuts.
    logging.getLogger("opentelemetry.attributes").setLevel(logging.ERROR)
    # A given value takes precedence over the variable.
    return SpanLimits(max_attribute_length=None if os.environ.get(ATTRIBUTE_LENGTH) else MAX_VALUE_CHARS)


def configure(role: str, node: str = "_", *, environ: Mapping[str, str] = os.environ) -> Telemetry:
    """Return the telemetry of one process.

    Spans are exported in batches by OTLP if the environment names a collector
    (:func:`services.common.telemetry.otlp.target_of`). If ``HOTNIC_TRACE_DIR`` is set, they are also written to the
    file ``<role>-<node>-<pid>.jsonl`` in it as OTLP-JSON, one at a time, so that none is lost if the process is killed
    (:mod:`services.common.telemetry.trace_files`).
    With neither, spans are created for propagation and then dropped.

    :param node: the Kubernetes node; ``_`` for a role that belongs to none.
    :raises InvalidOtelVariable: a variable of OpenTelemetry has a value that cannot be used.
    :raises OSError: the trace directory is not writable.
    """
    check_variables(environ)
    processors: list[SpanProcessor] = []
    # The file comes first, because the collector may use up the time of the shutdown.
    if directory := environ.get(TRACE_DIR):
        max_files = integer(environ, TRACE_FILES, MIN_FILES, MAX_FILES)
        processors.append(_FileSpanProcessor(TraceFile(Path(directory), role, node, max_files=max_files)))
    if target := otlp.target_of(environ):
        processors.append(DeliverySpanProcessor(otlp.span_exporter(target)))
    return build(role, resource_of(role, node, environ), processors)


def resource_of(role: str, node: str, environ: Mapping[str, str]) -> Resource:
    """Return the resource attributes of the process: service name ``hotnic-<role>``, a new instance id, pid and node.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` override them. They are read here because the SDK's detectors
    start a thread pool and scan the entry points of every installed package.
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


class _FileSpanProcessor(SimpleSpanProcessor):
    """Writes each span at once: a batch would be lost at SIGKILL."""

    def __init__(self, file: TraceFile) -> None:
        from opentelemetry.exporter.otlp.json.file import FileSpanExporter

        self._file = file
        # The exporter's entry point would write to stdout.
        super().__init__(FileSpanExporter(stream=cast("IO[str]", file)))

    def shutdown(self) -> None:
        """Close the file."""
        super().shutdown()
        self._file.close()
