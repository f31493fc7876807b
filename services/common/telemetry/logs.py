"""Logs of a process: structlog for our own lines, the same format for those of libraries, all to stderr.

The format is JSON, or readable text on a terminal. Every line has the trace and span ids of the current span. Only the
root handler of :mod:`logging` is configured globally, because libraries log through it.
Next: :mod:`services.common.runtime.process`, which creates the logger and passes it to the role.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, TypeAlias

import msgspec
from opentelemetry import trace

from schemas.inputs import one_line
from services.common.telemetry.propagation import NO_TRACE
from services.common.telemetry.redact import redact_text

_rich = sys.modules.get("rich")
if _rich is None:
    # structlog imports rich for tracebacks if it is installed, which costs 200 ms and 6 MiB in every process. ``None``
    # in sys.modules makes that import fail.
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import FilteringBoundLogger, Processor
finally:
    if _rich is None:
        del sys.modules["rich"]

Log: TypeAlias = FilteringBoundLogger
Format: TypeAlias = Literal["auto", "json", "console"]

_MIN_LIBRARY_LEVELS = {
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "nats": logging.WARNING,
    # It writes a line for each message that it does not expect, as many as a domain sends. Its errors are raised too.
    "qemu.qmp": logging.CRITICAL,
}
_NAMESPACE = "hotnic"
_TRACEBACKS = frozenset({"exception", "stack"})


def add_trace_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of the current span, unless the line has a trace id already. Remove a trace id that is ``None``."""
    if event.get("trace_id", "") is None:
        del event["trace_id"]
    span = trace.get_current_span().get_span_context()
    if span.is_valid and span.trace_id != NO_TRACE and "trace_id" not in event:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def redact_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact the addresses in every value, whoever wrote it."""
    return {key: _redacted(value) for key, value in event.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, BaseException):
        return redact_text(repr(value))
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return {key: _redacted(item) for key, item in value.items()} if isinstance(value, dict) else value


def printable_values(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what a terminal would interpret in the texts. Only a traceback keeps its lines."""
    shown = {key: one_line(value) if isinstance(value, str) else value for key, value in event.items()}
    for key in _TRACEBACKS & event.keys():
        shown[key] = "\n".join(map(one_line, str(event[key]).splitlines()))
    return shown


def _to_json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


_SHARED_PROCESSORS: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_trace_ids,
    structlog.processors.StackInfoRenderer(),
)


def formatter(form: Format, stream: TextIO) -> logging.Formatter:
    """Return the formatter of our own and the libraries' lines."""
    console = form == "console" or (form == "auto" and stream.isatty())
    render: list[Processor] = (
        [
            printable_values,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
        if console
        else [structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redact_values,
            *render,
        ],
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_SHARED_PROCESSORS],
    )


def logger(name: str, level: str = "info", **bound: Any) -> Log:
    """Return the logger ``hotnic.<name>``, which writes to the stream set by :func:`configure`."""
    log: Log = structlog.wrap_logger(
        logging.getLogger(f"{_NAMESPACE}.{name}"),
        processors=[*_SHARED_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
        **bound,
    )
    return log


def configure(role: str, *, level: str = "info", form: Format = "auto", stream: TextIO | None = None) -> Log:
    """Send all logs of this process to one stream, and return the role's logger.

    Libraries log from level warning on, and from info on if ``level`` is debug.

    :param level: lowest level of our own lines.
    :param form: format of the lines; ``auto`` is ``console`` on a terminal and ``json`` elsewhere.
    :param stream: ``None`` for standard error.
    """
    out = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter(form, out))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(logging.INFO if threshold <= logging.DEBUG else max(threshold, logging.WARNING))
    logging.getLogger(_NAMESPACE).setLevel(threshold)
    for name, floor in _MIN_LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(floor)
    logging.captureWarnings(True)
    return logger(role, level, role=role)
