"""The spread of a resync over its period: few keys at each step, so that no change waits behind a burst of them.

Not whether a key needs a resync at all: that is the role's decision. Next: :mod:`services.common.reconcile.queue`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

K = TypeVar("K")

MIN_STEP = 1.0
"""Seconds between two steps, at least."""


def count_steps(keys: int, period: float) -> int:
    """Return the number of steps of a period: at most one for each key, and one where there are none."""
    return max(1, min(keys, int(period / MIN_STEP)))


def due(keys: Sequence[K], step: int, steps: int) -> Sequence[K]:
    """Return the keys that are due at a step: each key at one step of a period, and as many at each.

    :param step: from 0.
    """
    return keys[len(keys) * step // steps : len(keys) * (step + 1) // steps]


async def spread(keys: Sequence[K], period: float) -> AsyncIterator[Sequence[K]]:
    """Yield the keys of one period, each when it is due; the last ones at its end.

    :param period: seconds.
    """
    steps = count_steps(len(keys), period)
    for step in range(steps):
        await asyncio.sleep(period / steps)
        yield due(keys, step, steps)
