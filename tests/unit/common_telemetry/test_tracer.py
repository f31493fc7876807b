"""Spans record exceptions as errors, except a conflict with another writer."""

import pytest
from opentelemetry.trace import StatusCode, set_span_in_context

from services.common.kube.errors import Conflict
from services.common.reconcile import Retry
from services.common.telemetry.propagation import span_context
from services.common.telemetry.tracer import MAX_NAME_CHARS, MAX_VALUE_CHARS, RoleTracer, use_span
from tests.support.telemetry.spans import named, recording_telemetry


def guarded_conflict() -> Conflict:
    error = Conflict("changed")
    error.conflict = True
    return error


@pytest.mark.parametrize(
    ("error", "conflict"),
    [
        (guarded_conflict(), True),
        (Conflict("changed"), False),
        (Retry("PodChanged", "changed", after=0.0), True),
        (Retry("NoSandbox", "not yet"), False),
        (Retry("VmiChanged", "kept changing", after=0.1), False),
        (ValueError("malformed"), False),
    ],
)
@pytest.mark.parametrize("current", ["start_as_current_span", "use_span"])
def test_only_a_conflict_is_no_error(error: Exception, conflict: bool, current: str) -> None:
    telemetry, exporter = recording_telemetry()
    assert isinstance(telemetry.tracer, RoleTracer)
    if current == "use_span":
        span = telemetry.tracer.start_span("work")
        with pytest.raises(type(error)), use_span(span):
            raise error
        span.end()
    else:
        with pytest.raises(type(error)), telemetry.tracer.start_as_current_span("work"):
            raise error
    (finished,) = exporter.get_finished_spans()
    assert (finished.attributes or {}).get("hotnic.conflict", False) is conflict
    assert finished.status.status_code is (StatusCode.UNSET if conflict else StatusCode.ERROR)
    assert [event.name for event in finished.events] == ([] if conflict else ["exception"])
    if not conflict:
        assert finished.status.description == f"{type(error).__name__}: {error}"


def test_no_text_of_a_user_makes_a_span_large() -> None:
    telemetry, exporter = recording_telemetry()
    long = "x" * 1_000_000
    telemetry.tracer.start_span(f"unplug {long}", attributes={"name": long, "names": [long, long]}).end()
    with pytest.raises(ValueError, match="x"), telemetry.tracer.start_as_current_span(f"plug {long}"):
        raise ValueError(long)
    for found in exporter.get_finished_spans():
        assert len(found.name) == MAX_NAME_CHARS
        assert len(found.to_json()) < 12 * MAX_VALUE_CHARS


def test_no_password_of_an_address_is_recorded() -> None:
    telemetry, exporter = recording_telemetry()
    error = ValueError("cannot reach http://user:secret@proxy:3128/")
    with pytest.raises(ValueError, match="cannot"), telemetry.tracer.start_as_current_span("work"):
        raise error from OSError("407 of http://user:secret@proxy:3128")
    (span,) = exporter.get_finished_spans()
    assert "secret" not in f"{span.status.description} {[event.attributes for event in span.events]}"
    assert "proxy:3128" in str(span.status.description)


def test_caller_can_record_exceptions_itself() -> None:
    telemetry, exporter = recording_telemetry()
    options = {"record_exception": False, "set_status_on_exception": False}
    with pytest.raises(ValueError, match="x"), telemetry.tracer.start_as_current_span("work", **options):  # type: ignore[arg-type]
        raise ValueError("x")
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, list(span.events)) == (StatusCode.UNSET, [])


def test_span_has_its_parent_and_its_options_and_may_end_later() -> None:
    telemetry, exporter = recording_telemetry()
    root = telemetry.tracer.start_span("root")
    with telemetry.tracer.start_as_current_span(
        "work", context=set_span_in_context(root), attributes={"a": "b"}, start_time=1, end_on_exit=False
    ) as span:
        assert span_context(None) == span.get_span_context()
    assert exporter.get_finished_spans() == ()
    span.end()
    work = named(exporter.get_finished_spans(), "work")
    assert (dict(work.attributes or {}), work.start_time) == ({"a": "b"}, 1)
    assert work.parent == root.get_span_context()
