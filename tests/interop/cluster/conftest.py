"""One control plane for all tests of this folder, with one node that runs nothing."""

from collections.abc import Iterator

import pytest

from tests.support.kubernetes import ControlPlane, control_plane
from tests.support.leftovers import adopt_orphans, count, left_over
from tests.support.releases import NODE, write

adopt_orphans()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane; DaemonSets have one node, without a kubelet."""
    with control_plane(tmp_path_factory.mktemp("kubernetes")) as running:
        labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": NODE}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
        running.kubectl("create", "--filename", write(running, "node", [node]))
        yield running


@pytest.fixture(autouse=True)
def nothing_left(cluster: ControlPlane) -> Iterator[None]:
    """Fail a test that leaves a link, network namespace, mount, process or cgroup."""
    before = count()
    yield
    found = left_over(before)
    assert not found, "left behind: " + ", ".join(found)
