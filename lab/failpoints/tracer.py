"""A tracer that fires the failpoint of a span at its start and at its end.

It wraps a tracer instead of being a span processor because processors do not see unsampled spans, and Kubernetes Events
are recorded in an unsampled context. Next: :mod:`lab.failpoints.__main__`.
"""

import contextlib
import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer, get_current_span
from opentelemetry.util._decorator import _agnosticcontextmanager

from lab.failpoints.points import PASSED, Moment, find_failpoint
from services.common.telemetry import Telemetry


class FailpointTracer(Tracer):
    """A tracer with failpoints. A span that ends with an exception has no failpoint after it.

    Only :meth:`start_as_current_span` has failpoints: a span that is started otherwise does not surround an effect.

    :param tracer: creates the spans.
    :param role: name of the role.
    :param directory: directory of armed failpoints.
    """

    def __init__(self, tracer: Tracer, role: str, directory: Path) -> None:
        self._tracer = tracer
        self._role = role
        self._directory = directory

    def start_span(self, *args: Any, **options: Any) -> Span:
        """Start a span of the wrapped tracer."""
        return self._tracer.start_span(*args, **options)

    @_agnosticcontextmanager
    def start_as_current_span(
        self, name: str, context: Context | None = None, *args: Any, **options: Any
    ) -> Iterator[Span]:
        """Start a span of the wrapped tracer between the failpoints before and after it."""
        # Spans that are not recorded have no name.
        parent = getattr(get_current_span(context), "name", "")
        failpoint = find_failpoint(self._role, name, parent, options.get("attributes") or {})
        self._reach(failpoint, "before")
        with self._tracer.start_as_current_span(name, context, *args, **options) as span:
            yield span
        self._reach(failpoint, "after")

    def _reach(self, failpoint: str | None, moment: Moment) -> None:
        """Record that a failpoint is passed; if it is armed, send the signal to the process that the file names."""
        if failpoint is None:
            return
        point = f"{failpoint}.{moment}"
        with contextlib.suppress(FileNotFoundError):
            passed = os.open(self._directory / PASSED, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.write(passed, f"{point}\n".encode())
            os.close(passed)
        with contextlib.suppress(FileNotFoundError):
            victim, _, name = (self._directory / point).read_text().partition(" ")
            os.unlink(self._directory / point)
            os.kill(int(victim or os.getpid()), signal.Signals[name or "SIGKILL"])


def with_failpoints(telemetry: Telemetry, directory: Path) -> Telemetry:
    """Return a telemetry with the same exporters whose tracer has failpoints.

    :param directory: directory of armed failpoints.
    """
    instrumented = copy.copy(telemetry)
    instrumented.tracer = FailpointTracer(telemetry.tracer, telemetry.role, directory)
    return instrumented
