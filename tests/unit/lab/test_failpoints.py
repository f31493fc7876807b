"""Failpoints fire at the spans of their effects when a test has armed them, and the services do not know them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace

from lab.failpoints.__main__ import main
from lab.failpoints.points import FAILPOINTS, FAILPOINTS_VARIABLE, PASSED, find_failpoint
from lab.failpoints.tracer import with_failpoints
from lab.layout import ROLES
from services.common.telemetry.setup import Telemetry
from tests.support.telemetry.spans import recording_telemetry, tree

REPOSITORY = Path(__file__).resolve().parents[3]
SPAN = "kube patch pods/status"
DYING = f"""
import sys
from pathlib import Path
from lab.failpoints.tracer import with_failpoints
from services.common.telemetry.setup import configure
tracer = with_failpoints(configure("networks"), Path(sys.argv[1])).tracer
for _ in range(2):
    with tracer.start_as_current_span("{SPAN}"):
        print("within", flush=True)
print("alive", flush=True)
"""


def run(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a process that passes the failpoint networks.patch-pod twice."""
    return subprocess.run(
        [sys.executable, "-c", DYING, str(directory)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def passed(directory: Path) -> list[str]:
    return (directory / PASSED).read_text().split()


@pytest.fixture
def recorded(tmp_path: Path) -> Telemetry:
    """Telemetry of the role networks with failpoints, whose list of passed failpoints is empty."""
    (tmp_path / PASSED).touch()
    return with_failpoints(recording_telemetry("networks")[0], tmp_path)


def test_services_do_not_mention_failpoints() -> None:
    files = [file for file in (REPOSITORY / "services").rglob("*.py") if "failpoint" in file.read_text().lower()]
    assert files == []


def test_every_failpoint_has_a_role_and_a_request() -> None:
    for name, failpoint in FAILPOINTS.items():
        assert name.partition(".")[0] in ROLES
        assert failpoint.requests
        assert len(set(failpoint.requests)) == len(failpoint.requests)


def test_every_failpoint_is_found_by_its_own_span() -> None:
    """No failpoint is hidden by another one of its role with the same span."""
    for name, failpoint in FAILPOINTS.items():
        span, parent = (pattern.replace("*", "x") for pattern in (failpoint.span, failpoint.parent))
        assert find_failpoint(name.partition(".")[0], span, parent, failpoint.attributes) == name


def test_a_process_dies_at_an_armed_failpoint_once(tmp_path: Path) -> None:
    (tmp_path / PASSED).touch()
    armed = tmp_path / "networks.patch-pod.after"
    armed.touch()
    first = run(tmp_path)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "within\n")
    assert not armed.exists()
    assert passed(tmp_path) == ["networks.patch-pod.before", "networks.patch-pod.after"]
    second = run(tmp_path)
    assert (second.returncode, second.stdout) == (0, "within\nwithin\nalive\n")


def test_an_armed_failpoint_may_kill_another_process(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        (tmp_path / "networks.patch-pod.before").write_text(str(victim.pid))
        done = run(tmp_path)
        assert (done.returncode, done.stdout) == (0, "within\nwithin\nalive\n")
        assert victim.wait(10) == -signal.SIGKILL


def test_an_armed_failpoint_may_stop_another_process(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        (tmp_path / "networks.patch-pod.before").write_text(f"{victim.pid} SIGSTOP")
        done = run(tmp_path)
        assert (done.returncode, done.stdout) == (0, "within\nwithin\nalive\n")
        assert os.WSTOPSIG(os.waitpid(victim.pid, os.WUNTRACED)[1]) == signal.SIGSTOP
        victim.kill()


def test_a_failpoint_before_an_effect_is_reached_before_the_effect(tmp_path: Path) -> None:
    (tmp_path / "networks.patch-pod.before").touch()
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_span_that_raises_has_no_failpoint_after_it(tmp_path: Path, recorded: Telemetry) -> None:
    with pytest.raises(KeyError), recorded.tracer.start_as_current_span(SPAN):
        raise KeyError
    assert passed(tmp_path) == ["networks.patch-pod.before"]


def test_an_unsampled_span_has_failpoints(tmp_path: Path, recorded: Telemetry) -> None:
    unsampled = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))
    context = trace.set_span_in_context(unsampled)
    with recorded.tracer.start_as_current_span("kube create events", context=context) as span:
        assert not span.is_recording()
    assert passed(tmp_path) == ["networks.event.before", "networks.event.after"]


@pytest.mark.parametrize("parent", ["attach", "detach"])
def test_a_failpoint_may_require_a_parent_span(tmp_path: Path, recorded: Telemetry, parent: str) -> None:
    span = recorded.tracer.start_span(f"networks {parent} pod1/pod123")
    with recorded.tracer.start_as_current_span("POST /delegate", context=trace.set_span_in_context(span)):
        pass
    name = "networks.delegate-add" if parent == "attach" else "networks.delegate-del"
    assert passed(tmp_path) == [f"{name}.before", f"{name}.after"]


def test_a_failpoint_may_require_an_attribute(tmp_path: Path) -> None:
    (tmp_path / PASSED).touch()
    tracer = with_failpoints(recording_telemetry("multus")[0], tmp_path).tracer
    for change in ("adding", "updated"):
        with tracer.start_as_current_span("record write", attributes={"hotnic.record.change": change}):
            pass
    assert passed(tmp_path) == ["multus.record-adding.before", "multus.record-adding.after"]


def test_spans_of_other_names_or_roles_have_no_failpoints(tmp_path: Path, recorded: Telemetry) -> None:
    for name in ("kube get pods", "kube patch virtualmachines", "send hotplug.guest-attached"):
        with recorded.tracer.start_as_current_span(name):
            pass
    recorded.tracer.start_span(SPAN).end()
    assert passed(tmp_path) == []


def test_spans_are_those_of_the_wrapped_tracer(tmp_path: Path) -> None:
    telemetry, exporter = recording_telemetry("networks")
    instrumented = with_failpoints(telemetry, tmp_path)
    with instrumented.tracer.start_as_current_span("outer", attributes={"a": "b"}):
        with instrumented.tracer.start_as_current_span(SPAN):
            pass
        instrumented.tracer.start_span("detached").end()
    spans = exporter.get_finished_spans()
    assert tree(spans) == [("outer", [(SPAN, []), ("detached", [])])]
    assert dict(spans[-1].attributes or {}) == {"a": "b"}
    assert instrumented.metrics is telemetry.metrics
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["cli"], ["networks"]])
def test_a_role_and_a_directory_are_required(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(FAILPOINTS_VARIABLE, raising=False)
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("usage: HOTNIC_LAB_FAILPOINTS=DIRECTORY python -m lab.failpoints")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_runs_with_failpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    monkeypatch.setenv(FAILPOINTS_VARIABLE, str(tmp_path))
    assert main([role, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: hotnic run {role} ")
