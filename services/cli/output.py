"""Formats of output, options and help texts as kubectl has them: tables, JSON, durations, examples.

No terminal library. The waterfall of a trace is :mod:`services.cli.tracing.waterfall`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

NONE = "<none>"
"""A table cell without a value, as kubectl prints it."""
UNKNOWN = "<unknown>"
"""A table cell whose value could not be read."""


class Duration(click.ParamType[float]):
    """An option value such as ``2m``, ``90s``, ``1m30s``, ``500ms``, converted to seconds; a number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value in seconds."""
        if isinstance(value, float):
            return value
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"invalid duration {value!r}; examples: 90s, 2m, 1h30m", param, ctx)
        return seconds


def parse_duration(text: str) -> float | None:
    """Return a duration in seconds; ``None`` when the text is not a duration."""
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: columns aligned to the left, three spaces apart, without trailing spaces."""
    lines = [header, *rows]
    column_widths = widths(lines)
    return "\n".join(row(line, column_widths) for line in lines)


def widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column."""
    return [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]


def row(cells: Sequence[str], column_widths: Sequence[int]) -> str:
    """Return one line of a table; a cell that is wider than its column shifts the cells after it."""
    return "   ".join(cell.ljust(width) for cell, width in zip(cells, column_widths, strict=True)).rstrip()


def as_json(value: Any) -> str:
    """Return a value that msgspec can encode as indented JSON."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def as_line(value: Any) -> str:
    """Return a value that msgspec can encode as JSON on one line."""
    import msgspec

    return msgspec.json.encode(value).decode()


def examples(*lines: str) -> str:
    """Return the examples of a command as the epilog of its help; a line with ``#`` describes the command after it.

    A unit test parses each of them.
    """
    # "\b" keeps click from rewrapping the paragraph.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
