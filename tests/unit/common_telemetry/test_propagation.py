"""Trace context in annotations, headers and queues."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context

from services.common.telemetry.propagation import (
    NO_TRACE,
    context_of,
    inject,
    links,
    parent_of,
    span_context,
    trace_entry,
    trace_id_of,
    traceparent_of,
    unrecorded,
)
from tests.support.telemetry.spans import recording_telemetry

ONE = "00-" + "1" * 32 + "-" + "a" * 16 + "-01"
ONE_LATER = "00-" + "1" * 32 + "-" + "b" * 16 + "-01"
OTHER = "00-" + "2" * 32 + "-" + "c" * 16 + "-01"


@dataclass(frozen=True)
class Cause:
    context: Context | None


@dataclass(frozen=True)
class Attempt:
    causes: tuple[Cause, ...]


def attempt(*traceparents: str | None) -> Attempt:
    return Attempt(tuple(Cause(context_of(traceparent)) for traceparent in traceparents))


def test_traceparent_round_trip() -> None:
    assert traceparent_of(context_of(ONE)) == ONE
    assert trace_id_of(context_of(ONE)) == "1" * 32


@pytest.mark.parametrize("text", [None, "", "x", "00-" + "0" * 32 + "-" + "a" * 16 + "-01", ONE[:-3], ONE + "-x"])
def test_a_malformed_traceparent_is_none(text: str | None) -> None:
    assert context_of(text) is None


@given(st.text())
def test_any_text_is_a_context_or_none(text: str) -> None:
    found = context_of(text)
    assert found is None or span_context(found).is_valid


def test_outside_of_any_span_nothing_is_injected() -> None:
    headers: dict[str, str] = {"other": "x"}
    inject(headers)
    assert headers == {"other": "x"}
    assert traceparent_of() is None
    assert trace_id_of() is None


def test_the_current_span_is_injected() -> None:
    telemetry, _ = recording_telemetry()
    headers: dict[str, str] = {}
    with telemetry.tracer.start_as_current_span("here") as span:
        inject(headers)
        assert traceparent_of() == headers["traceparent"]
    assert span_context(context_of(headers["traceparent"])).span_id == span.get_span_context().span_id


def test_the_parent_is_the_latest_cause_of_the_same_trace() -> None:
    found = parent_of(ONE, attempt(ONE, None, ONE_LATER, OTHER))
    assert traceparent_of(found) == ONE_LATER


@pytest.mark.parametrize("causes", [(), (None,), (OTHER,), (None, OTHER)])
def test_without_a_cause_in_the_trace_the_request_is_the_parent(causes: tuple[str | None, ...]) -> None:
    assert traceparent_of(parent_of(ONE, attempt(*causes))) == ONE


def test_work_without_a_traceparent_has_no_parent() -> None:
    assert parent_of(None, attempt(OTHER)) is None


def test_links_leave_out_contexts_without_a_span() -> None:
    (link,) = links(None, context_of(OTHER), Context(), redelivered=True)
    assert link.context.trace_id == int("2" * 32, 16)
    assert dict(link.attributes or {}) == {"redelivered": True}
    assert not trace.get_current_span().is_recording()


def test_work_that_is_not_recorded_keeps_the_trace_id_and_creates_no_spans() -> None:
    telemetry, exporter = recording_telemetry()
    for traceparent, wanted in ((ONE, int("1" * 32, 16)), (None, NO_TRACE)):
        telemetry.tracer.start_span("unrecorded", context=unrecorded(traceparent)).end()
        assert span_context(unrecorded(traceparent)).trace_id == wanted
    assert exporter.get_finished_spans() == ()


def test_a_sampled_caller_is_the_parent_and_an_unsampled_one_is_linked() -> None:
    parent, links_to = trace_entry(ONE)
    assert (traceparent_of(parent), links_to) == (ONE, [])
    parent, (link,) = trace_entry(ONE[:-1] + "0")
    assert parent == Context()
    assert link.context == span_context(context_of(ONE[:-1] + "0"))
    assert trace_entry("nonsense") == (None, [])
