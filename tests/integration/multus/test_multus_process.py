"""The daemon as a process, with the shim as the runtime executes it: start, ADD, restart, DEL without a daemon, end."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from schemas.kubernetes.networks import NETWORK_STATUS
from services.common.http.client import ConnectFailed, UnixHttpClient
from tests.support.kube.node_kube import NADS, PODS
from tests.support.node.cni import RecordingPlugin, leases
from tests.support.node.multus_daemon import POD
from tests.support.node.multus_process import MultusNode, multus_node, until
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture
async def node(tmp_path: Path, plugins: Path) -> AsyncIterator[MultusNode]:
    """A node, without a daemon yet."""
    async with multus_node(tmp_path, plugins) as found:
        yield found


def text_of(path: Path) -> str:
    """Return a file's text without the backslashes of JSON inside JSON; empty when the file does not exist."""
    try:
        return path.read_text().replace("\\", "")
    except FileNotFoundError:
        return ""


async def test_a_sandbox_survives_a_restart_of_the_daemon(node: MultusNode, sandbox_netns: Path) -> None:
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


async def test_the_daemon_waits_for_the_primary_network(node: MultusNode) -> None:
    """It may start before the primary CNI has written its file, such as after a reboot of the node."""
    primary = node.folder / "conf" / "10-primary.conflist"
    text = primary.read_text()
    primary.unlink()
    listen = node.folder / "health.sock"
    node.environ["HOTNIC_HEALTH_LISTEN"] = f"unix:{listen}"
    http = UnixHttpClient(str(listen), recording_telemetry("client")[0])

    async def until_answer(status: int, found: Callable[[str], bool]) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(ConnectFailed):
                    code, body = await http.request("GET", "/readyz")
                    if code == status and found(body.decode()):
                        return
                await asyncio.sleep(0.02)

    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.multus", env=node.environ)
    try:
        waiting = f"[-]runtime-configuration failed: no primary CNI configuration in {node.folder}/conf: waiting for "
        await until_answer(503, lambda body: waiting in body)
        # The runtime would call the shim as soon as this file exists.
        assert not node.conf.exists()
        # A file that is still being written is no configuration, and nothing is made of it.
        primary.write_text(text[: len(text) // 2])
        await until_answer(503, lambda body: "[-]runtime-configuration failed: " in body and waiting not in body)
        assert not node.conf.exists()
        primary.write_text(text)
        await until_answer(200, lambda body: "[+]runtime-configuration ok" in body)
        assert json.loads(node.conf.read_text())["clusterNetwork"] == str(primary)
    finally:
        await http.close()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 45) == 0


async def test_add_waits_for_a_starting_daemon(node: MultusNode, sandbox_netns: Path) -> None:
    async with node.daemon():
        pass
    calling = asyncio.create_task(node.shim("ADD", sandbox_netns))
    async with node.daemon():
        status, result = await calling
        assert status == 0, result
        assert await node.shim("DEL", sandbox_netns) == (0, None)


async def test_a_running_call_finishes_before_the_daemon_ends(
    node: MultusNode, sandbox_netns: Path, recording: RecordingPlugin
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
    node: MultusNode, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    slow = {"cniVersion": "1.0.0", "name": "slow", "type": recording.type}
    node.kube.put(NADS, "default", "blue", spec={"config": json.dumps(slow)})
    answers = []
    # The daemon's exit code is not 0.
    with contextlib.suppress(AssertionError):
        async with node.daemon() as process:
            with recording.holding("ADD"):
                calling = asyncio.create_task(node.shim("ADD", sandbox_netns))
                await until(lambda: bool(recording.calls))
                process.kill()
                answers.append(await calling)
    assert [(status, error["code"]) for status, error in answers] == [(1, 11)]
    async with node.daemon():
        folders = (node.folder / "state" / "sandboxes", node.folder / "run" / "records")
        await until(
            lambda: not any('"recording"' in text_of(path) for folder in folders for path in folder.glob("0123456789*"))
        )
        assert recording.commands == ["ADD pod7e0055a6880", "DEL pod7e0055a6880"]
        assert await node.shim("DEL", sandbox_netns) == (0, None)
    assert leases(node.folder, "pods") == []
