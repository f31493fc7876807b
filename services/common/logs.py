"""Logs of a process: structlog for our own lines, the same form for those of libraries, all to stderr.

JSON by default, readable text on a terminal; the trace and span ids of the current span are in every line. Nothing is
configured globally but the root handler of :mod:`logging`, without which the libraries' lines would be lost.
Next: :mod:`services.common.runtime`, which makes the logger and hands it to the role.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, TypeAlias

import msgspec
from opentelemetry import trace

_rich = sys.modules.get("rich")
if _rich is None:
    # structlog imports rich for its tracebacks as soon as it is installed: 200 ms and 6 MiB in every process.
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import FilteringBoundLogger, Processor
finally:
    if _rich is None:
        del sys.modules["rich"]

Log: TypeAlias = FilteringBoundLogger
Format: TypeAlias = Literal["auto", "json", "console"]

_QUIET = {"aiohttp.access": logging.WARNING, "asyncio": logging.WARNING, "nats": logging.WARNING}
_MINE = "hotnic"


def add_trace_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of the current span, unless the line names a trace of its own; drop an id that is ``None``."""
    if event.get("trace_id", "") is None:
        del event["trace_id"]
    span = trace.get_current_span().get_span_context()
    if span.is_valid and "trace_id" not in event:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def _to_json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_trace_ids,
    structlog.processors.StackInfoRenderer(),
)


def formatter(form: Format, stream: TextIO) -> logging.Formatter:
    """The formatter that our own and the libraries' lines pass through."""
    console = form == "console" or (form == "auto" and stream.isatty())
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_SHARED],
    )


def logger(name: str, level: str = "info", **bound: Any) -> Log:
    """A logger ``hotnic.<name>`` of ours; its lines go where :func:`configure` sent :mod:`logging`."""
    log: Log = structlog.wrap_logger(
        logging.getLogger(f"{_MINE}.{name}"),
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
        **bound,
    )
    return log


def configure(role: str, *, level: str = "info", form: Format = "auto", stream: TextIO | None = None) -> Log:
    """Send all logs of this process to one stream and return the role's logger.

    Libraries are heard from warning up, at level debug all of them from info up.

    :param stream: standard error when ``None``.
    """
    out = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter(form, out))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(logging.INFO if threshold <= logging.DEBUG else max(threshold, logging.WARNING))
    logging.getLogger(_MINE).setLevel(threshold)
    for name, floor in _QUIET.items():
        logging.getLogger(name).setLevel(floor)
    logging.captureWarnings(True)
    return logger(role, level, role=role)
