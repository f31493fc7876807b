"""The export of spans to a collector in batches, which counts the spans that the collector has not got.

A collector may be unreachable for any time: spans are then dropped, and no role waits or fails for it.
Next: :mod:`services.common.telemetry.setup`, which adds the processor to a process' tracer.
"""

import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class DeliverySpanProcessor(BatchSpanProcessor):
    """Exports spans in batches.

    :param exporter: sends a batch to the collector.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._counting = _CountingExporter(exporter)
        self._ended = 0
        self._lock = threading.Lock()
        super().__init__(self._counting)

    @property
    def undelivered(self) -> int:
        """How many spans have ended and were not accepted by the collector, or not yet."""
        with self._lock:
            return self._ended - self._counting.delivered

    def on_end(self, span: ReadableSpan) -> None:
        """Add a span to the next batch."""
        if span.context and span.context.trace_flags.sampled:
            with self._lock:
                self._ended += 1
        super().on_end(span)

    def abandon(self) -> None:
        """Stop to send: the batch that is being sent is not sent again, and further batches are dropped."""
        self._counting.shutdown()


class _CountingExporter(SpanExporter):
    """Counts the spans that another exporter has delivered. It is closed only once, without a warning."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._closed = False
        self.delivered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch. The processor sends one at a time."""
        if self._closed:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        return result

    def shutdown(self) -> None:
        """Close the exporter, which ends its wait between two attempts."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()
