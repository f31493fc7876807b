"""``hotnic node clean`` beside a real daemon: it waits for the daemon's end and understands the daemon's own files."""

import asyncio
import json
from pathlib import Path

from services.cli.node.apply import clean
from services.cli.node.observe import NodeDirectories, observe
from tests.support.node.cni import RecordingPlugin
from tests.support.node.multus_daemon import SANDBOX, Daemon


def directories(daemon: Daemon) -> NodeDirectories:
    """Return the directories of a daemon."""
    return NodeDirectories(
        cni_conf_dir=str(daemon.config.conf_dir),
        cni_bin_dir=str(daemon.config.bin_dir),
        state_dir=str(daemon.config.cni_dir),
        socket_dir=str(daemon.config.socket_dir),
    )


async def test_nothing_is_removed_while_the_daemon_runs(daemon: Daemon) -> None:
    paths = directories(daemon)
    (daemon.config.conf_dir / "00-multus.conf").write_text(json.dumps({"type": "hotnic-multus"}))
    report = await asyncio.to_thread(clean, paths, dry_run=False, timeout=0.5)
    assert report.removed == ()
    assert [item.path for item in report.failed] == [paths.socket_dir]
    assert (daemon.config.conf_dir / "00-multus.conf").exists()


async def test_the_records_of_a_daemon_are_understood_and_removed(
    daemon: Daemon, sandbox_netns: Path, recording: RecordingPlugin
) -> None:
    daemon.pod()
    config = {"cniVersion": "1.0.0", "name": "blue", "type": recording.type}
    status, answer = await daemon.delegate("ADD", sandbox_netns, "net1", config)
    assert status == 200, answer
    await daemon.records.flush()
    paths = directories(daemon)
    node = observe(paths)
    (sandbox,) = node.sandboxes
    assert (sandbox.pod.startswith("default/"), sandbox.alive) == (True, True)
    assert [(link.ifname, link.origin) for link in sandbox.attachments] == [("net1", "delegate")]
    assert [Path(path).stem for path in node.record_files] == [SANDBOX]
    assert node.foreign == ()
