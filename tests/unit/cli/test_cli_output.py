"""Tables, durations, and the exit code and message of each error."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli import output
from services.cli.cluster import cli_error
from services.cli.errors import CommandFailed, RefusedByServer, Unreachable
from services.cli.output import parse_duration, say, say_json, table
from services.common.kube.errors import (
    AlreadyExists,
    BadApiResponse,
    Forbidden,
    KubeconfigError,
    KubeError,
    Unauthorized,
    Unavailable,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2m", 120.0),
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("7", 7.0),
        ("", None),
        ("soon", None),
        ("-3s", None),
        ("3 s", None),
        ("30s1m", None),
    ],
)
def test_durations_are_parsed_as_by_kubectl(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_all_parts_of_a_duration_are_added(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parse_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)


@given(st.text())
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or seconds >= 0


HOSTILE = "\x1b]0;x\x07 \x9b2J \x7f \u202e \u2066 \ud800 \U000e0041 a\nb\tc\r nats://u:s3cr3t@h"


def test_no_control_character_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    say(*table(["NAME", "STAGE"], [["blue", HOSTILE], ["red", "x"]]))
    say(f"blue: {HOSTILE}", err=True)
    CommandFailed(f"the server failed: {HOSTILE}\nTry again").show()
    written = capsys.readouterr()
    assert [len(text.splitlines()) for text in written] == [3, 4]
    assert (written.out + written.err).replace("\n", "").isprintable()
    assert "s3cr3t" not in written.out + written.err


@pytest.mark.parametrize("indent", [True, False])
def test_json_is_the_same_value_without_control_characters(indent: bool, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"message": HOSTILE.replace("\ud800", "é"), "number": 1}
    say_json(value, indent=indent)
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert "é" in text
    assert json.loads(text) == value


def test_only_the_output_module_writes() -> None:
    """Another way to write would bypass it."""
    package = Path(output.__file__).parent
    writes = re.compile(r"\b(?:click\.s?echo|print|std(?:out|err)\.write)\(")
    found = {path.name for path in package.rglob("*.py") if writes.search(path.read_text())}
    assert found == {"output.py"}


@given(st.lists(st.lists(st.text("ab-.", min_size=1), min_size=2, max_size=2)))
def test_columns_are_aligned(rows: list[list[str]]) -> None:
    lines = table(["NAME", "STAGE"], rows)
    assert len(lines) == len(rows) + 1
    start = lines[0].index("STAGE")
    for line, row in zip(lines[1:], rows, strict=True):
        assert line[start:] == row[1]
        assert line[:start].rstrip() == row[0]


@pytest.mark.parametrize(
    ("error", "kind", "code", "text"),
    [
        (KubeconfigError("no KUBECONFIG"), Unreachable, 5, "--kubeconfig"),
        (Unavailable("GET /: refused"), Unreachable, 5, "--kubeconfig"),
        (Unavailable("overloaded", status=503), Unreachable, 5, "try again later"),
        (BadApiResponse("<html>", status=200), Unreachable, 5, "<html>"),
        (Unauthorized("who are you", status=401), RefusedByServer, 3, "credentials"),
        (Forbidden("not you", status=403, reason="Forbidden"), RefusedByServer, 3, "403 Forbidden"),
        (AlreadyExists("name taken", status=409), RefusedByServer, 3, "name taken"),
        (Unavailable("bug", status=500, reason="InternalError"), CommandFailed, 1, "500 InternalError"),
        (KubeError("teapot", status=418), RefusedByServer, 3, "teapot"),
    ],
)
def test_errors_have_exit_codes(error: KubeError, kind: type[Exception], code: int, text: str) -> None:
    raised = cli_error(error)
    assert isinstance(raised, kind)
    assert raised.exit_code == code
    assert text in raised.message
