"""The spans of the command line itself: written where its environment asks for them, otherwise none.

With ``TRACEPARENT`` the request joins the caller's trace; without any of it the api's request span is the root.
Next: :mod:`services.common.telemetry.setup`.
"""

import os
from collections.abc import Mapping
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Tracer

from services.common.telemetry.propagation import context_of

_WANTED = ("HOTNIC_TRACE_DIR", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Traces(Protocol):
    """A tracer, and its end."""

    @property
    def tracer(self) -> Tracer:
        """The tracer."""
        ...

    def shutdown(self) -> None:
        """Export what is left."""
        ...


class NoTraces:
    """Makes no spans; a caller's context is still passed on."""

    tracer: Tracer = NoOpTracer()

    def shutdown(self) -> None:
        """There is nothing to export."""


def telemetry(environ: Mapping[str, str] = os.environ) -> Traces:
    """What the environment asks for."""
    if not any(environ.get(name) for name in _WANTED):
        return NoTraces()
    from services.common.telemetry.setup import configure

    return configure("cli", environ=environ)


def caller(environ: Mapping[str, str] = os.environ) -> Context | None:
    """The trace that the caller put into ``TRACEPARENT``."""
    return context_of(environ.get("TRACEPARENT"))
