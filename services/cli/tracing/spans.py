"""Parses span files and builds the tree of a trace. The last line may be incomplete, and parents may be missing.

Pure. The format is the JSON encoding of opentelemetry-proto's ``TracesData``: hex ids, nanoseconds as strings.
Next: :mod:`services.cli.tracing.waterfall`, which draws the tree. :mod:`services.cli.commands.trace` reads the files.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

# OTLP/JSON encodes an enum as its number, protobuf's own JSON mapping as its name.
ERROR = (2, "STATUS_CODE_ERROR")


class Span(msgspec.Struct, frozen=True):
    """A span.

    :ivar parent_id: ``""`` for a root.
    :ivar start: nanoseconds since the epoch.
    :ivar end: nanoseconds since the epoch, not less than ``start``.
    :ivar error: the error's message; ``None`` when the span succeeded.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start: int
    end: int
    error: str | None = None
    attributes: dict[str, str] = {}


class SpanNode(msgspec.Struct, frozen=True):
    """A span with its position in the tree.

    :ivar depth: 0 for a root.
    :ivar orphan: whether its parent is missing.
    """

    span: Span
    depth: int
    orphan: bool = False


class _Otlp(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _Attribute(_Otlp, frozen=True):
    key: str
    value: dict[str, Any] = {}


class _Status(_Otlp, frozen=True):
    code: int | str = 0
    message: str = ""


class _Span(_Otlp, frozen=True):
    trace_id: str
    span_id: str
    name: str
    start_time_unix_nano: int | str
    end_time_unix_nano: int | str
    parent_span_id: str = ""
    attributes: list[_Attribute] = []
    status: _Status = _Status()


class _Scope(_Otlp, frozen=True):
    spans: list[_Span] = []


class _Resource(_Otlp, frozen=True):
    attributes: list[_Attribute] = []


class _ResourceSpans(_Otlp, frozen=True):
    resource: _Resource = _Resource()
    scope_spans: list[_Scope] = []


class _Line(_Otlp, frozen=True):
    resource_spans: list[_ResourceSpans] = []


_decoder = msgspec.json.Decoder(_Line)


def parse_line(line: bytes | str) -> list[Span]:
    """Return the spans of one line.

    :raises ValueError: the line is not a complete line of OTLP-JSON.
    """
    try:
        decoded = _decoder.decode(line)
        return [
            _span(span, _attributes(part.resource.attributes).get("service.name", "unknown"))
            for part in decoded.resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse(lines: Iterable[bytes | str]) -> tuple[list[Span], int]:
    """Return the spans of all lines without duplicates, and the number of lines that could not be parsed."""
    found: dict[tuple[str, str], Span] = {}
    unreadable = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            spans = parse_line(line)
        except ValueError:
            unreadable += 1
            continue
        for span in spans:
            found.setdefault((span.trace_id, span.span_id), span)
    return list(found.values()), unreadable


def span_tree(spans: Iterable[Span]) -> list[SpanNode]:
    """Return the spans of one trace in tree order: parents before their children, siblings by start time.

    A span without a known parent is a root. In a cycle of parents, one span becomes the root.
    """
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[Span]] = {}
    roots = []
    for span in sorted(by_id.values(), key=lambda span: (span.start, span.span_id)):
        if span.parent_id in by_id and span.parent_id != span.span_id:
            children.setdefault(span.parent_id, []).append(span)
        else:
            roots.append(span)
    nodes: list[SpanNode] = []
    placed: set[str] = set()
    for root in roots:
        nodes += _below(root, children, placed)
    for span in by_id.values():
        if span.span_id not in placed:
            nodes += _below(span, children, placed)
    return nodes


def _below(root: Span, children: dict[str, list[Span]], placed: set[str]) -> Iterator[SpanNode]:
    waiting = [(root, 0)]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id in placed:
            continue
        placed.add(span.span_id)
        yield SpanNode(span, depth, orphan=depth == 0 and span.parent_id != "")
        waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, ()))]


def window(spans: Iterable[Span]) -> tuple[int, int]:
    """Return the start of the first span and the end of the last one.

    :raises ValueError: there are no spans.
    """
    known = list(spans)
    return min(span.start for span in known), max(span.end for span in known)


def gaps(spans: Iterable[Span], least: int) -> list[tuple[int, int]]:
    """Return the intervals in which no span was active, in order.

    A root with children that covers more than half of the trace is not counted as active: it is the span of the
    waiting client.

    :param least: minimum length in nanoseconds.
    """
    known = sorted(spans, key=lambda span: span.start)
    if not known:
        return []
    begin, end = window(known)
    ids, parents = {span.span_id for span in known}, {span.parent_id for span in known}
    busy = [
        span
        for span in known
        if span.parent_id in ids or span.span_id not in parents or (span.end - span.start) * 2 <= end - begin
    ]
    intervals = []
    reached = begin
    for span in busy:
        if span.start - reached >= least:
            intervals.append((reached, span.start))
        reached = max(reached, span.end)
    return intervals


def _span(span: _Span, service: str) -> Span:
    start = int(span.start_time_unix_nano)
    error = None
    if span.status.code in ERROR:
        error = span.status.message or "failed"
    return Span(
        trace_id=span.trace_id.lower(),
        span_id=span.span_id.lower(),
        parent_id=span.parent_span_id.lower(),
        service=service,
        name=span.name,
        start=start,
        end=max(start, int(span.end_time_unix_nano)),
        error=error,
        attributes=_attributes(span.attributes),
    )


def _attributes(attributes: list[_Attribute]) -> dict[str, str]:
    # AnyValue: an object with one member, whose name is the type.
    return {item.key: str(next(iter(item.value.values()), "")) for item in attributes}
