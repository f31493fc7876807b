"""Renders a trace as text: a line with offset, duration and bar for each span, and a line for each gap without spans.

Pure. It uses the terminal's 16 colours only. The tree of spans is :mod:`services.cli.tracing.spans`.
"""

from collections.abc import Sequence

import click
import msgspec

from schemas.inputs import one_line
from services.cli.tracing.spans import Span, SpanNode, gaps, window

BAR = 28
"""Width of a bar in columns."""
GAP_NANOSECONDS = 2_000_000
"""Shorter gaps are scheduling latency and are not shown."""
_COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow")
_PREFIX = "hotnic-"


class Style(msgspec.Struct, frozen=True):
    """The capabilities of the terminal.

    :ivar columns: lines are truncated to this width; ``None`` does not truncate.
    :ivar unicode: whether block elements can be printed.
    """

    colour: bool = False
    columns: int | None = None
    unicode: bool = True


def render(nodes: Sequence[SpanNode], style: Style = Style()) -> list[str]:  # noqa: B008
    """Return the lines of a waterfall; empty without spans."""
    if not nodes:
        return []
    spans = [node.span for node in nodes]
    begin, end = window(spans)
    services = list(dict.fromkeys(short_service(span.service) for span in spans))
    width = max(len(name) for name in services)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(services)}
    gap_starts = {until: (since, until) for since, until in gaps(spans, GAP_NANOSECONDS)}
    header = f"{'OFFSET':>9}  {'TIME':>9}  {'':{BAR}}  {'SERVICE':{width}}  SPAN (times in ms)"
    lines = [_cut(header, style)]
    for node in nodes:
        span = node.span
        gap = gap_starts.pop(span.start, None)
        if gap is not None:
            gap_bar = _bar(gap[0], gap[1], begin, end, "." if not style.unicode else "·")
            text = f"{_ms(gap[0] - begin)}  {_ms(gap[1] - gap[0])}  {gap_bar}  {'':{width}}  (no spans)"
            lines.append(_painted(text, style, dim=True))
        lines.append(_line(node, begin, end, width, colours[short_service(span.service)], style))
        if span.error is not None:
            indent = " " * (9 + 2 + 9 + 2 + BAR + 2 + width + 2 + 2 * node.depth)
            lines.append(_painted(f"{indent}! {' '.join(span.error.split())}", style, fg="red"))
    return lines


def summary(nodes: Sequence[SpanNode]) -> str:
    """Return one line about the whole trace."""
    spans = [node.span for node in nodes]
    begin, end = window(spans)
    errors = sum(span.error is not None for span in spans)
    gap_time = sum(until - since for since, until in gaps(spans, GAP_NANOSECONDS))
    services = len({span.service for span in spans})
    parts = [
        f"trace {one_line(spans[0].trace_id)}",
        f"{len(spans)} span{'s' * (len(spans) != 1)} of {services} service{'s' * (services != 1)}",
        f"{(end - begin) / 1e6:.1f} ms",
    ]
    if gap_time:
        parts.append(f"{gap_time / 1e6:.1f} ms without spans")
    if errors:
        parts.append(f"{errors} failed")
    return ", ".join(parts)


def short_service(service: str) -> str:
    """Return the displayed name of a service: ``api`` for ``hotnic-api``."""
    return one_line(service.removeprefix(_PREFIX)) or "?"


def _line(node: SpanNode, begin: int, end: int, width: int, colour: str, style: Style) -> str:
    span = node.span
    bar = _bar(span.start, span.end, begin, end, "█" if style.unicode else "#")
    name = f"{'  ' * node.depth}{one_line(span.name)}"
    if node.orphan:
        name += "  (parent span not found)"
    head = f"{_ms(span.start - begin)}  {_ms(span.end - span.start)}  "
    text = _cut(f"{head}{bar}  {short_service(span.service):{width}}  {name}".rstrip(), style)
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
    # The two minus signs round up.
    length = max(1, min(BAR - left, -(-(end - start) * BAR // whole)))
    return f"{' ' * left}{mark * length}".ljust(BAR)


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:9.1f}"


def _painted(text: str, style: Style, *, fg: str | None = None, dim: bool = False) -> str:
    text = _cut(one_line(text), style)
    return click.style(text, fg=fg, dim=dim) if style.colour else text


def as_document(nodes: Sequence[SpanNode]) -> dict[str, object]:
    """Return the trace as a document for ``-o json``, with times in milliseconds since its start."""
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
