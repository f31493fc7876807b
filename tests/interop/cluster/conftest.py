"""One control plane for all tests of this folder, with one node that runs nothing.

HOTNIC_TEST_KUBERNETES is its version, if not the newest one.
"""

import os
from collections.abc import Iterator

import pytest

from tests.support.interop.releases import NODE, Snapshot, snapshot, write
from tests.support.kube.control_plane import VERSION, ControlPlane, control_plane
from tests.support.leftovers import adopt_orphans, nothing_left_behind

adopt_orphans()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane; DaemonSets have one node, without a kubelet."""
    version = os.environ.get("HOTNIC_TEST_KUBERNETES") or VERSION
    with control_plane(tmp_path_factory.mktemp("kubernetes"), version) as running:
        labels = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": NODE}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
        running.kubectl("create", "--filename", write(running, "node", [node]))
        # The last change of the node by a controller; the first snapshot has it.
        ttl = "--for=jsonpath={.metadata.annotations.node\\.alpha\\.kubernetes\\.io/ttl}"
        running.kubectl("wait", ttl, f"node/{NODE}", "--timeout=100s")
        yield running


@pytest.fixture(scope="module")
def empty(cluster: ControlPlane) -> Snapshot:
    """What the cluster contains before the first test of a file: a rotation of the front-proxy CA leaves both CAs."""
    return snapshot(cluster)


@pytest.fixture(autouse=True)
def nothing_left(cluster: ControlPlane) -> Iterator[None]:
    """Fail a test that leaves a link, network namespace, mount or process."""
    with nothing_left_behind():
        yield
