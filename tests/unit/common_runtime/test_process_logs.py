"""Logs: one format for all lines, with the ids of their trace."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from services.common.telemetry.logs import Format, configure
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Return a stream for the lines, and restore the handlers of the process afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("hotnic").level
    yield io.StringIO()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("hotnic").setLevel(before[2])
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_those_of_libraries_have_one_format(stream: io.StringIO) -> None:
    log = configure("api", level="info", form="json", stream=stream)
    log.info("nic attached", nic="eth1", key=("ns", "vm"), odd=object)
    log.debug("not shown")
    logging.getLogger("nats.client").warning("slow %s", "consumer")
    logging.getLogger("some.library").info("not shown either")
    ours, theirs = lines(stream)
    assert (ours["event"], ours["level"], ours["logger"], ours["role"]) == ("nic attached", "info", "hotnic.api", "api")
    assert (ours["nic"], ours["key"]) == ("eth1", ["ns", "vm"])
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("slow consumer", "warning", "nats.client")
    assert str(ours["timestamp"]).endswith("Z")


def test_a_line_has_the_ids_of_the_current_span(stream: io.StringIO) -> None:
    telemetry, _ = recording_telemetry()
    log = configure("api", form="json", stream=stream)
    with telemetry.tracer.start_as_current_span("request") as span:
        log.info("inside")
        log.info("of another", trace_id="f" * 32)
    log.info("outside", trace_id=None)
    inside, another, outside = lines(stream)
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert inside["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert another["trace_id"] == "f" * 32
    assert "span_id" not in another
    assert "trace_id" not in outside


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_in_its_line(stream: io.StringIO, form: Format) -> None:
    log = configure("api", form=form, stream=stream)
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError:
        log.exception("failed")
    text = stream.getvalue()
    assert "ZeroDivisionError: oops" in text
    assert "Traceback" in text
    if form == "json":
        assert len(text.splitlines()) == 1


def test_level_debug_shows_libraries_from_info(stream: io.StringIO) -> None:
    log = configure("api", level="debug", form="json", stream=stream)
    log.debug("ours")
    logging.getLogger("hotnic.http").debug("GET / 200")
    logging.getLogger("some.library").info("theirs")
    logging.getLogger("some.library").debug("not shown")
    assert [line["event"] for line in lines(stream)] == ["ours", "GET / 200", "theirs"]


def test_rich_is_not_imported_for_logs() -> None:
    code = "import sys, services.common.telemetry.logs; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
