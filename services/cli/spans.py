"""Span files into one tree: OTLP-JSON lines, of which the last may be half written, and parents that may be missing.

Pure. The format is that of opentelemetry-proto's JSON encoding (``TracesData``: hex ids, nanoseconds as strings).
How a tree is drawn is :mod:`services.cli.waterfall`, where the files are is :mod:`services.cli.trace`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

ERROR = (2, "STATUS_CODE_ERROR")


class Span(msgspec.Struct, frozen=True):
    """One piece of work.

    :ivar parent_id: ``""`` for the root. :ivar start: nanoseconds since the epoch, as :ivar:`end`, never before start.
    :ivar error: what failed; ``None`` when nothing did.
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


class Node(msgspec.Struct, frozen=True):
    """A span in its place.

    :ivar depth: 0 for a root. :ivar orphan: its parent is not among the spans.
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
    """The spans of one line.

    :raises ValueError: it is not (yet) a whole line of OTLP-JSON.
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
    """The spans of all lines, each once, and how many lines could not be read."""
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


def tree(spans: Iterable[Span]) -> list[Node]:
    """The spans of one trace, every one once, parents before their children, siblings by time.

    A span whose parent is not there is a root too, as is one of a ring of spans that name each other as parent.
    """
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[Span]] = {}
    roots = []
    for span in sorted(by_id.values(), key=lambda span: (span.start, span.span_id)):
        if span.parent_id in by_id and span.parent_id != span.span_id:
            children.setdefault(span.parent_id, []).append(span)
        else:
            roots.append(span)
    nodes: list[Node] = []
    placed: set[str] = set()
    for root in roots:
        nodes += _below(root, children, placed)
    for span in by_id.values():
        if span.span_id not in placed:
            nodes += _below(span, children, placed)
    return nodes


def _below(root: Span, children: dict[str, list[Span]], placed: set[str]) -> Iterator[Node]:
    waiting = [(root, 0)]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id in placed:
            continue
        placed.add(span.span_id)
        yield Node(span, depth, orphan=depth == 0 and span.parent_id != "")
        waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, ()))]


def window(spans: Iterable[Span]) -> tuple[int, int]:
    """When the first span began and the last one ended.

    :raises ValueError: there are no spans.
    """
    known = list(spans)
    return min(span.start for span in known), max(span.end for span in known)


def gaps(spans: Iterable[Span], least: int) -> list[tuple[int, int]]:
    """When nothing was recorded at work: the holes of at least ``least`` nanoseconds between spans, in order.

    A root with children that covers more than half of the trace stands for the wait itself and fills no hole.
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
    holes = []
    reached = begin
    for span in busy:
        if span.start - reached >= least:
            holes.append((reached, span.start))
        reached = max(reached, span.end)
    return holes


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
    # A value is an object with one member that names its type (AnyValue).
    return {item.key: str(next(iter(item.value.values()), "")) for item in attributes}
