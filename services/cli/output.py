"""Plain output: tables as kubectl aligns them, JSON, and durations as its options take them.

No terminal library. The waterfall of a trace is :mod:`services.cli.waterfall`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

NONE = "<none>"
UNKNOWN = "<unknown>"


class Duration(click.ParamType[float]):
    """A span of time such as ``2m``, ``90s``, ``1m30s``, ``500ms``; a bare number is seconds. The value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it."""
        if isinstance(value, float):
            return value
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no duration (such as 90s, 2m, 1h30m)", param, ctx)
        return seconds


def parse_duration(text: str) -> float | None:
    """Seconds, or ``None`` for what is no duration."""
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, three spaces apart, no line with spaces at its end."""
    lines = [header, *rows]
    found = widths(lines)
    return "\n".join(row(line, found) for line in lines)


def widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column has to be."""
    return [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]


def row(cells: Sequence[str], wide: Sequence[int]) -> str:
    """One line of a table; a cell that is wider than its column pushes the others."""
    return "   ".join(cell.ljust(width) for cell, width in zip(cells, wide, strict=True)).rstrip()


def as_json(value: Any) -> str:
    """A value, which msgspec can encode, as indented JSON."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def as_line(value: Any) -> str:
    """The same on one line."""
    import msgspec

    return msgspec.json.encode(value).decode()
