"""``scripts/test/fuzz.py`` reports the input that raises what an edge must not, and an edge that dies."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import os, sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, "scripts/test")
import fuzz

# Only an engine that sees which input came further climbs the steps one by one.
WORD = b"s~^" if fuzz.atheris else b"9"

def climb(data):
    for at in range(len(WORD)):
        if data[at : at + 1] != WORD[at : at + 1]:
            return
        reach(at)
    raise ZeroDivisionError("the top")

reach = lambda at: STEPS[at]()
STEPS = [eval(f"lambda: {at}") for at in range(len(WORD))]
if fuzz.atheris:
    STEPS = [fuzz.atheris.instrument_func(step) for step in STEPS]

def show(name, feed, error, seconds):
    edge = SimpleNamespace(feed=feed, error=error, seeds=(b"1",))
    print(fuzz.fuzz(name, edge, seconds, 1, fuzz.ENGINE, Path(sys.argv[1], name)))

show("stairs", climb, (), 50)
show("refusals", int, ValueError, 0.1)
show("fatal", lambda data: os._exit(7), (), 50)
"""


def test_a_finding_is_reported_with_its_input_and_an_own_error_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stairs, refusals, fatal = done.stdout.splitlines()
    assert "ZeroDivisionError: the top" in stairs
    assert r"b\'s~^" in stairs or r"b\'9" in stairs
    assert refusals.endswith(", '')")
    assert "the process died with status" in fatal
