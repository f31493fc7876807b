"""Tables, durations, and what a user is told about an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.cluster import complaint
from services.cli.errors import Failed, Refused, Unreachable
from services.cli.output import parse_duration, table
from services.common.kube.errors import (
    AlreadyExists,
    BadApiAnswer,
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
def test_durations_are_read_as_kubectl_reads_them(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_every_part_of_a_duration_counts(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{milliseconds}ms"
    assert parse_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)


@given(st.text())
def test_no_text_breaks_the_reading_of_a_duration(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or seconds >= 0


@given(st.lists(st.lists(st.text("ab-.", min_size=1), min_size=2, max_size=2)))
def test_columns_begin_below_each_other(rows: list[list[str]]) -> None:
    lines = table(["NAME", "STAGE"], rows).split("\n")
    assert len(lines) == len(rows) + 1
    start = lines[0].index("STAGE")
    for line, row in zip(lines[1:], rows, strict=True):
        assert line[start:] == row[1]
        assert line[:start].rstrip() == row[0]


@pytest.mark.parametrize(
    ("error", "kind", "code", "said"),
    [
        (KubeconfigError("no KUBECONFIG"), Unreachable, 5, "--kubeconfig"),
        (Unavailable("GET /: refused"), Unreachable, 5, "--kubeconfig"),
        (Unavailable("overloaded", status=503), Unreachable, 5, "try again"),
        (BadApiAnswer("<html>", status=200), Unreachable, 5, "<html>"),
        (Unauthorized("who are you", status=401), Refused, 3, "credentials"),
        (Forbidden("not you", status=403, reason="Forbidden"), Refused, 3, "403 Forbidden"),
        (AlreadyExists("name taken", status=409), Refused, 3, "name taken"),
        (Unavailable("bug", status=500, reason="InternalError"), Failed, 1, "500 InternalError"),
        (KubeError("teapot", status=418), Refused, 3, "teapot"),
    ],
)
def test_errors_have_exit_codes(error: KubeError, kind: type[Exception], code: int, said: str) -> None:
    told = complaint(error)
    assert isinstance(told, kind)
    assert told.exit_code == code
    assert said in told.message
