"""Exponential backoff with jitter: how long to wait after a number of failures in a row. Pure.

There is no last attempt here: whether to retry is the caller's decision (:mod:`services.common.reconcile`).
"""

import random

MAX_EXPONENT = 30
"""Larger exponents only lengthen an interval that every limit cuts."""


def interval(failures: int, first: float, limit: float) -> float:
    """Return the interval after this many failures, without jitter.

    :param failures: failures in a row, at least 1.
    :param first: seconds after the first failure, doubled for each further one.
    :param limit: seconds; no interval is longer.
    """
    seconds: float = first * 2 ** min(failures - 1, MAX_EXPONENT)
    return min(limit, seconds)


def jittered(failures: int, first: float, limit: float, rng: random.Random) -> float:
    """Return a random wait between half and all of the interval, and never below ``first``.

    Keys, watches and connections that failed together are then not retried together.
    """
    return max(first, interval(failures, first, limit) * rng.uniform(0.5, 1.0))
