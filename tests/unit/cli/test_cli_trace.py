"""Span files, the tree of spans and the waterfall, for valid and invalid files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.layout import Layout, lab_dir
from schemas.kubernetes.operations import Operation, encode_annotation, operation_key
from schemas.stages import OperationKind
from services.cli.__main__ import main
from services.cli.commands.trace import trace_id_of
from services.cli.errors import CommandFailed
from services.cli.tracing.span_files import latest_operation, spans_of_operation, spans_of_trace, trace_folder
from services.cli.tracing.spans import Span, gaps, parse, parse_line, span_tree, window
from services.cli.tracing.tracer import NoTraces, caller_entry, configure_tracing
from services.cli.tracing.waterfall import Style, as_document, render, summary
from services.common.telemetry.propagation import trace_id_of as context_trace_id
from tests.support.observed import objects

TRACE = "0af7651916cd43dd8448eb211c80319c"
OPERATION = "40f4eb5a-4389-4458-93cd-cd308fc9999e"
MS = 1_000_000

ids = st.sampled_from([f"{number:016x}" for number in range(1, 9)])
times = st.integers(0, 100 * MS)
spans = st.builds(
    lambda span, parent, service, name, start, took, error: Span(
        TRACE, span, parent, service, name, start, start + took, error
    ),
    ids,
    st.one_of(st.just(""), ids, st.just("f" * 16)),
    st.sampled_from(["hotnic-api", "hotnic-handler", "other", ""]),
    st.text(),
    times,
    times,
    st.one_of(st.none(), st.text()),
)
span_lists = st.lists(spans, unique_by=lambda span: span.span_id)


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_trace_reads_the_span_files_of_the_lab_by_default(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("HOTNIC_TRACE_DIR", None), ("HOTNIC_LAB_DIR", chosen)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    traces = Layout(lab_dir()).traces
    traces.mkdir(parents=True)
    assert trace_folder(None) == traces


def line(
    name: str,
    span: str,
    parent: str = "",
    *,
    service: str = "hotnic-api",
    start: int = 0,
    end: int = MS,
    trace: str = TRACE,
    error: str | None = None,
    attributes: dict[str, str] | None = None,
) -> str:
    """Return a line as OpenTelemetry's file exporter writes it."""
    body: dict[str, Any] = {
        "traceId": trace,
        "spanId": span,
        "flags": 256,
        "name": name,
        "kind": 2,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in (attributes or {}).items()],
        "status": {} if error is None else {"code": 2, "message": error},
    }
    if parent:
        body["parentSpanId"] = parent
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scope = {"scope": {"name": "hotnic.api"}, "spans": [body]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}) + "\n"


@given(st.binary())
def test_any_bytes_are_parsed_without_an_exception(data: bytes) -> None:
    found, unreadable = parse([data])
    assert found == []
    assert unreadable in (0, 1)


@given(st.integers(1, 400))
def test_incomplete_line_gives_no_span(length: int) -> None:
    whole = line("PUT", "1" * 16)
    found, unreadable = parse([whole, whole[: min(length, len(whole) - 2)]])
    assert [span.name for span in found] == ["PUT"]
    assert unreadable == 1


def test_span_has_service_error_and_attributes() -> None:
    (span,) = parse_line(line("PUT", "AB" * 8, "CD" * 8, start=5, end=3, error="boom", attributes={"a": "b"}))
    assert span == Span(TRACE, "ab" * 8, "cd" * 8, "hotnic-api", "PUT", 5, 5, "boom", {"a": "b"})


@given(span_lists)
def test_tree_has_every_span_once_and_parents_first(forest: list[Span]) -> None:
    nodes = span_tree(forest)
    assert sorted(node.span.span_id for node in nodes) == sorted(span.span_id for span in forest)
    above: list[Span] = []
    for node in nodes:
        del above[node.depth :]
        if node.depth:
            assert above[-1].span_id == node.span.parent_id
        above.append(node.span)


@given(span_lists, st.integers(1, 20 * MS))
def test_no_span_but_a_waiting_root_is_active_in_a_gap(forest: list[Span], least: int) -> None:
    found = gaps(forest, least)
    ids, parents = {span.span_id for span in forest}, {span.parent_id for span in forest}
    for since, until in found:
        assert until - since >= least
        begin, end = window(forest)
        assert begin <= since < until <= end
        for span in forest:
            if span.start < until and span.end > since and span.end > span.start:
                assert span.parent_id not in ids
                assert span.span_id in parents
    assert found == sorted(found)


@given(span_lists, st.one_of(st.none(), st.integers(0, 200)), st.booleans())
def test_waterfall_has_a_printable_line_for_every_span(forest: list[Span], columns: int | None, unicode: bool) -> None:
    lines = render(span_tree(forest), Style(columns=columns, unicode=unicode))
    errors = sum(span.error is not None for span in forest)
    assert len(lines) >= len(forest) + errors + bool(forest)
    for text in lines:
        assert text.isprintable()
        assert not columns or len(text) <= columns


