"""Tables that are too long for `make test`: a seeded sample of them there, all of them in `make test-long`.

`HOTNIC_TEST_SEED` repeats a sample; without it each run draws another, and CI always the same. Never silently:
:func:`summary` says what was run of what.
"""

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("HOTNIC_HYPOTHESIS_PROFILE") == "long"
"""Whether everything is to be run (`make test-long`)."""
SEED = int(
    os.environ.get("HOTNIC_TEST_SEED") or (1 if os.environ.get("CI") else random.SystemRandom().randrange(1_000_000))
)

_drawn: dict[str, tuple[int, int]] = {}
_ran: Counter[str] = Counter()


def sample(table: str, rows: Sequence[T], count: int, *, each: Callable[[T], Hashable] = lambda _: None) -> list[T]:
    """Some rows of a table in its order, or all of them.

    :param count: how many. :param each: at least one row of each value of this is among them.
    """
    rng = random.Random(f"{SEED} {table}")
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


def first(table: str, steps: int, some: int) -> range:
    """The first steps of a walk, or all of them."""
    taken = range(steps if LONG else some)
    _drawn[table] = (len(taken), steps)
    return taken


def ran(table: str) -> None:
    """Count a row that was run to its end."""
    _ran[table] += 1


def summary() -> list[str]:
    """A line for each table of which something was run, and the commit that all of them are about."""
    lines = [
        f"{table}: seed {SEED}, {_ran[table]} of {total} run ({drawn} drawn)"
        f"; again: HOTNIC_TEST_SEED={SEED}; all: make test-long"
        for table, (drawn, total) in sorted(_drawn.items())
        if _ran[table]
    ]
    return [*lines, f"commit {_commit()}"] if lines else []


def _commit() -> str:
    """The commit that stands in the checkout; `+` behind it where files have been changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
