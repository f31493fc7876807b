"""Two labs per test, and a check that they leave nothing on the machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.layout import Layout
from lab.namespaces import holder
from tests.support.lab.process import LabProcess, list_fixed_paths


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[list[LabProcess]]:
    """Two labs that do not run yet; afterwards both are stopped, and the machine's folders are unchanged."""
    before = list_fixed_paths()
    # The directory's name is longer than a unix socket's path may be.
    both = [LabProcess(Layout(tmp_path / name / ("x" * 100))) for name in ("one", "two")]
    yield both
    for lab in both:
        lab.down()
        assert not holder.is_running(lab.layout)
        if lab.layout.dir.exists():
            assert sorted(os.listdir(lab.layout.dir)) == ["lock", "logs", "traces"]
    assert list_fixed_paths() == before
