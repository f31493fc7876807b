"""The spans of the command line itself, which it creates only when the environment configures an exporter.

With ``TRACEPARENT`` the request belongs to the caller's trace, or is linked to it if that is unsampled; otherwise the
api's request span is the root.
Next: :mod:`services.common.telemetry.setup`.
"""

import os
from collections.abc import Mapping
from typing import Protocol

import click
from opentelemetry.trace import NoOpTracer, Tracer

from services.common.telemetry.propagation import TraceEntry, context_of, trace_entry

_EXPORTER_VARIABLES = ("HOTNIC_TRACE_DIR", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Traces(Protocol):
    """A tracer with its exporter."""

    @property
    def tracer(self) -> Tracer:
        """The tracer."""
        ...

    def shutdown(self) -> None:
        """Export the remaining spans."""
        ...


class NoTraces:
    """A tracer that creates no spans; requests still carry the caller's trace context."""

    tracer: Tracer = NoOpTracer()

    def shutdown(self) -> None:
        """Do nothing."""


def configure_tracing(environ: Mapping[str, str] = os.environ) -> Traces:
    """Return a tracer as the environment configures it.

    :raises click.UsageError: a variable of OpenTelemetry has a value that cannot be used.
    """
    if not any(environ.get(name) for name in _EXPORTER_VARIABLES):
        return NoTraces()
    from services.common.telemetry.otlp import InvalidOtelVariable
    from services.common.telemetry.setup import configure

    try:
        return configure("cli", environ=environ)
    except InvalidOtelVariable as error:
        raise click.UsageError(str(error)) from error


def caller_entry(traces: Traces, environ: Mapping[str, str] = os.environ) -> TraceEntry:
    """Return how the span around a command joins the trace in ``TRACEPARENT``."""
    caller = environ.get("TRACEPARENT")
    # Without spans of its own the command passes the context on as it is.
    return TraceEntry(context_of(caller), []) if isinstance(traces, NoTraces) else trace_entry(caller)
