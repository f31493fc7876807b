"""Tables of tests that are too long for `make test`: it runs a random sample of them, `make test-long` runs all.

`HOTNIC_TEST_SEED` repeats a sample. Without it each run has another sample, and CI always has the same one.
`HOTNIC_TEST_SAMPLE` is the size of samples in percent of what `make test` runs, for tiers with less time.
:func:`summary` reports how many rows of each table were run.
"""

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("HOTNIC_HYPOTHESIS_PROFILE") == "long"
"""Whether to run all rows (`make test-long`)."""
SEED = int(
    os.environ.get("HOTNIC_TEST_SEED") or (1 if os.environ.get("CI") else random.SystemRandom().randrange(1_000_000))
)
SHARE = int(os.environ.get("HOTNIC_TEST_SAMPLE") or 100) / 100

_drawn: dict[str, tuple[int, int]] = {}
_ran: Counter[str] = Counter()


def sample(table: str, rows: Sequence[T], count: int, *, each: Callable[[T], Hashable] = lambda _: None) -> list[T]:
    """Return a sample of a table's rows in their order, or all of them.

    :param table: name of the table, for the summary and the seed.
    :param count: size of the sample.
    :param each: function of a row; the sample has at least one row for each of its values.
    """
    rng = random.Random(f"{SEED} {table}")
    count = round(count * SHARE)
    chosen: set[int] = set()
    if LONG or count >= len(rows):
        chosen = set(range(len(rows)))
    else:
        shuffled = list(range(len(rows)))
        rng.shuffle(shuffled)
        seen: set[Hashable] = set()
        for index in shuffled:
            if each(rows[index]) not in seen:
                seen.add(each(rows[index]))
                chosen.add(index)
        chosen |= set([index for index in shuffled if index not in chosen][: max(0, count - len(chosen))])
    _drawn[table] = (len(chosen), len(rows))
    return [rows[index] for index in sorted(chosen)]


def first_steps(table: str, steps: int, some: int) -> range:
    """Return the range of the first steps of a sequence, or of all of them."""
    taken = range(steps if LONG else round(some * SHARE))
    _drawn[table] = (len(taken), steps)
    return taken


def count_run(table: str) -> None:
    """Count a row that has passed."""
    _ran[table] += 1


def summary() -> list[str]:
    """Return a line for each table with rows that were run, and a line with the commit."""
    lines = [
        f"{table}: seed {SEED}, {_ran[table]} of {total} run ({drawn} drawn)"
        f"; to repeat: HOTNIC_TEST_SEED={SEED}; all: make test-long"
        for table, (drawn, total) in sorted(_drawn.items())
        if _ran[table]
    ]
    return [*lines, f"commit {_commit()}"] if lines else []


def _commit() -> str:
    """Return the checked-out commit, with the suffix `+` if files have uncommitted changes."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
