"""Two labs per test, and a machine that looks the same afterwards."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.lab import holder
from services.lab.layout import Layout
from tests.support.lab_process import LabProcess, listing


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[list[LabProcess]]:
    """Two labs that do not run yet; both are down afterwards, and the machine's folders are as before."""
    before = listing()
    # A directory name longer than a unix socket's path may be.
    both = [LabProcess(Layout(tmp_path / name / ("x" * 100))) for name in ("one", "two")]
    yield both
    for lab in both:
        lab.down()
        assert not holder.alive(lab.layout)
        if lab.layout.dir.exists():
            assert sorted(os.listdir(lab.layout.dir)) == ["lock", "logs", "traces"]
    assert listing() == before
