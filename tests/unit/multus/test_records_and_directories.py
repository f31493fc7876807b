"""Directories among the records: a plugin such as host-local makes them at paths that a network's author chooses."""

from pathlib import Path

import pytest
import structlog
from opentelemetry.trace import NoOpTracer
from structlog.testing import capture_logs

from services.multus.records.sandbox import Attachment, AttachmentOrigin, SandboxState
from services.multus.records.store import SETTLED, UNSETTLED, Records
from services.multus.records.upstream import UpstreamCache


def records(folder: Path) -> Records:
    return Records(folder, tracer=NoOpTracer(), log=structlog.get_logger(), unsettled=folder / "memory")


def sandbox(*ifnames: str) -> SandboxState:
    attachments = [
        Attachment(ifname, "ns/blue", AttachmentOrigin.DELEGATE, '{"type":"b"}', "blue", "1.0.0", "f")
        for ifname in ifnames
    ]
    return SandboxState("abc", "/ns", "default", "pod", "uid", tuple(attachments))


@pytest.mark.parametrize("folder", ["sandboxes", "memory"])
async def test_a_directory_is_no_record(tmp_path: Path, folder: str) -> None:
    kept = records(tmp_path)
    kept.write(sandbox("net1"))
    await kept.flush()
    names = ("evil.json", "evil.unsettled", "evil.json.damaged", "gone.unsettled.damaged", ".evil.json.1.tmp")
    for name in names:
        (tmp_path / folder / name).mkdir()
        (tmp_path / folder / name / "10.0.0.1").write_text("lease")
    with capture_logs() as lines:
        again = records(tmp_path)
        for _ in range(2):
            assert again.ids() == ["abc"]
            assert again.read("evil") is None
            assert again.keep_damaged({"evil"}) == {}
            again.settle("evil")
    assert [line["log_level"] for line in lines] == ["error"]
    assert "evil.json" in lines[0]["paths"][0]
    assert again.read("abc") == sandbox("net1")


@pytest.mark.parametrize("suffix", [SETTLED, UNSETTLED])
async def test_a_directory_at_the_path_of_a_record_is_in_the_way_of_none(tmp_path: Path, suffix: str) -> None:
    kept = records(tmp_path)
    path = tmp_path / ("sandboxes" if suffix == SETTLED else "memory") / f"abc{suffix}"
    path.mkdir()
    kept.write(sandbox())
    kept.forget_damaged("abc")
    await kept.flush()
    kept.write(sandbox("net1"))
    await kept.flush()
    assert records(tmp_path).read("abc") == sandbox("net1")
    assert [entry.name[:14] for entry in path.parent.glob("*.aside-*")] == [f"abc{suffix}.aside-"[:14]]
    kept.write(sandbox())
    await kept.flush()
    assert records(tmp_path).ids() == []


def test_a_directory_among_upstreams_files_is_none_of_them(tmp_path: Path) -> None:
    for name in ("evil", "results/blue-evil-net1"):
        (tmp_path / name).mkdir(parents=True)
    cache = UpstreamCache(tmp_path)
    assert cache.sandbox_ids() == []
    assert cache.read("evil") is None
    cache.remove("evil", "net1", last=True)
