"""One attachment or sandbox that fails in any way, known or not, stops no other, and what was added is undone."""

import asyncio
import errno
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import structlog

from schemas import cni
from services.common.kube.event_recorder import EventRecorder
from services.common.netlink.errors import NetnsGone
from services.common.netlink.links import Link
from services.common.netlink.pool import NetnsPool
from services.multus.apply import Applier
from services.multus.cni.conflist import AttachmentAttributes, parse
from services.multus.cni.device_info import DeviceInfoFiles
from services.multus.cni.errors import CniError
from services.multus.cni.executor import Executor, time_limit
from services.multus.plan import AddAttachment, DeleteAttachment, DesiredAttachment
from services.multus.pod.events import PodEvents
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState
from services.multus.records.store import Records
from services.multus.records.upstream import UpstreamCache
from services.multus.sandboxes.adoption import Adoption
from services.multus.sandboxes.sweep import Sweep
from tests.support.node.cni import RecordingPlugin
from tests.support.telemetry.spans import recording_telemetry

UNREADABLE: dict[str, Any] = {"ips": [5]}
"""A ``runtimeConfig`` with which every call of a plugin raises TypeError: no error that multus knows."""
LOG = structlog.get_logger()


class Namespaces:
    """The network namespaces of sandboxes: they have no links; that of ``gone`` does not exist."""

    async def open(self, path: str) -> "Namespaces":
        if path == "gone":
            raise NetnsGone(errno.ENOENT, path)
        if path == "broken":
            raise ValueError(path)
        return self

    async def links(self) -> list[Link]:
        return []

    async def link(self, name: str) -> None:
        return None

    def drop(self, path: str) -> None:
        pass


@pytest.fixture
def plugin(tmp_path: Path) -> RecordingPlugin:
    """The plugin of all networks."""
    (tmp_path / "bin").mkdir()
    return RecordingPlugin(tmp_path / "bin")


class Node:
    """An applier with records in a directory."""

    def __init__(self, folder: Path) -> None:
        tracer = recording_telemetry()[0].tracer
        self.records = Records(folder / "state", tracer=tracer, log=LOG)
        upstream = UpstreamCache(folder / "upstream")
        self.applier = Applier(
            executor=Executor([str(folder / "bin")], tracer=tracer, log=LOG),
            records=self.records,
            netns=cast("NetnsPool", Namespaces()),
            devices=DeviceInfoFiles(folder / "devices"),
            upstream=upstream,
            pod_events=PodEvents(cast("EventRecorder", None)),
            log=LOG,
        )
        self.sweep = Sweep(self.records, self.applier, Adoption(upstream, self.records, self.applier, LOG), LOG)


def desired(ifname: str, plugin: RecordingPlugin, **runtime: Any) -> DesiredAttachment:
    network = parse(msgspec.json.encode({"cniVersion": "1.0.0", "name": f"of-{ifname[-1]}", "type": plugin.type}))
    return DesiredAttachment(ifname, network, ifname, AttachmentOrigin.NETWORKS, AttachmentAttributes(runtime))


def added(ifname: str, plugin: RecordingPlugin, **runtime: Any) -> Attachment:
    return msgspec.structs.replace(desired(ifname, plugin, **runtime).attachment(), state=AttachmentState.ADDED)


def sandbox(name: str, netns: str, *attachments: Attachment) -> SandboxState:
    return SandboxState(name, netns, "default", "pod", "uid", attachments)


async def test_what_a_failed_add_has_made_is_undone_whatever_failed(tmp_path: Path, plugin: RecordingPlugin) -> None:
    node = Node(tmp_path)
    wanted = [desired("net1", plugin), desired("net2", plugin, **UNREADABLE)]
    with pytest.raises(CniError, match=r"default/pod.*of-2.*internal error: TypeError"):
        await node.applier.add(sandbox("a", ""), [AddAttachment(one) for one in wanted])
    assert plugin.commands == ["ADD net1", "DEL net1"]
    left = node.records.read("a")
    assert [one.ifname for one in left.attachments] == ["net2"] if left else False
    await node.records.flush()


async def test_what_an_add_without_time_has_made_is_undone(tmp_path: Path, plugin: RecordingPlugin) -> None:
    node = Node(tmp_path)
    plugin.sleep("ADD", 600)
    with time_limit(0.3), pytest.raises(CniError, match="and was killed, because the call has used up its time"):
        await node.applier.add(sandbox("a", ""), [AddAttachment(desired("net1", plugin))])
    assert plugin.commands == ["ADD net1", "DEL net1"]
    assert node.records.read("a") is None
    await node.records.flush()


async def test_one_attachment_that_cannot_be_deleted_leaves_no_other_behind(
    tmp_path: Path, plugin: RecordingPlugin
) -> None:
    node = Node(tmp_path)
    three = sandbox("a", "", added("net1", plugin), added("net2", plugin, **UNREADABLE), added("net3", plugin))
    failures = await node.applier.delete_attachments(three, [DeleteAttachment(one) for one in three.attachments])
    assert plugin.commands == ["DEL net1", "DEL net3"]
    assert ["TypeError" in error.msg for error in failures] == [True]
    await node.records.flush()


async def test_a_name_that_no_process_can_get_is_a_classified_failure(tmp_path: Path, plugin: RecordingPlugin) -> None:
    """Records of earlier versions may have it: ``posix_spawn`` raises ValueError for a NUL byte."""
    node = Node(tmp_path)
    two = sandbox("a", "", added("a\0b", plugin), added("net1", plugin))
    [failure] = await node.applier.delete_attachments(two, [DeleteAttachment(one) for one in two.attachments])
    assert (failure.code, "embedded null" in failure.msg) == (cni.CniErrorCode.IO_FAILURE, True)
    assert plugin.commands == ["DEL net1"]
    await node.records.flush()


async def test_the_sweep_goes_on_after_a_sandbox_that_fails_in_any_way(tmp_path: Path, plugin: RecordingPlugin) -> None:
    node = Node(tmp_path)
    for name, netns in (("a", "broken"), ("b", "gone")):
        node.records.write(sandbox(name, netns, added("net1", plugin)))
    assert await node.sweep.run_once() == 1
    assert plugin.commands == ["DEL net1"]
    await node.records.flush()
    assert node.records.ids() == ["a"]


async def test_an_interrupted_add_in_use_leaves_no_other_behind(tmp_path: Path, plugin: RecordingPlugin) -> None:
    """The sweep deletes attachments whose ADD was interrupted, each by itself."""
    node = Node(tmp_path)
    two = [desired(ifname, plugin, **runtime).attachment() for ifname, runtime in (("net1", {}), ("net2", UNREADABLE))]
    node.records.write(sandbox("a", "here", *two))
    await node.sweep.run_once()
    assert plugin.commands == ["DEL net1"]
    await node.records.flush()
    left = node.records.read("a")
    assert [one.ifname for one in left.attachments] == ["net2"] if left else False


async def test_a_sandbox_whose_cleanup_takes_long_delays_no_other(tmp_path: Path, plugin: RecordingPlugin) -> None:
    node = Node(tmp_path)
    for name in ("a", "b"):
        node.records.write(sandbox(name, "gone", added("net1", plugin)))
    async with asyncio.timeout(45), node.records.lock("a"):
        sweep = asyncio.create_task(node.sweep.run_once())
        while node.records.read("b") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert node.records.read("a") is not None
    assert await sweep == 2
    await node.records.flush()
