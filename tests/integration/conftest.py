"""Fixture of this tier: no test leaves anything on the machine."""

from collections.abc import Iterator

import pytest

from tests.support.leftovers import adopt_orphans, nothing_left_behind

adopt_orphans()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a link, network namespace, mount or process."""
    with nothing_left_behind():
        yield
