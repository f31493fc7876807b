"""The daemon as a process, with the shim as the runtime executes it: start, ADD, restart, DEL without a daemon, end."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.networks import NETWORK_STATUS, NETWORKS
from tests.support.cni import RecordingPlugin, bridge_config, leases
from tests.support.multus_daemon import POD, POD_UID, cni_environment
from tests.support.node_kube import NADS, PODS, FakeKube, serving_kube, write_kubeconfig


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition that another process fulfils is true."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def text_of(path: Path) -> str:
    """Return a file's text without the backslashes of JSON inside JSON; empty when the file does not exist."""
    try:
        return path.read_text().replace("\\", "")
    except FileNotFoundError:
        return ""


@dataclass
class Node:
    """A node's directories with a primary network, and the daemon's environment."""

    folder: Path
    kube: FakeKube
    environ: dict[str, str]

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the daemon as a process; yield it when it is ready, end it by SIGTERM and expect exit code 0."""
        log = (self.folder / "daemon.log").open("ab")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.multus", env=self.environ, stdout=log, stderr=log
        )
        log.close()
        try:
            await self.ready()
            yield process
            if process.returncode is None:
                process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def ready(self) -> None:
        """Wait as the runtime does: execute the shim, which waits for the daemon."""
        await until(lambda: self.conf.exists() and (self.folder / "bin" / "hotnic-multus").exists())
        status, out = await self.shim("CHECK", "", version="1.0.0")
        assert status == 1, out  # the daemon has answered: it refuses a CHECK without a network namespace

    @property
    def conf(self) -> Path:
        """The configuration that the daemon writes for the runtime."""
        return self.folder / "conf" / "00-multus.conf"

    async def shim(self, command: str, netns: Path | str, version: str | None = None) -> tuple[int, Any]:
        """Execute the shim with the current configuration."""
        config = json.loads(self.conf.read_text())
        if version:
            config["cniVersion"] = version
        process = await asyncio.create_subprocess_exec(
            self.folder / "bin" / "hotnic-multus", env=cni_environment(command, netns), stdin=-1, stdout=-1
        )
        out, _ = await asyncio.wait_for(process.communicate(json.dumps(config).encode()), 30)
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else None


@pytest.fixture
async def node(tmp_path: Path, plugins: Path) -> AsyncIterator[Node]:
    """A node, without a daemon yet."""
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(tmp_path / "leases")}
    primary = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{"type": "bridge", "bridge": "br-pods", "isGateway": True, "ipam": ipam}],
    }
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "10-primary.conflist").write_text(json.dumps(primary))
    async with serving_kube(FakeKube()) as kube:
        metadata = {"uid": POD_UID, "annotations": {NETWORKS: "blue@pod7e0055a6880"}}
        kube.put(PODS, "default", POD, metadata=metadata, spec={}, status={})
        kube.put(NADS, "default", "blue", spec={"config": json.dumps(bridge_config(tmp_path))})
        environ = {
            **os.environ,
            "KUBECONFIG": write_kubeconfig(tmp_path / "kubeconfig", kube.url),
            "HOTNIC_SOCKET_DIR": str(tmp_path / "run"),
            "HOTNIC_CNI_CONF_DIR": str(tmp_path / "conf"),
            "HOTNIC_CNI_BIN_DIR": str(plugins),
            "HOTNIC_CNI_STATE_DIR": str(tmp_path / "state"),
            "HOTNIC_TRACE_DIR": str(tmp_path / "traces"),
            "HOTNIC_LOG_FORMAT": "json",
        }
        yield Node(tmp_path, kube, environ)


async def test_a_sandbox_survives_a_restart_of_the_daemon(node: Node, sandbox_netns: Path) -> None:
    run_dir = node.folder / "run"
    run_dir.mkdir()
    (run_dir / "foreign-file").touch()
    inode = run_dir.stat().st_ino
    async with node.daemon():
        status, result = await node.shim("ADD", sandbox_netns)
        assert status == 0, result
        assert result["cniVersion"] == "1.0.0"
        assert result["ips"][0]["address"].startswith("10.77.0.")
        assert NETWORK_STATUS in node.kube.annotations(PODS, "default", POD)
        assert (node.folder / "run").stat().st_mode & 0o777 == 0o700
        assert (node.folder / "run" / "multus.sock").stat().st_mode & 0o777 == 0o600
    # The daemon is stopped. The runtime still calls the shim, whose DEL succeeds.
    assert node.conf.exists()
    assert await node.shim("DEL", sandbox_netns) == (0, None)
    assert len(leases(node.folder)) == 1
    async with node.daemon():
        status, again = await node.shim("ADD", sandbox_netns)
        assert (status, again) == (0, result)
        assert await node.shim("DEL", sandbox_netns) == (0, None)
        # Other containers mount the directory, so it is neither recreated nor emptied.
        assert run_dir.stat().st_ino == inode
        assert sorted(os.listdir(run_dir)) == ["foreign-file", "multus.sock", "records"]
    assert leases(node.folder) == []
    assert leases(node.folder, "pods") == []


async def test_add_waits_for_a_starting_daemon(node: Node, sandbox_netns: Path) -> None:
    async with node.daemon():
        pass
    calling = asyncio.create_task(node.shim("ADD", sandbox_netns))
    async with node.daemon():
        status, result = await calling
        assert status == 0, result
        assert await node.shim("DEL", sandbox_netns) == (0, None)


async def test_a_running_call_finishes_before_the_daemon_ends(
    node: Node, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.sleep("ADD", 5.5)  # most of the time that the daemon grants running calls
    slow = {"cniVersion": "1.0.0", "name": "slow", "type": recording.type}
    node.kube.put(NADS, "default", "blue", spec={"config": json.dumps(slow)})
    async with node.daemon():
        calling = asyncio.create_task(node.shim("ADD", sandbox_netns))
        await until(lambda: bool(recording.calls))
    # The daemon got SIGTERM while the plugin was running, and has ended.
    status, result = await calling
    assert status == 0, result
    async with node.daemon():
        assert await node.shim("DEL", sandbox_netns) == (0, None)


async def test_an_add_interrupted_by_a_kill_is_rolled_back(
    node: Node, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    recording.sleep("ADD", 0.5)
    slow = {"cniVersion": "1.0.0", "name": "slow", "type": recording.type}
    node.kube.put(NADS, "default", "blue", spec={"config": json.dumps(slow)})
    with contextlib.suppress(AssertionError):
        async with node.daemon() as process:
            calling = asyncio.create_task(node.shim("ADD", sandbox_netns))
            await until(lambda: bool(recording.calls))
            process.kill()
            status, error = await calling
            assert (status, error["code"]) == (1, 11)
    async with node.daemon():
        folders = (node.folder / "state" / "sandboxes", node.folder / "run" / "records")
        await until(
            lambda: not any('"recording"' in text_of(path) for folder in folders for path in folder.glob("0123456789*"))
        )
        assert recording.commands == ["ADD pod7e0055a6880", "DEL pod7e0055a6880"]
        assert await node.shim("DEL", sandbox_netns) == (0, None)
    assert leases(node.folder, "pods") == []
