"""Formats of output, options and help texts as kubectl has them: tables, JSON, durations, examples.

Only this module writes: what a VM, a guest or a server says may hold control characters, which a terminal would
interpret, and an address with a password. No terminal library.
Next: :mod:`services.cli.tracing.waterfall`, which draws a trace.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from services.common.telemetry.redact import redact_text

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


def say(*lines: str, err: bool = False) -> None:
    """Write lines without control characters and passwords; a line break inside of one does not begin another.

    :param err: write them to standard error.
    """
    from schemas.inputs import one_line

    for line in lines:
        click.echo(one_line(redact_text(line)), err=err)


def say_styled(lines: Sequence[str]) -> None:
    """Write lines as they are: their author has added colours, and has replaced control characters before that."""
    for line in lines:
        click.echo(line)


def say_json(value: Any, *, indent: bool = True) -> None:
    """Write a value that msgspec can encode as JSON: on one line, or indented."""
    import msgspec

    encoded = msgspec.json.encode(value)
    text = (msgspec.json.format(encoded, indent=2) if indent else encoded).decode()
    click.echo("".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text))


def _escape(character: str) -> str:
    """Return a character of a string as JSON may write it: the units of UTF-16."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: columns aligned to the left, three spaces apart, without trailing spaces."""
    lines = [header, *rows]
    column_widths = widths(lines)
    return [row(line, column_widths) for line in lines]


def widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column."""
    return [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]


def row(cells: Sequence[str], column_widths: Sequence[int]) -> str:
    """Return one line of a table; a cell that is wider than its column shifts the cells after it."""
    return "   ".join(cell.ljust(width) for cell, width in zip(cells, column_widths, strict=True)).rstrip()


def examples(*lines: str) -> str:
    """Return the examples of a command as the epilog of its help; a line with ``#`` describes the command after it.

    A unit test parses each of them.
    """
    # "\b" keeps click from rewrapping the paragraph.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
