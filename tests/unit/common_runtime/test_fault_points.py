"""Fault points do nothing until a test says so; the code has the registered ones and no others."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from services.common import faults
from services.lab.layout import ROLES

REPOSITORY = Path(__file__).resolve().parents[3]
DYING = """
import sys
from services.common import faults
faults.configure(sys.argv[1])
for _ in range(2):
    with faults.step("networks.delegate-add"):
        print("within", flush=True)
print("alive", flush=True)
"""


def steps_in_code() -> Iterator[str]:
    """The name of every step that stands in the code; what is filled in at run time as ``*``."""
    for file in (REPOSITORY / "services").rglob("*.py"):
        if "faults.step(" not in (text := file.read_text()):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.step":
                (name,) = node.args
                parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DYING, str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_every_step_in_the_code_is_registered_and_every_registered_one_is_in_the_code() -> None:
    patterns = set(steps_in_code())
    found = {name for name in faults.STEPS for pattern in patterns if fnmatchcase(name, pattern)}
    assert found == set(faults.STEPS)
    for pattern in patterns:
        assert any(fnmatchcase(name, pattern) for name in faults.STEPS), f"{pattern} is not registered"


def test_every_registered_step_is_of_a_role_and_has_a_request_that_passes_it() -> None:
    for name, requests in faults.STEPS.items():
        assert name.partition(".")[0] in ROLES
        assert requests
        assert len(set(requests)) == len(requests)


def test_a_process_dies_at_an_armed_point_once(tmp_path: Path) -> None:
    (tmp_path / faults.PASSED).touch()
    armed = tmp_path / "networks.delegate-add.after"
    armed.touch()
    first = run(tmp_path)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "within\n")
    assert not armed.exists()
    passed = (tmp_path / faults.PASSED).read_text().split()
    assert passed == ["networks.delegate-add.before", "networks.delegate-add.after"]
    second = run(tmp_path)
    assert (second.returncode, second.stdout) == (0, "within\nwithin\nalive\n")


def test_at_an_armed_point_another_process_may_die_instead(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        (tmp_path / "networks.delegate-add.before").write_text(str(victim.pid))
        done = run(tmp_path)
        assert (done.returncode, done.stdout) == (0, "within\nwithin\nalive\n")
        assert victim.wait(10) == -signal.SIGKILL


def test_a_point_before_a_step_comes_before_it(tmp_path: Path) -> None:
    (tmp_path / "networks.delegate-add.before").touch()
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_without_the_setting_an_armed_point_and_a_count_of_deliveries_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.delegate-add.before").touch()
    (tmp_path / faults.DELIVERIES).write_text("0")
    faults.configure(None)
    with faults.step("networks.delegate-add"):
        assert faults.deliveries() == 1
    assert (tmp_path / "networks.delegate-add.before").exists()


def test_a_step_that_fails_has_no_moment_after_it(tmp_path: Path) -> None:
    (tmp_path / faults.PASSED).touch()
    faults.configure(str(tmp_path))
    try:
        with pytest.raises(KeyError), faults.step("networks.delegate-add"):
            raise KeyError
        assert (tmp_path / faults.PASSED).read_text() == "networks.delegate-add.before\n"
    finally:
        faults.configure(None)


@pytest.mark.parametrize(("said", "times"), [("2", 2), ("0", 0), ("often", 1), (None, 1)])
def test_a_test_says_how_often_an_event_is_delivered(tmp_path: Path, said: str | None, times: int) -> None:
    if said is not None:
        (tmp_path / faults.DELIVERIES).write_text(said)
    faults.configure(str(tmp_path))
    try:
        assert faults.deliveries() == times
    finally:
        faults.configure(None)
