"""Telemetry that records spans, and span trees as plain data for comparisons."""

from collections.abc import Iterable, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.telemetry.setup import Telemetry, build

Tree = list[tuple[str, "Tree"]]
"""Spans by name, each with its children, in the order of their start."""


def recording_telemetry(role: str = "test") -> tuple[Telemetry, InMemorySpanExporter]:
    """Return a new telemetry and the exporter with its finished spans."""
    exporter = InMemorySpanExporter()
    return build(role, Resource({"service.name": f"hotnic-{role}"}), [SimpleSpanProcessor(exporter)]), exporter


def tree(spans: Iterable[ReadableSpan]) -> Tree:
    """Return the spans as nested ``(name, children)``. A span without its parent among them is a root."""
    ordered = sorted(spans, key=lambda span: span.start_time or 0)
    known = {_id(span) for span in ordered}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)

    def below(parent: int | None) -> Tree:
        return [(span.name, below(_id(span))) for span in children.get(parent, [])]

    return below(None)


def named(spans: Iterable[ReadableSpan], name: str) -> ReadableSpan:
    """Return the only span of this name."""
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, f"{len(found)} spans are named {name!r}"
    return found[0]


def one_trace(spans: Sequence[ReadableSpan]) -> bool:
    """Return whether all spans belong to one trace."""
    return len({span.context.trace_id for span in spans if span.context is not None}) == 1


def _id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)
