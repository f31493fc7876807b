"""Cgroups (version 2) for tests."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.multus.cni.plugin_cgroups import PluginCgroup, cgroup_mounts, find_own


@contextlib.contextmanager
def cgroup_below_own() -> Iterator[Path]:
    """Make a cgroup below this process' own one; at the end it is removed with its children, whose processes die."""
    mounts = cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = find_own(mounts, next(line[3:] for line in lines if line.startswith("0::")), "/")
    assert own is not None, "these tests need cgroup v2"
    # Not the process id, which another run of the tests has as well: each has its own namespace of them.
    folder = Path(tempfile.mkdtemp(prefix="hotnic-test-", dir=own))
    try:
        yield folder
    finally:
        PluginCgroup(folder).kill()
        for child in (*folder.iterdir(), folder):
            if child.is_dir():
                empty(child)
                child.rmdir()


def empty(cgroup: Path) -> None:
    """Wait for the end of a cgroup's processes, which were killed."""
    with open(cgroup / "cgroup.events") as events:
        while "populated 1" in events.read():
            events.seek(0)
