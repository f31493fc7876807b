"""One lab for all tests of this folder: kubelet, kube-scheduler and containerd 2 run the pods, with hotnic's roles."""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.lab.node_state import attachments
from tests.support.lab.ordinary_pods import OrdinaryPods, ordinary_pods
from tests.support.lab.rights import assert_rights_suffice
from tests.support.lab.running import Lab, running_lab
from tests.support.leftovers import adopt_orphans

adopt_orphans()

BRIDGE_NAD = "bridge-net"
PATIENCE = 100.0
"""Seconds until everything that belongs to deleted pods is gone; it takes less than 3 s."""


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab without VMs, with the sample network; at the end nothing was forbidden to a role."""
    directory = Path(tempfile.mkdtemp(prefix="hotnic-kubelet-"))
    with running_lab(directory, bare=True, kubelet=True, guests="double") as running:
        running.kubectl("apply", "-f", "k8s/examples/nad-bridge.yaml")
        # The service account controller creates it; a pod is refused before.
        running.kubectl("wait", "serviceaccount/default", "--for=create", "--timeout=60s", timeout=90)
        yield running
        if request.session.testsfailed:
            print(f"\nlogs and traces of the lab: {directory}")  # noqa: T201
            return
        assert_rights_suffice(running)
    shutil.rmtree(directory)


@pytest.fixture
async def pods(lab: Lab) -> AsyncIterator[OrdinaryPods]:
    """Pods without a VM, deleted after the test."""
    async with ordinary_pods(lab.layout.kubeconfig) as found:
        yield found


@pytest.fixture
def nothing_left(lab: Lab) -> Iterator[None]:
    """Fail a test after which the node has more links, network namespaces, leases, records or results than before."""
    before = node(lab)
    yield
    lab.kubectl("wait", "pods", "--all", "--for=delete", "--timeout=100s", timeout=150)
    # The kubelet deletes a sandbox after the object of a pod that was deleted by force.
    deadline = time.monotonic() + PATIENCE
    while any(left := {kind: found - before[kind] for kind, found in node(lab).items()}.values()):
        assert time.monotonic() < deadline, f"left behind: {left}"


def element(interface: str) -> dict[str, str]:
    """Return an element of the networks annotation."""
    return {"name": BRIDGE_NAD, "namespace": "default", "interface": interface}


def node(lab: Lab) -> dict[str, set[str]]:
    """Return the state of attachments and pods on the node."""
    return {**attachments(lab), "network namespace": set(lab.run_inside("ls", "/run/netns").split())}


def links_in(lab: Lab, pod: str, container: str = "main") -> set[str]:
    """Return the links that a container has, read in it."""
    return link_names(lab.kubectl("exec", pod, "-c", container, "--", "ip", "-o", "link"))


def link_names(listed: str) -> set[str]:
    """Return the names of the links that ``ip -o link`` lists."""
    return {line.split(": ")[1].split("@")[0] for line in listed.splitlines()}