def test_waterfall_shows_gaps_errors_and_orphans() -> None:
    forest = [
        Span(TRACE, "1", "", "hotnic-cli", "hotnic addinterface", 0, 100 * MS),
        Span(TRACE, "2", "1", "hotnic-api", "PUT", 0, 10 * MS),
        Span(TRACE, "3", "2", "hotnic-handler", "qmp device_add", 50 * MS, 60 * MS, "no slot"),
        Span(TRACE, "4", "9", "hotnic-multus", "lost", 60 * MS, 100 * MS),
    ]
    text = "\n".join(render(span_tree(forest)))
    assert "10.0       40.0" in text
    assert "(no spans)" in text
    assert "! no slot" in text
    assert "lost  (parent span not found)" in text
    line_about_trace = summary(span_tree(forest))
    assert "4 spans of 4 services, 100.0 ms, 40.0 ms without spans, 1 failed" in line_about_trace
    shown = as_document(span_tree(forest))
    assert shown["gaps"] == [{"offsetMs": 10.0, "durationMs": 40.0}]
    assert render([]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Span files of two operations, of which one is later, and of a trace without an operation."""
    other, noise = "1" * 32, "2" * 32
    (tmp_path / "api-lab-1.jsonl").write_text(
        line("PUT", "a" * 16, start=10 * MS, end=20 * MS)
        + line(
            "send hotplug.requested", "b" * 16, "a" * 16, start=12 * MS, attributes={"hotnic.operation.id": OPERATION}
        )
        + line("PUT", "c" * 16, trace=other, start=5 * MS)
        + line("send hotplug.requested", "d" * 16, "c" * 16, trace=other, start=6 * MS)
        + line("kube list pods", "e" * 16, trace=noise, start=90 * MS)
    )
    (tmp_path / "handler-lab-2.jsonl").write_text(line("qmp device_add", "f" * 16, "b" * 16, start=13 * MS) + '{"reso')
    return tmp_path


def test_spans_of_a_trace_are_read_from_all_files(folder: Path) -> None:
    assert {span.name for span in spans_of_trace(folder, TRACE.upper())} == {
        "PUT",
        "send hotplug.requested",
        "qmp device_add",
    }
    assert len(spans_of_operation(folder, OPERATION)) == 3
    assert {span.trace_id for span in latest_operation(folder)} == {TRACE}


@pytest.mark.parametrize("target", ["9" * 32, OPERATION.replace("4", "5")])
def test_unknown_trace_is_an_error(folder: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", target, "--dir", str(folder)]) == 1
    assert target in capsys.readouterr().err
    assert main(["trace", target, "--dir", str(folder / "nowhere")]) == 1
    assert "HOTNIC_TRACE_DIR" in capsys.readouterr().err


def test_trace_by_id_needs_no_cluster(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    for arguments in ([TRACE], [OPERATION], ["--last"]):
        assert main(["trace", *arguments, "--dir", str(folder)]) == 0
        drawn = capsys.readouterr().out
        assert "qmp device_add" in drawn
        assert TRACE in drawn
    assert main(["trace", "--last", "--dir", str(folder), "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [span["depth"] for span in document["spans"]] == [0, 1, 2]


def test_trace_of_a_vm_is_that_of_its_latest_operation() -> None:
    def operation(interface: str, trace: str, at: str) -> dict[str, str]:
        written = Operation(
            interface, OperationKind.PLUG, interface, traceparent=f"00-{trace}-{'1' * 16}-01", requested_at=at
        )
        return {operation_key(interface): encode_annotation(written)}

    vmi = objects.vmi(
        objects.nic("a"),
        objects.nic("b"),
        objects.nic("c"),
        annotations=operation("a", "a" * 32, "2026-01-02T00:00:00Z") | operation("b", "b" * 32, "2026-01-01T00:00:00Z"),
    )
    assert trace_id_of(vmi, None) == "a" * 32
    assert trace_id_of(vmi, "b") == "b" * 32
    with pytest.raises(CommandFailed, match="has a trace context"):
        trace_id_of(vmi, "c")
    with pytest.raises(CommandFailed, match="its secondary interfaces: a, b, c"):
        trace_id_of(vmi, "d")


def test_a_command_with_spans_links_an_unsampled_caller_and_one_without_passes_it_on(tmp_path: Path) -> None:
    caller = {"TRACEPARENT": f"00-{TRACE}-{'a' * 16}-00"}
    traces = configure_tracing({"HOTNIC_TRACE_DIR": str(tmp_path)})
    linked, passed_on = caller_entry(traces, caller), caller_entry(NoTraces(), caller)
    traces.shutdown()
    assert (context_trace_id(linked.parent), context_trace_id(passed_on.parent)) == (None, TRACE)
    assert [f"{link.context.trace_id:032x}" for link in linked.links] == [TRACE]
