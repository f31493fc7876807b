"""Reads the span files that the roles write, one JSON document per line, and selects the spans of one trace.

Spans that the roles send to a collector are not read.
Next: :mod:`services.cli.tracing.spans`, which parses the lines.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from services.cli.errors import CommandFailed
from services.cli.tracing.spans import Span, parse

_OPERATION_ATTRIBUTE = "hotnic.operation.id"
_EVENT = "send hotplug."
"""Prefix of the spans of published messages; a trace with such a span belongs to an operation."""


def trace_folder(chosen: str | None) -> Path:
    """Return the directory of the span files: the chosen one, else HOTNIC_TRACE_DIR, else the lab's.

    :raises CommandFailed: the directory does not exist.
    """
    named = chosen or os.environ.get("HOTNIC_TRACE_DIR")
    # The lab's package may not be installed, so its layout is repeated here; a test compares the two.
    folder = Path(named) if named else Path(os.environ.get("HOTNIC_LAB_DIR") or ".lab", "traces").absolute()
    if not folder.is_dir():
        raise CommandFailed(
            f"directory {folder} not found; set the directory of the span files with --dir or HOTNIC_TRACE_DIR. "
            "The roles write span files if HOTNIC_TRACE_DIR is set for them; otherwise see the collector at "
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return folder


def spans_of_trace(folder: Path, trace_id: str) -> list[Span]:
    """Return the spans of a trace.

    :raises CommandFailed: there are none.
    """
    wanted = trace_id.lower()
    spans = [span for span in _read(folder, wanted) if span.trace_id == wanted]
    if not spans:
        raise CommandFailed(f"no spans of trace {wanted} found in {folder}")
    return spans


def spans_of_operation(folder: Path, operation: str) -> list[Span]:
    """Return the spans of an operation's trace.

    :raises CommandFailed: there are none.
    """
    wanted = operation.lower()
    for span in _read(folder, wanted):
        if span.attributes.get(_OPERATION_ATTRIBUTE) == wanted:
            return spans_of_trace(folder, span.trace_id)
    raise CommandFailed(f"no spans of operation {wanted} found in {folder}")


def latest_operation(folder: Path) -> list[Span]:
    """Return the spans of the operation that started last.

    :raises CommandFailed: there is none.
    """
    begun: dict[str, int] = {}
    operations = set()
    spans = _read(folder)
    for span in spans:
        begun[span.trace_id] = min(span.start, begun.get(span.trace_id, span.start))
        if span.name.startswith(_EVENT):
            operations.add(span.trace_id)
    if not operations:
        raise CommandFailed(f"no spans of operations found in {folder}")
    newest = max(operations, key=begun.__getitem__)
    return [span for span in spans if span.trace_id == newest]


def _read(folder: Path, marker: str | None = None) -> list[Span]:
    """Return the spans of all lines, or of those that contain a marker in lower case.

    Selecting lines by a marker before parsing them is much faster than parsing all of them.
    """

    def lines() -> Iterator[bytes]:
        needle = marker.encode() if marker is not None else None
        for opened in _files(folder):
            yield from (line for line in opened if needle is None or needle in line.lower())

    try:
        spans, _ = parse(lines())
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from error
    return spans


def _files(folder: Path) -> Iterator[BinaryIO]:
    """Open each file once, also if its process renames or removes files meanwhile."""
    seen: set[tuple[int, int]] = set()
    before = -1
    while before < len(seen):
        before = len(seen)
        for file in sorted(folder.rglob("*.jsonl")):
            with suppress(FileNotFoundError), file.open("rb") as opened:
                found = os.fstat(opened.fileno())
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    yield opened
