"""The daemon's own tidying against what the container runtime says of its sandboxes."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import netns as namespaces
from tests.support.cni import RecordingPlugin, bridge_config, leases
from tests.support.multus_daemon import SANDBOX, running_daemon

IFACE = "pod7e0055a6880"


class Listed:
    """A container runtime that knows these sandboxes (each with whether it is ready), or does not answer."""

    def __init__(self, ready: dict[str, bool] | None) -> None:
        self.ready = ready
        self.asked = asyncio.Event()

    async def sandboxes(self) -> dict[str, bool] | None:
        """All of them."""
        self.asked.set()
        return self.ready


@contextlib.contextmanager
def hidden(netns: Path) -> Iterator[None]:
    """What a container sees of a namespace whose mount has not come through: an empty file."""
    bare = netns.with_name("bare")
    bare.touch()
    subprocess.run(["mount", "--bind", bare, netns], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", netns], check=True)


async def test_a_sandbox_that_the_runtime_has_lost_is_undone(
    tmp_path: Path, plugins: Path, sandbox_netns: Path
) -> None:
    runtime = Listed({SANDBOX: True})
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(tmp_path)))[0] == 200
        assert await daemon.sweep.once() == 0
        runtime.ready = {}
        # ADD comes before the runtime lists its sandbox: a record that has just changed says nothing yet.
        assert await daemon.sweep.once() == 0
        daemon.sweep.lost_after = -60.0
        runtime.ready = None
        assert await daemon.sweep.once() == 0
        runtime.ready = {}
        assert await daemon.sweep.once() == 1
        assert daemon.record() is None
        links = json.loads(namespaces.ip(sandbox_netns, "-j", "link"))
        assert [link["ifname"] for link in links] == ["lo"]


async def test_a_sandbox_whose_add_outlasts_the_runtimes_list_is_not_lost(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    """The runtime lists it once its ADD is done: what it said while the plugin was still running is no news of it."""
    runtime = Listed({})
    recording.sleep("ADD", 0.4)
    config = {"cniVersion": "1.0.0", "name": "slow", "type": recording.type}
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        daemon.sweep.lost_after = 0.05
        adding = asyncio.create_task(daemon.delegate("ADD", sandbox_netns, IFACE, config))
        async with asyncio.timeout(5):
            while not recording.calls:  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # older than ``lost_after`` now, and its plugin still runs
        sweeping = asyncio.create_task(daemon.sweep.once())
        await runtime.asked.wait()
        assert not adding.done()
        assert (await adding)[0] == 200
        assert await sweeping == 0
        assert daemon.record() is not None
        assert recording.commands == [f"ADD {IFACE}"]
        assert (await daemon.delegate("DEL", sandbox_netns, IFACE, config))[0] == 200


async def test_a_running_sandbox_that_cannot_be_seen_keeps_its_addresses(
    tmp_path: Path, plugins: Path, sandbox_netns: Path
) -> None:
    """A daemon whose mount of the node's namespaces is missing sees all of them gone: the runtime knows better."""
    runtime = Listed({SANDBOX: True})
    async with running_daemon(tmp_path, plugins, runtime=runtime) as daemon:
        assert (await daemon.delegate("ADD", sandbox_netns, IFACE, bridge_config(tmp_path)))[0] == 200
        with hidden(sandbox_netns):
            assert await daemon.sweep.once() == 0
            assert len(leases(tmp_path)) == 1
            assert daemon.record() is not None
            runtime.ready = {SANDBOX: False}
            assert await daemon.sweep.once() == 1
            assert leases(tmp_path) == []
            assert daemon.record() is None
