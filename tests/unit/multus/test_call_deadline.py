"""A call has a deadline for all of its plugins together; what it leaves stays in the record and is done later."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.common.runtime.fair_queue import FairSlots
from services.multus.cni.errors import CniError
from services.multus.cni.executor import seconds_left, time_limit
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState
from services.multus.server import take_slot
from tests.support.node.cni import RecordingPlugin
from tests.support.node.multus_daemon import SANDBOX, Daemon, running_daemon

FOR_EVER = 600.0


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """The directory of plugins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster(plugins: Path) -> RecordingPlugin:
    """The plugin of the cluster network."""
    return RecordingPlugin(plugins, "cluster")


@asynccontextmanager
async def serving(plugins: Path, call_timeout: float) -> AsyncIterator[Daemon]:
    async with running_daemon(plugins.parent, plugins, timeout=60.0, call_timeout=call_timeout) as running:
        primary = {"cniVersion": "1.1.0", "name": "cluster", "plugins": [{"type": "cluster"}]}
        (running.config.conf_dir / "10-primary.conflist").write_text(json.dumps(primary))
        yield running
        await running.records.flush()


def attachment(ifname: str, plugin: RecordingPlugin, **fields: Any) -> Attachment:
    config = json.dumps({"cniVersion": "1.1.0", "name": f"of-{ifname}", "type": plugin.type})
    made = Attachment(ifname, f"of-{ifname}", AttachmentOrigin.NETWORKS, config, f"of-{ifname}", "1.1.0", "f")
    return msgspec.structs.replace(made, state=AttachmentState.ADDED, **fields)


def sandbox(name: str, *attachments: Attachment) -> SandboxState:
    return SandboxState(name, f"/run/netns/{name}-is-gone", "default", "pod", "uid", attachments)


async def collect(daemon: Daemon, *listed: str) -> tuple[int, Any]:
    """Call GC with the sandboxes that the runtime knows."""
    valid = [{"containerID": name, "ifname": "eth0"} for name in listed]
    return await daemon.cni("GC", "", {**daemon.conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})


async def test_attachments_for_which_del_has_no_time_stay_as_they_are(plugins: Path) -> None:
    """Nothing is wrong with them: the tries after which a failed DEL is given up are not used up."""
    slow, other = RecordingPlugin(plugins, "slow"), RecordingPlugin(plugins, "other")
    slow.sleep("DEL", FOR_EVER)
    attachments = [attachment(f"net{i}", plugin, failed_deletes=28) for i, plugin in enumerate((other, other, slow))]
    async with serving(plugins, 0.5) as daemon:
        daemon.records.write(sandbox(SANDBOX, *attachments))
        status, error = await daemon.cni("DEL", "")
        assert (status, error["code"]) == (400, 11)
        assert "and was killed, because the call has used up its time" in error["msg"]
        assert (slow.commands, other.commands) == (["DEL net2"], [])
        record = daemon.record()
        assert record is not None
        assert [one.failed_deletes for one in record.attachments] == [28, 28, 28]
    slow.sleep("DEL", 0)
    async with serving(plugins, 90) as daemon:
        assert await daemon.cni("DEL", "") == (200, None)
        assert other.commands == ["DEL net1", "DEL net0"]
        assert daemon.record() is None


async def test_gc_ends_in_time_says_what_is_left_and_goes_on_there(plugins: Path, cluster: RecordingPlugin) -> None:
    slow, other = RecordingPlugin(plugins, "slow"), RecordingPlugin(plugins, "other")
    slow.sleep("DEL", FOR_EVER)
    async with serving(plugins, 4) as daemon:
        for name, plugin in (("a", slow), ("b", other), ("c", other)):
            daemon.records.write(sandbox(name, attachment("net1", plugin), attachment("net2", plugin)))
        status, error = await collect(daemon)
        assert (status, error["code"]) == (400, 11)
        left = "6 attachments of 3 sandboxes that the runtime does not list are left, and the plugins of 0 networks"
        assert left in error["msg"]
        # One sandbox has taken the time of all; the plugins of networks have their own half.
        assert (other.commands, cluster.commands) == ([], ["GC"])
        status, error = await collect(daemon)
        assert "2 attachments of 1 sandboxes that the runtime does not list are left" in error["msg"]
        assert len(other.commands) == 4
        assert daemon.records.ids() == ["a"]


async def test_gc_of_a_slow_network_leaves_the_others_for_the_next_gc(plugins: Path, cluster: RecordingPlugin) -> None:
    """The networks are ``cluster``, ``of-net0`` and ``of-net1``; the second one takes all the time that there is."""
    plain, slow = RecordingPlugin(plugins, "plain"), RecordingPlugin(plugins, "slow")
    slow.sleep("GC", FOR_EVER)
    async with serving(plugins, 2) as daemon:
        daemon.records.write(sandbox(SANDBOX, attachment("net0", slow), attachment("net1", plain)))
        status, error = await collect(daemon, SANDBOX)
        assert (status, error["code"]) == (400, 11)
        assert "and the plugins of 1 networks; the next GC continues: plugin type=" in error["msg"]
        assert (cluster.commands, plain.commands) == (["GC"], [])
        await collect(daemon, SANDBOX)
        assert plain.commands == ["GC"]
        assert plain.stdin(0)["cni.dev/valid-attachments"] == [{"containerID": SANDBOX, "ifname": "net1"}]


async def test_calls_for_other_sandboxes_run_during_a_gc(plugins: Path, cluster: RecordingPlugin) -> None:
    slow, other = RecordingPlugin(plugins, "slow"), RecordingPlugin(plugins, "other")
    async with serving(plugins, 90) as daemon:
        daemon.records.write(sandbox("a", attachment("net1", slow)))
        daemon.records.write(sandbox(SANDBOX, attachment("net1", other)))
        with slow.holding("DEL"):
            gc = asyncio.create_task(collect(daemon, SANDBOX))
            while not slow.commands:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await daemon.cni("DEL", "") == (200, None)
            assert not gc.done()
        assert await gc == (200, None)
        assert (other.commands, cluster.commands) == (["DEL net1"], ["GC"])


async def test_gc_leaves_a_sandbox_alone_whose_call_is_running(plugins: Path, cluster: RecordingPlugin) -> None:
    """The runtime made its list before it asked for that sandbox."""
    created, gone = RecordingPlugin(plugins, "created"), RecordingPlugin(plugins, "gone")
    async with serving(plugins, 90) as daemon:
        known = sandbox("a", attachment("net1", created))
        daemon.records.write(known)
        daemon.records.write(sandbox("z", attachment("net1", gone)))
        async with daemon.records.lock("a"):
            gc = asyncio.create_task(collect(daemon))
            while not gone.commands:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await gc == (200, None)
        assert created.commands == ["GC"]
        assert created.stdin(0)["cni.dev/valid-attachments"] == [{"containerID": "a", "ifname": "net1"}]
        assert daemon.records.read("a") == known


async def test_a_call_waits_for_a_slot_no_longer_than_it_may_take() -> None:
    slots = FairSlots(1)
    async with slots.hold("a"), AsyncExitStack() as stack:
        with pytest.raises(CniError, match="too many calls have been running for") as caught, time_limit(0.02):
            await take_slot(stack, slots, "b")
        assert caught.value.code == 11
    async with AsyncExitStack() as stack:
        await take_slot(stack, slots, "b")


def test_time_limits_nest() -> None:
    assert seconds_left() == math.inf
    with time_limit(50):
        with time_limit(100):
            assert 40 < seconds_left() <= 50
        with time_limit(100, anew=True):
            assert 90 < seconds_left() <= 100
        assert seconds_left(3) == 3
        with time_limit(0):
            assert seconds_left() == 0
    assert seconds_left() == math.inf
