"""W3C trace context (``traceparent``) in annotations, message headers and the keyed queue. Pure; creates no spans.

Next: :mod:`services.common.telemetry.tracer`, whose spans are in these traces.
"""

from collections.abc import MutableMapping, Sequence
from typing import NamedTuple, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"

NO_TRACE = 1
"""The trace id of work that belongs to no trace; no log line shows it."""

_w3c = TraceContextTextMapPropagator()


class HasTracer(Protocol):
    """An object with a tracer, such as :class:`services.common.telemetry.setup.Telemetry`."""

    @property
    def tracer(self) -> trace.Tracer:
        """The tracer."""
        ...


class HasContext(Protocol):
    """One cause of a reconcile (:class:`services.common.reconcile.Cause`)."""

    @property
    def context(self) -> Context | None:
        """The trace context of the cause."""
        ...


class HasCauses(Protocol):
    """One attempt at a reconcile (:class:`services.common.reconcile.Attempt`)."""

    @property
    def causes(self) -> Sequence[HasContext]:
        """The causes of the attempt, oldest first."""
        ...


class TraceEntry(NamedTuple):
    """How the first span of hotnic joins the trace of a caller outside of hotnic.

    :ivar parent: parent context; an empty one starts a trace, ``None`` stands for the current one.
    :ivar links: links of the span.
    """

    parent: Context | None
    links: list[Link]


def context_of(traceparent: str | None) -> Context | None:
    """Return the context of a ``traceparent``; ``None`` if it is missing or malformed."""
    if not traceparent:
        return None
    context = _w3c.extract({TRACEPARENT: traceparent}, context=Context())
    return context if span_context(context).is_valid else None


def trace_entry(traceparent: str | None) -> TraceEntry:
    """Return how a span joins the trace of a caller outside of hotnic, such as the Kubernetes API server.

    A sampled caller is the parent. An unsampled one is linked: its decision not to record its own spans, which is the
    API server's default, must not be one about hotnic's.

    :param traceparent: the caller's; missing or malformed, there is neither a parent nor a link.
    """
    caller = context_of(traceparent)
    if caller is None or span_context(caller).trace_flags.sampled:
        return TraceEntry(caller, [])
    return TraceEntry(Context(), links(caller))


def unrecorded(traceparent: str | None) -> Context:
    """Return a context whose spans are not recorded, in the trace of an operation so that log lines have its id.

    :param traceparent: the operation's; without one the context belongs to no trace.
    """
    origin = span_context(context_of(traceparent) or Context())
    trace_id, span_id = (origin.trace_id, origin.span_id) if origin.is_valid else (NO_TRACE, 1)
    span = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))
    return set_span_in_context(NonRecordingSpan(span), Context())


def traceparent_of(context: Context | None = None) -> str | None:
    """Return the ``traceparent`` of a context (``None``: the current one); ``None`` outside of any span."""
    headers: dict[str, str] = {}
    _w3c.inject(headers, context)
    return headers.get(TRACEPARENT)


def inject(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Add a context (``None``: the current one) to message or HTTP headers."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, context)
    headers.update(carrier)


def span_context(context: Context | None) -> SpanContext:
    """Return the span context of a context (``None``: the current one); an invalid one if there is no span."""
    return trace.get_current_span(context).get_span_context()


def trace_id_of(context: Context | None = None) -> str | None:
    """Return the trace id as 32 hex digits for logs and users; ``None`` outside of any span."""
    found = span_context(context)
    return trace.format_trace_id(found.trace_id) if found.is_valid else None


def links(*contexts: Context | None, **attributes: str | int | bool) -> list[Link]:
    """Return links to the spans of these contexts, for causes other than the parent, such as a redelivery.

    Contexts that are ``None`` or have no span are left out.

    :param attributes: attributes of every link.
    """
    found = (span_context(context) for context in contexts if context is not None)
    return [Link(target, dict(attributes)) for target in found if target.is_valid]


def parent_of(traceparent: str | None, attempt: HasCauses) -> Context | None:
    """Return the parent context for the work on an operation.

    This is the latest cause in the operation's own trace, so that a span is a child of the message that started it.
    Without such a cause it is the request itself, so that work started by a watch joins the same trace.

    :param traceparent: the operation's trace context; without one there is no parent.
    """
    origin = context_of(traceparent)
    if origin is None:
        return None
    trace_id = span_context(origin).trace_id
    for cause in reversed(attempt.causes):
        if cause.context is not None and span_context(cause.context).trace_id == trace_id:
            return cause.context
    return origin
