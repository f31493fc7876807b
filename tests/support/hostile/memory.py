"""How much memory it takes to read what somebody hostile sends. Next: :mod:`tests.support.hostile.values`."""

import contextlib
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def peak_below(limit: int) -> Iterator[None]:
    """Check how much memory is in use at once inside the context, more than before.

    :param limit: bytes.
    """
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit
