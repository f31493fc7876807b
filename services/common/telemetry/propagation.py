"""How one trace crosses annotations, message headers and the keyed queue.

W3C trace context only (``traceparent``): pure functions, no span is made here.
"""

from collections.abc import MutableMapping, Sequence
from typing import Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"

_w3c = TraceContextTextMapPropagator()


class HasTracer(Protocol):
    """What makes spans, such as :class:`services.common.telemetry.setup.Telemetry`."""

    @property
    def tracer(self) -> trace.Tracer:
        """The tracer."""
        ...


class HasContext(Protocol):
    """One reason why a key is looked at (:class:`services.common.reconcile.Cause`)."""

    @property
    def context(self) -> Context | None:
        """The trace context that came with it."""
        ...


class HasCauses(Protocol):
    """One attempt at a key (:class:`services.common.reconcile.Attempt`)."""

    @property
    def causes(self) -> Sequence[HasContext]:
        """Why the key is looked at, oldest first."""
        ...


def context_of(traceparent: str | None) -> Context | None:
    """The context that a ``traceparent`` names; ``None`` when there is none or it is malformed."""
    if not traceparent:
        return None
    context = _w3c.extract({TRACEPARENT: traceparent}, context=Context())
    return context if span_context(context).is_valid else None


def traceparent_of(context: Context | None = None) -> str | None:
    """The ``traceparent`` of a context (``None``: the current one); ``None`` outside of any span."""
    headers: dict[str, str] = {}
    _w3c.inject(headers, context)
    return headers.get(TRACEPARENT)


def inject(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Put a context (``None``: the current one) into message or HTTP headers."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, context)
    headers.update(carrier)


def span_context(context: Context | None) -> SpanContext:
    """The span context inside a context (``None``: the current one); invalid when it holds no span."""
    return trace.get_current_span(context).get_span_context()


def trace_id_of(context: Context | None = None) -> str | None:
    """The trace id as 32 hex digits, for logs and for people; ``None`` outside of any span."""
    found = span_context(context)
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


def links(*contexts: Context | None, **attributes: str | int | bool) -> list[Link]:
    """Links to the spans of these contexts: for causes that are not the parent, such as a redelivery.

    Contexts that are absent or hold no span make no link.
    """
    found = (span_context(context) for context in contexts if context is not None)
    return [Link(target, dict(attributes)) for target in found if target.is_valid]


def parent_of(traceparent: str | None, attempt: HasCauses) -> Context | None:
    """The parent for the work on an operation.

    The latest cause that belongs to the operation's own trace (so that a span stands below the message that
    started it), else the request itself, so that work learnt of by watch joins the same trace.

    :param traceparent: the operation's.
    """
    origin = context_of(traceparent)
    if origin is None:
        return None
    trace_id = span_context(origin).trace_id
    for cause in reversed(attempt.causes):
        if cause.context is not None and span_context(cause.context).trace_id == trace_id:
            return cause.context
    return origin
