"""The files of spans: private, bounded in size and number, and read whole by ``hotnic trace``."""

import os
from pathlib import Path

import pytest

from services.cli.tracing.span_files import spans_of_trace
from services.common.telemetry import configure
from services.common.telemetry.otlp import InvalidOtelVariable
from services.common.telemetry.trace_files import MAX_BYTES, TraceFile


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    written = TraceFile(folder, "api", "_", max_files=3, max_bytes=1000)
    for number in range(200):
        written.write(f"{number:099}\n")
        assert len(os.listdir(folder)) <= 3
    written.close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert modes(folder) == {0o600}
    contents = sorted(path.read_text() for path in folder.iterdir())
    assert [len(content) for content in contents] == [1000] * 3
    assert [int(number) for number in "".join(contents).split()] == list(range(170, 200))


def test_a_line_that_is_too_large_is_refused(tmp_path: Path) -> None:
    written = TraceFile(tmp_path, "api", "_", max_bytes=1000)
    with pytest.raises(ValueError, match="1001 bytes"):
        written.write("é" * 500 + "\n")
    written.close()


def test_files_of_ended_processes_count_and_those_of_others_stay(tmp_path: Path) -> None:
    """A live process' file is never removed, nor that of another role or node."""
    for number in range(9):
        (tmp_path / f"cli-_-{900000 + number}.jsonl").touch()
    others = {"cli-_-1.json", "api-_-1.jsonl", "cli-n1-1.jsonl", "cli-_-x.jsonl"}
    for name in others:
        (tmp_path / name).touch()
    live = TraceFile(tmp_path, "cli", "_", max_files=99)
    own = next(path for path in tmp_path.iterdir() if path.name == f"cli-_-{os.getpid()}.jsonl")
    own.rename(tmp_path / "cli-_-4.jsonl")
    os.utime(tmp_path / "cli-_-4.jsonl", (0, 0))
    TraceFile(tmp_path, "cli", "_", max_files=2).close()
    left = set(os.listdir(tmp_path))
    assert left >= others | {"cli-_-4.jsonl", own.name}
    assert len(left - others) <= 3
    live.close()


def test_an_existing_file_becomes_private_and_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"api-_-{os.getpid()}.jsonl"
    path.write_text("before\n")
    path.chmod(0o644)
    written = TraceFile(tmp_path, "api", "_")
    written.write("after\n")
    written.close()
    assert path.read_text() == "before\nafter\n"
    assert modes(tmp_path) == {0o600}
    path.rename(tmp_path / "target")
    path.symlink_to("target")
    with pytest.raises(OSError, match=path.name):
        TraceFile(tmp_path, "api", "_")


def test_a_trace_is_read_from_all_files_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", str(MAX_BYTES))
    telemetry = configure("api", environ={"HOTNIC_TRACE_DIR": str(tmp_path), "HOTNIC_TRACE_FILES": "3"})
    with telemetry.tracer.start_as_current_span("root") as root:
        for number in range(12):
            telemetry.tracer.start_span(f"span {number}", attributes={"text": "x" * (MAX_BYTES // 3)}).end()
    telemetry.shutdown()
    assert len(os.listdir(tmp_path)) == 3
    assert all(path.stat().st_size <= MAX_BYTES for path in tmp_path.iterdir())
    spans = spans_of_trace(tmp_path, f"{root.get_span_context().trace_id:032x}")
    assert {span.name for span in spans} == {"root", *(f"span {number}" for number in range(6, 12))}


@pytest.mark.parametrize("value", ["0", "1", "many", "-3"])
def test_a_number_of_files_that_cannot_be_kept_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOtelVariable, match=r"^HOTNIC_TRACE_FILES: .* no whole number of 2 or more"):
        configure("cli", environ={"HOTNIC_TRACE_DIR": str(tmp_path), "HOTNIC_TRACE_FILES": value})
