"""The Helm chart on a node with a real kubelet: every role is a pod, the hooks run, and an uninstall leaves nothing."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.layout import CONTAINERD_SOCKET, NATS_PORT, ROLES
from lab.supervisor.kubernetes.control_plane import NODE_ADDRESS
from tests.interop.kubelet.conftest import element
from tests.support.interop.chart import CHART
from tests.support.interop.tools import tool
from tests.support.lab.ordinary_pods import ordinary_pods
from tests.support.lab.running import Lab, running_lab, wait_until

IMAGE = Path(__file__).parents[3] / ".cache" / "hotnic-dev.tar"
NAMESPACE = "hotnic"
CHOICE = ("--values", str(CHART / "choices" / "everything.yaml"))
VALUES = {
    # The lab has both kinds of CRDs.
    "crds.nad": "false",
    "crds.kubevirt": "false",
    "nats.url": f"tls://{NODE_ADDRESS}:{NATS_PORT}",
    "nats.tls.secret": "lab-nats",
    # The lab knows the identities of its own processes. The pods of the chart share one that may do everything.
    "extraEnv[0].name": "NATS_NKEY",
    "extraEnv[0].value": "/etc/hotnic/nats-tls/nats.nk",
    "image.pullPolicy": "Never",
}
HELM_DEADLINE = 600.0
"""Seconds for a command of helm that waits for pods; the longest takes 40 s."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """A lab without roles, whose node has the image."""
    if not IMAGE.exists():
        pytest.fail(f"{IMAGE} is missing: run `make kubelet-test`, which builds the image and writes it there")
    directory = Path(tempfile.mkdtemp(prefix="hotnic-chart-"))
    with running_lab(directory, bare=True, kubelet=True, without=ROLES, guests="double") as running:
        ctr = (str(tool("containerd/ctr")), "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io")
        running.run_inside(*ctr, "images", "import", str(IMAGE))
        running.kubectl("create", "namespace", NAMESPACE)
        create_nats_secret(running)
        running.kubectl("apply", "-f", "k8s/examples/nad-bridge.yaml")
        yield running
    shutil.rmtree(directory)


def create_nats_secret(lab: Lab) -> None:
    """Create the Secret with which the roles connect to the lab's NATS server; it is not the release's."""
    files = {"ca.crt": lab.layout.nats_ca, "nats.nk": lab.layout.unrestricted_nats_seed}
    options = (f"--from-file={name}={path}" for name, path in files.items())
    lab.kubectl("create", "secret", "generic", VALUES["nats.tls.secret"], "-n", NAMESPACE, *options)


def helm(lab: Lab, *arguments: str) -> str:
    """Run helm, which must succeed, and return its standard output."""
    done = subprocess.run(
        [str(tool("helm")), *arguments],
        env={**os.environ, "KUBECONFIG": str(lab.layout.kubeconfig), "HELM_NAMESPACE": NAMESPACE},
        capture_output=True,
        text=True,
        timeout=HELM_DEADLINE,
        check=False,
    )
    if done.returncode:
        pods = lab.kubectl("get", "pods", "-n", NAMESPACE, "-o", "wide")
        pytest.fail(f"helm {arguments[0]}: {done.stderr}\n{done.stdout}\n{pods}")
    return done.stdout


def release(lab: Lab, verb: str, **more: str) -> None:
    """Install or upgrade the release, and wait until every role is ready."""
    values = {**VALUES, **more}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    helm(lab, verb, "hotnic", str(CHART), *CHOICE, *sets, "--wait", "--timeout", "5m")


async def test_install_test_upgrade_and_uninstall(cluster: Lab) -> None:
    before = cni_files(cluster)
    release(cluster, "install")
    assert "Succeeded" in helm(cluster, "test", "hotnic", "--timeout", "5m")
    async with ordinary_pods(cluster.layout.kubeconfig) as pods:
        await pods.create("early", networks=json.dumps([element("net1")]), timeout=300)
        await pods.set_networks("early", [element("net1"), element("eth7")])
        await pods.until_links("early", "net1", "eth7", timeout=100)

        release(cluster, "upgrade", **{"log.level": "debug"})
        await pods.set_networks("early", [element("eth7")])
        await pods.until_links("early", "eth7", timeout=100)
        await pods.create("late", timeout=300)
        await pods.delete("early")

        # What the runtime deletes while the daemon is replaced is left to the sweep of the next one, once a minute; the
        # uninstall would forget it.
        wait_until(lambda: set(leases(cluster)) <= addresses(cluster), timeout=600)
        helm(cluster, "uninstall", "hotnic", "--timeout", "5m")
        cluster.kubectl("delete", "secret", "-n", NAMESPACE, VALUES["nats.tls.secret"])
        kinds = "pods,deployments,daemonsets,jobs,services,secrets,roles,rolebindings"
        wait_until(lambda: not cluster.kubectl("get", kinds, "-n", NAMESPACE, "-o", "name"), timeout=100)
        # The runtime deletes a sandbox that multus has set up without it, and makes new ones.
        await pods.delete("late")
        await pods.create("after", timeout=300)
        await pods.delete("after")
    assert cni_files(cluster) == before
    wait_until(lambda: not leases(cluster), timeout=100)


def leases(lab: Lab) -> list[str]:
    """Return the addresses that host-local has leased, of all networks."""
    files = lab.run_inside("find", "/var/lib/cni/networks", "-type", "f").split()
    return [address for file in files if (address := file.rpartition("/")[2]).startswith("10.")]


def addresses(lab: Lab) -> set[str]:
    """Return the addresses of all pods in the cluster network."""
    pods = json.loads(lab.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    return {pod["status"].get("podIP", "") for pod in pods}


def cni_files(lab: Lab) -> list[str]:
    """Return the CNI configuration and programs of the node."""
    folders = "/etc/cni/net.d /opt/cni/bin /run/multus /var/lib/cni/multus"
    return sorted(lab.run_inside("sh", "-c", f"find {folders} 2>/dev/null || true").split())
