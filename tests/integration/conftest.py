"""Fixture of this tier: no test leaves anything on the machine."""

from collections.abc import Iterator

import pytest

from tests.support.leftovers import adopt_orphans, count, left_over

adopt_orphans()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a link, network namespace, mount or process."""
    before = count()
    yield
    found = left_over(before)
    assert not found, "left behind: " + ", ".join(found)
