"""The tracer of a process: its spans record an exception as an error, except for a conflict.

A guarded write fails when another writer was first; the role then observes the object again and plans again. That is
the normal course of optimistic concurrency. A span with such an outcome has the attribute ``hotnic.conflict`` and no
error, so that the trace of a successful plug contains no failed span.
Next: :mod:`services.common.telemetry.setup`, which creates the tracer.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, Tracer
from opentelemetry.util._decorator import _agnosticcontextmanager

from services.common.telemetry.redact import redact_text

CONFLICT = "hotnic.conflict"
"""Attribute of a span whose write failed because another writer was first."""

MAX_NAME_CHARS = 128
"""Characters of a span's name. It may end with the name of an interface, of which a new one has 63 at most."""
MAX_VALUE_CHARS = 4096
"""Characters of an attribute, of which users and guests write some, and of a description. A stack trace is as long."""


def is_conflict(error: BaseException) -> bool:
    """Return whether an exception means only that another writer was first.

    Its class decides by an attribute ``conflict``: :class:`services.common.kube.errors.KubeError` and
    :class:`services.common.reconcile.Retry` have one.
    """
    return getattr(error, "conflict", False) is True


@contextmanager
def use_span(span: Span, *, record_exception: bool = True, set_status_on_exception: bool = True) -> Iterator[Span]:
    """Make a span the current one, and record an exception on it. The caller ends the span."""
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except Exception as error:
            if is_conflict(error):
                span.set_attribute(CONFLICT, True)
                raise
            if record_exception and span.is_recording():
                _record_exception(span, error)
            if set_status_on_exception:
                fail_span(span, f"{type(error).__name__}: {error}")
            raise


def fail_span(span: Span, text: str) -> None:
    """Mark a span as failed; its text loses the passwords of addresses in it."""
    span.set_status(StatusCode.ERROR, redact_text(text)[:MAX_VALUE_CHARS])


def _record_exception(span: Span, error: Exception) -> None:
    """Record an exception without the passwords that addresses in its text, or in that of its causes, may have."""
    texts = {"message": str(error), "stacktrace": "".join(traceback.format_exception(error))}
    span.record_exception(error, {f"exception.{name}": redact_text(text) for name, text in texts.items()})


class RoleTracer(Tracer):
    """A tracer that creates the spans of another one and records exceptions by :func:`use_span`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(self, name: str, *args: Any, **options: Any) -> Span:
        """See :meth:`opentelemetry.trace.Tracer.start_span`."""
        return self._tracer.start_span(name[:MAX_NAME_CHARS], *args, **options)

    # As in OpenTelemetry's own tracers: the result also decorates functions, async ones included.
    @_agnosticcontextmanager
    def start_as_current_span(
        self,
        name: str,
        *args: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **options: Any,
    ) -> Iterator[Span]:
        """See :meth:`opentelemetry.trace.Tracer.start_as_current_span`."""
        span = self.start_span(name, *args, **options)
        try:
            with use_span(span, record_exception=record_exception, set_status_on_exception=set_status_on_exception):
                yield span
        finally:
            if end_on_exit:
                span.end()
