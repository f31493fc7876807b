"""A trace as text: one line for each span with its offset, time and bar, and a line where nothing was recorded.

Pure; colours are the terminal's sixteen. The tree is :mod:`services.cli.spans`.
"""

from collections.abc import Sequence

import click
import msgspec

from services.cli.spans import Node, Span, gaps, window

BAR = 28
"""Columns of a bar."""
GAP_NANOSECONDS = 2_000_000
"""Shorter holes are the cost of waking up, and not shown."""
_COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow")
_PREFIX = "hotnic-"


class Style(msgspec.Struct, frozen=True):
    """What the terminal can show.

    :ivar columns: lines are cut there; ``None`` leaves them whole. :ivar unicode: block elements can be printed.
    """

    colour: bool = False
    columns: int | None = None
    unicode: bool = True


def render(nodes: Sequence[Node], style: Style = Style()) -> list[str]:  # noqa: B008
    """The lines of a waterfall; none for no spans."""
    if not nodes:
        return []
    spans = [node.span for node in nodes]
    begin, end = window(spans)
    services = list(dict.fromkeys(short(span.service) for span in spans))
    width = max(len(name) for name in services)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(services)}
    holes = {until: (since, until) for since, until in gaps(spans, GAP_NANOSECONDS)}
    header = f"{'OFFSET':>9}  {'TIME':>9}  {'':{BAR}}  {'SERVICE':{width}}  SPAN (times in ms)"
    lines = [_cut(header, style)]
    for node in nodes:
        span = node.span
        hole = holes.pop(span.start, None)
        if hole is not None:
            quiet = _bar(hole[0], hole[1], begin, end, "." if not style.unicode else "·")
            text = f"{_ms(hole[0] - begin)}  {_ms(hole[1] - hole[0])}  {quiet}  {'':{width}}  (nothing recorded)"
            lines.append(_painted(text, style, dim=True))
        lines.append(_line(node, begin, end, width, colours[short(span.service)], style))
        if span.error is not None:
            indent = " " * (9 + 2 + 9 + 2 + BAR + 2 + width + 2 + 2 * node.depth)
            lines.append(_painted(f"{indent}! {' '.join(span.error.split())}", style, fg="red"))
    return lines


def summary(nodes: Sequence[Node]) -> str:
    """One line about the whole trace."""
    spans = [node.span for node in nodes]
    begin, end = window(spans)
    errors = sum(span.error is not None for span in spans)
    quiet = sum(until - since for since, until in gaps(spans, GAP_NANOSECONDS))
    services = len({span.service for span in spans})
    parts = [
        f"trace {spans[0].trace_id}",
        f"{len(spans)} span{'s' * (len(spans) != 1)} of {services} service{'s' * (services != 1)}",
        f"{(end - begin) / 1e6:.1f} ms",
    ]
    if quiet:
        parts.append(f"{quiet / 1e6:.1f} ms with nothing recorded")
    if errors:
        parts.append(f"{errors} failed")
    return ", ".join(parts)


def short(service: str) -> str:
    """A service as it is shown: ``api`` for ``hotnic-api``."""
    return printable(service.removeprefix(_PREFIX)) or "?"


def printable(text: str) -> str:
    """The text on one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def _line(node: Node, begin: int, end: int, width: int, colour: str, style: Style) -> str:
    span = node.span
    bar = _bar(span.start, span.end, begin, end, "█" if style.unicode else "#")
    name = f"{'  ' * node.depth}{printable(span.name)}"
    if node.orphan:
        name += "  (its parent is not in these files)"
    head = f"{_ms(span.start - begin)}  {_ms(span.end - span.start)}  "
    text = _cut(f"{head}{bar}  {short(span.service):{width}}  {name}".rstrip(), style)
    if not style.colour:
        return text
    edge = len(head) + BAR
    painted = click.style(text[len(head) : edge], fg="red" if span.error is not None else colour)
    return text[: len(head)] + painted + text[edge:]


def _cut(text: str, style: Style) -> str:
    if not style.columns or len(text) <= style.columns:
        return text
    return text[: style.columns - 1] + ("…" if style.unicode else "~")


def _bar(start: int, end: int, first: int, last: int, mark: str) -> str:
    whole = max(1, last - first)
    left = min(BAR - 1, (start - first) * BAR // whole)
    length = max(1, min(BAR - left, -(-(end - start) * BAR // whole)))
    return f"{' ' * left}{mark * length}".ljust(BAR)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:9.1f}"


def _painted(text: str, style: Style, *, fg: str | None = None, dim: bool = False) -> str:
    text = _cut(printable(text), style)
    return click.style(text, fg=fg, dim=dim) if style.colour else text


def as_document(nodes: Sequence[Node]) -> dict[str, object]:
    """The trace for ``-o json``; times in milliseconds since its beginning."""
    spans: list[Span] = [node.span for node in nodes]
    begin, end = window(spans)
    return {
        "traceId": spans[0].trace_id,
        "durationMs": (end - begin) / 1e6,
        "spans": [
            {
                "service": node.span.service,
                "name": node.span.name,
                "spanId": node.span.span_id,
                "parentSpanId": node.span.parent_id,
                "depth": node.depth,
                "offsetMs": (node.span.start - begin) / 1e6,
                "durationMs": (node.span.end - node.span.start) / 1e6,
                "error": node.span.error,
                "attributes": node.span.attributes,
            }
            for node in nodes
        ],
        "gaps": [
            {"offsetMs": (since - begin) / 1e6, "durationMs": (until - since) / 1e6}
            for since, until in gaps(spans, GAP_NANOSECONDS)
        ],
    }
