"""The interval doubles up to its limit, and jitter shortens it by at most a half."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.flowcontrol.backoff import interval, jittered


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (31, 30.0), (100_000, 30.0)]
)
def test_interval_doubles_up_to_the_limit(failures: int, seconds: float) -> None:
    assert interval(failures, 0.1, 30.0) == pytest.approx(seconds)


@given(st.integers(1, 10_000), st.integers())
def test_jitter_keeps_half_of_the_interval_and_the_first_wait(failures: int, seed: int) -> None:
    longest = interval(failures, 0.1, 30.0)
    wait = jittered(failures, 0.1, 30.0, random.Random(seed))
    assert max(0.1, longest / 2) <= wait <= max(0.1, longest)
