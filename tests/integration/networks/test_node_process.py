"""multus and networks in one process, as ``hotnic run node`` runs them: they work together, and one may be refused."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from services.networks.conflicts import UPSTREAM_LABEL
from tests.support.kube.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig
from tests.support.node import netns as namespaces
from tests.support.node.cni import bridge_config, real_plugins
from tests.support.node.fake_cri import FakeCri, FakeSandbox, containerd_info, serving_cri
from tests.support.observed.networks_pods import put_running_pod

HOST = Path("/proc/self/ns/net")
DEADLINE = 60.0


@pytest.fixture
def pod_netns(tmp_path: Path) -> Iterator[Path]:
    with namespaces.pod_namespace(tmp_path) as path:
        yield path
    with contextlib.suppress(AssertionError):
        namespaces.ip(HOST, "link", "del", "br-blue")


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[FakeKube]:
    async with serving_kube(FakeKube()) as kube:
        kube.put(NADS, "default", "blue", spec={"config": json.dumps(bridge_config(tmp_path))})
        put_running_pod(kube)
        yield kube


async def get(path: Path, endpoint: str) -> str:
    """Get a health endpoint; empty before the process listens."""
    with contextlib.suppress(aiohttp.ClientConnectorError):
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get(f"http://node{endpoint}") as answer,
        ):
            return await answer.text()
    return ""


async def until_ready(health: Path, *texts: str) -> None:
    """Wait until the readiness report contains each of the texts. It has no signal, so it is polled."""
    async with asyncio.timeout(DEADLINE):
        while True:
            report = await get(health, "/readyz")
            if all(text in report for text in texts):
                return
            await asyncio.sleep(0.05)


async def test_a_role_that_is_refused_starts_later_while_the_other_works(
    tmp_path: Path, kube: FakeKube, pod_netns: Path
) -> None:
    key, _, value = UPSTREAM_LABEL.partition("=")
    upstream = {"volumes": [{"hostPath": {"path": "/run/multus"}}], "nodeName": "node1"}
    kube.put(
        PODS, "kube-system", "dynamic", metadata={"labels": {key: value}}, spec=upstream, status={"phase": "Running"}
    )
    (tmp_path / "conf").mkdir()
    health = tmp_path / "health.sock"
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "KUBECONFIG": write_kubeconfig(tmp_path / "kubeconfig", kube.url),
        "HOTNIC_ROLES": "multus,networks",
        "HOTNIC_NODE_NAME": "node1",
        "HOTNIC_HEALTH_LISTEN": f"unix:{health}",
        "HOTNIC_CRI_SOCKET": str(tmp_path / "cri.sock"),
        "HOTNIC_MULTUS_SOCKET": str(tmp_path / "run" / "multus.sock"),
        "HOTNIC_SOCKET_DIR": str(tmp_path / "run"),
        "HOTNIC_CNI_CONF_DIR": str(tmp_path / "conf"),
        "HOTNIC_CNI_BIN_DIR": str(real_plugins(tmp_path / "bin", "bridge", "host-local")),
        "HOTNIC_CNI_STATE_DIR": str(tmp_path / "state"),
    }
    (tmp_path / "conf" / "10-primary.conf").write_text('{"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}')
    box = FakeSandbox("s1", "uid-p1", info=containerd_info(str(pod_netns)))
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri([box])):
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.node", env=environ)
        try:
            await until_ready(health, "[+]multus/started ok", "[-]networks/started failed: ended with code 1")
            assert "readyz check failed" in await get(health, "/readyz")
            kube.delete(PODS, "kube-system", "dynamic")
            await until_ready(health, "[+]networks/started ok", "[+]networks/multus ok", "readyz check passed")
            kube.annotate(PODS, "default", "p1", {NETWORKS: json.dumps([{"name": "blue", "interface": "net1"}])})
            await kube.until(lambda: "net1" in kube.annotations(PODS, "default", "p1")[NETWORK_STATUS])
            assert "net1" in namespaces.links(pod_netns)
            samples = (await get(health, "/metrics")).splitlines()
            assert any(line.startswith("multus_server_request_total{") and 'role="multus"' in line for line in samples)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
