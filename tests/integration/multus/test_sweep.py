"""The sweep with different sandbox lists of the container runtime."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.node import netns as namespaces
from tests.support.node.cni import RecordingPlugin, bridge_config, leases
from tests.support.node.multus_daemon import SANDBOX, running_daemon

IFACE = "pod7e0055a6880"


class ScriptedRuntime:
    """A container runtime with these sandboxes (each with whether it is ready), or one that does not answer."""

    def __init__(self, ready: dict[str, bool] | None) -> None:
        self.ready = ready
        self.listed = asyncio.Event()

    async def list_sandboxes(self) -> dict[str, bool] | None:
        """Return all of them."""
        self.listed.set()
        return self.ready


@contextlib.contextmanager
def hidden(netns: Path) -> Iterator[None]:
    """Hide a network namespace as a missing mount does in a container: its path is an empty file."""
    bare = netns.with_name("bare")
    bare.touch()
    subprocess.run(["mount", "--bind", bare, netns], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", netns], check=True)


async def test_a_sandbox_lost_by_the_runtime_is_deleted(tmp_path: Path, plugins: Path, sandbox_netns: Path) -> None:
    runtime = ScriptedRuntime({SANDBOX: True})
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(tmp_path)))[0] == 200
        assert await daemon.sweep.run_once() == 0
        runtime.ready = {}
        # The runtime calls ADD before it lists the sandbox, so a record that has just changed does not count as lost.
        assert await daemon.sweep.run_once() == 0
        daemon.sweep.lost_after = -60.0
        runtime.ready = None
        assert await daemon.sweep.run_once() == 0
        runtime.ready = {}
        assert await daemon.sweep.run_once() == 1
        assert daemon.record() is None
        links = json.loads(namespaces.ip(sandbox_netns, "-j", "link"))
        assert [link["ifname"] for link in links] == ["lo"]


async def test_a_sandbox_whose_add_outlasts_the_list_is_kept(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """The runtime lists a sandbox after its ADD, so a list from during the ADD does not count."""
    runtime = ScriptedRuntime({})
    config = {"cniVersion": "1.0.0", "name": "slow", "type": recording.type}
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        daemon.sweep.lost_after = 0.05
        with recording.holding("ADD"):
            adding = asyncio.create_task(daemon.delegate("ADD", sandbox_netns, IFACE, config))
            async with asyncio.timeout(60):
                while not recording.calls:  # noqa: ASYNC110 (another process writes it)
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # the record is older than ``lost_after`` now, and the plugin still runs
            sweeping = asyncio.create_task(daemon.sweep.run_once())
            await runtime.listed.wait()
            assert not adding.done()
        assert (await adding)[0] == 200
        assert await sweeping == 0
        assert daemon.record() is not None
        assert recording.commands == [f"ADD {IFACE}"]
        assert (await daemon.delegate("DEL", sandbox_netns, IFACE, config))[0] == 200


async def test_a_running_sandbox_with_a_hidden_namespace_is_kept(
    tmp_path: Path, plugins: Path, sandbox_netns: Path
) -> None:
    """Without the mount of the node's namespaces they all appear gone, but the runtime lists their sandboxes."""
    runtime = ScriptedRuntime({SANDBOX: True})
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(tmp_path)))[0] == 200
        with hidden(sandbox_netns):
            assert await daemon.sweep.run_once() == 0
            assert len(leases(tmp_path)) == 1
            assert daemon.record() is not None
            runtime.ready = {SANDBOX: False}
            assert await daemon.sweep.run_once() == 1
            assert leases(tmp_path) == []
            assert daemon.record() is None
