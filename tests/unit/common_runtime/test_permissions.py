"""A role without a permission keeps running: ``/readyz`` and the log name it, and the role goes on once it is given."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.http.client import ConnectFailed, UnixHttpClient
from tests.support.kube.node_kube import PODS, FakeKube, forbid, serving_kube, write_kubeconfig
from tests.support.telemetry.spans import recording_telemetry

VMIS, KUBEVIRTS = "virtualmachineinstances", "kubevirts"


@contextlib.asynccontextmanager
async def running(role: str, kube: FakeKube, folder: Path, log: list[str]) -> AsyncIterator[UnixHttpClient]:
    """Run a role as a process, and yield a client of its health endpoints."""
    environ = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": write_kubeconfig(folder / "kubeconfig", kube.url),
        "HOTNIC_HEALTH_LISTEN": f"unix:{folder}/health.sock",
        "HOTNIC_VM_OWNER": "hotnic",
        "HOTNIC_NODE_NAME": "node1",
        "HOTNIC_CRI_SOCKET": str(folder / "absent.sock"),
        "HOTNIC_MULTUS_SOCKET": str(folder / "absent.sock"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{role}", env=environ, stderr=asyncio.subprocess.PIPE
    )
    reading = asyncio.create_task(process.communicate())
    health = UnixHttpClient(str(folder / "health.sock"), recording_telemetry("client")[0])
    try:
        yield health
    finally:
        await health.close()
        if process.returncode is None:
            process.terminate()
        _, stderr = await asyncio.wait_for(reading, 50)
        log += stderr.decode().splitlines()
    assert process.returncode == 0, log


async def until(health: UnixHttpClient, part: str) -> None:
    """Wait until ``/readyz`` has this text."""
    async with asyncio.timeout(50):
        while True:
            with contextlib.suppress(ConnectFailed):
                _, body = await health.request("GET", "/readyz")
                if part in body.decode():
                    return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("role", "plural"),
    [
        ("controller", VMIS),
        ("controller", KUBEVIRTS),
        ("handler", VMIS),
        ("handler", PODS),
        ("networks", PODS),
    ],
)
async def test_a_role_without_a_permission_waits_and_says_which(role: str, plural: str, tmp_path: Path) -> None:
    log: list[str] = []
    missing = f"ServiceAccount hotnic/hotnic-{role} may not list {plural} in all namespaces; bind a role that allows it"
    async with serving_kube(FakeKube()) as kube:
        kube.before = forbid(plural, f"hotnic:hotnic-{role}")
        async with running(role, kube, tmp_path, log) as health:
            await until(health, f"[-]permissions failed: {missing}")
            kube.before = lambda _method, _plural, _name: None
            await until(health, "[+]permissions ok")
            await until(health, "[+]started ok")
    assert any(missing in line and "condition not met" not in line for line in log)
    assert not [line for line in log if "Traceback" in line]
