"""Each test of version skew runs on each recording of an earlier version."""

import pytest

from tests.support.skew.recording import RECORDINGS, Recording


@pytest.fixture(params=RECORDINGS, scope="session")
def recording(request: pytest.FixtureRequest) -> Recording:
    """A recording of an earlier version."""
    return RECORDINGS[request.param]
