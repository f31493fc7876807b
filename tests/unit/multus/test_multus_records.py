"""Records of sandboxes: their files, and the lock per sandbox."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
import structlog
from opentelemetry.trace import NoOpTracer

from schemas.multus import MAX_RECORD_BYTES
from services.multus.cni.device_info import DeviceInfoFiles
from services.multus.cni.errors import CniError
from services.multus.records.sandbox import Attachment, AttachmentOrigin, AttachmentState, SandboxState
from services.multus.records.store import MAX_DAMAGED, SETTLED, UNSETTLED, Records
from services.multus.records.upstream import UpstreamCache

LOG = structlog.get_logger()


def attachment(ifname: str, state: AttachmentState = AttachmentState.ADDED) -> Attachment:
    return Attachment(
        ifname, "ns/blue", AttachmentOrigin.DELEGATE, '{"type":"b"}', "blue", "1.0.0", "f", state, {"mac": "x"}
    )


def sandbox(*attachments: Attachment) -> SandboxState:
    return SandboxState("abc", "/ns", "default", "pod", "uid", attachments)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "sandboxes").iterdir())


async def test_a_record_is_readable_before_and_after_the_sync(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    known = sandbox(attachment("net1"), attachment("net2", AttachmentState.ADDING))
    records.write(known)
    assert files(tmp_path) == ["abc.unsettled"]
    assert Records(tmp_path, tracer=NoOpTracer(), log=LOG).read("abc") == known  # as a new process after a kill
    assert records.ids() == ["abc"]
    await records.flush()
    assert files(tmp_path) == ["abc.json"]
    assert records.read("abc") == known
    file = tmp_path / "sandboxes" / "abc.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    records.write(sandbox())
    assert records.read("abc") is None
    await records.flush()
    records.write(sandbox())
    await records.flush()
    assert files(tmp_path) == []


async def test_read_returns_the_newest_record_during_the_sync(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    for count in range(1, 20):
        records.write(sandbox(*(attachment(f"net{i}") for i in range(count))))
        await asyncio.sleep(0)
    assert len((records.read("abc") or sandbox()).attachments) == 19
    await records.flush()
    assert len((records.read("abc") or sandbox()).attachments) == 19
    records.write(sandbox(attachment("net1")))
    await asyncio.sleep(0)  # the sync has started
    records.write(sandbox())
    assert records.read("abc") is None
    await records.flush()
    assert files(tmp_path) == []


async def test_a_removed_record_does_not_reappear_during_the_sync(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    caught = 0
    while caught < 10:
        records.write(sandbox(attachment("net1")))
        settled = asyncio.create_task(records.flush())
        while not settled.done():
            await asyncio.sleep(0)
            if any(name.startswith(".abc.json") for name in files(tmp_path)):  # the worker thread writes now
                caught += 1
                break
        records.write(sandbox())
        while not settled.done():
            assert records.read("abc") is None
            await asyncio.sleep(0)
        await records.flush()
        assert records.read("abc") is None
        assert files(tmp_path) == []


async def test_a_record_written_right_after_a_sync_is_settled_too(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG, unsettled=tmp_path / "unsettled")
    for count in range(1, 40):
        records.write(sandbox(attachment(f"net{count}")))
        while any((tmp_path / "unsettled").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        records.write(sandbox(attachment(f"net{count}"), attachment("other")))
        await records.flush()
        assert not list((tmp_path / "unsettled").iterdir())


async def test_a_failed_write_keeps_the_earlier_record(tmp_path: Path) -> None:
    """The caller gets a CNI error, and neither memory nor the files have the record that was not written."""
    memory = tmp_path / "memory"
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG, unsettled=memory)
    records.write(sandbox(attachment("net1")))
    await records.flush()
    memory.rmdir()
    memory.touch()  # a file in place of the directory: nothing can be created in it
    with pytest.raises(CniError, match="the record of sandbox abc cannot be written") as caught:
        records.write(sandbox(attachment("net1"), attachment("net2")))
    assert caught.value.code == 5
    with pytest.raises(CniError) as caught:
        records.read("abc")
    assert caught.value.code == 5
    memory.unlink()
    memory.mkdir()
    assert records.read("abc") == sandbox(attachment("net1"))
    folder, hidden = tmp_path / "sandboxes", tmp_path / "hidden"
    folder.rename(hidden)
    folder.touch()  # here too: nothing in it can be unlinked
    with pytest.raises(CniError, match="cannot be written"):
        records.write(sandbox())
    folder.unlink()
    hidden.rename(folder)
    records.write(sandbox())
    await records.flush()
    assert records.read("abc") is None


async def test_an_unsettled_record_of_an_earlier_process_is_settled(tmp_path: Path) -> None:
    """The earlier process was killed before it wrote to disk; the next process does that."""
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG, unsettled=tmp_path / "memory")
    known = sandbox(attachment("net1"))
    (tmp_path / "memory" / "abc.unsettled").write_bytes(msgspec.json.encode(known))
    records.settle("abc")
    records.settle("other")
    await records.flush()
    assert files(tmp_path) == ["abc.json"]
    assert not list((tmp_path / "memory").iterdir())
    assert records.read("abc") == known


async def test_a_record_is_settled_after_a_disk_failure(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG, unsettled=tmp_path / "memory")
    known = sandbox(attachment("net1"))
    obstacle = tmp_path / "sandboxes"
    obstacle.rmdir()
    obstacle.touch()
    records.write(known)
    await records.flush()
    assert records.read("abc") == known
    obstacle.unlink()
    obstacle.mkdir()
    records.settle("abc")
    await records.flush()
    assert files(tmp_path) == ["abc.json"]


def test_leftover_temporary_files_are_removed_at_start(tmp_path: Path) -> None:
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / ".abc.json.4711.tmp").write_bytes(b"{")
    (tmp_path / "sandboxes" / "abc.json").write_bytes(msgspec.json.encode(sandbox(attachment("net1"))))
    Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    assert files(tmp_path) == ["abc.json"]


async def test_a_torn_unsettled_record_falls_back_to_the_settled_one(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    records.write(sandbox(attachment("net1")))
    await records.flush()
    (tmp_path / "sandboxes" / "abc.unsettled").write_bytes(b"")
    assert records.read("abc") == sandbox(attachment("net1"))
    assert files(tmp_path) == ["abc.json", "abc.unsettled.damaged"]


def test_attachments_stay_in_order() -> None:
    known = sandbox(attachment("a"), attachment("b"))
    assert [a.ifname for a in known.with_attachment(attachment("a", AttachmentState.ADDING)).attachments] == ["a", "b"]
    assert [a.ifname for a in known.with_attachment(attachment("c")).without_attachment("a").attachments] == ["b", "c"]


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b'{"sandboxId":"abc"', b"[]", b"[" * 5000, b'{"sandboxId":"\xff"}'])
def test_a_damaged_record_is_renamed(tmp_path: Path, data: bytes) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    folder = tmp_path / "sandboxes"
    (folder / "abc.json").write_bytes(data)
    assert records.read("abc") is None
    assert files(tmp_path) == ["abc.json.damaged"]
    assert records.ids() == []


@pytest.mark.parametrize("suffix", [SETTLED, UNSETTLED])
def test_a_record_that_is_too_large_is_not_read_and_renamed(tmp_path: Path, suffix: str) -> None:
    logged = structlog.testing.CapturingLogger()
    records = Records(tmp_path, tracer=NoOpTracer(), log=logged)
    file = tmp_path / "sandboxes" / f"abc{suffix}"
    file.touch()
    # A hole: the file takes no space, and reading all of it would take that of the daemon.
    os.truncate(file, 1 << 40)
    with pytest.raises(CniError, match=f"damaged: .*larger than the limit.*abc{suffix}") as caught:
        records.read("abc", rename_damaged=False)
    assert caught.value.code == 5
    assert records.read("abc") is None
    assert files(tmp_path) == [f"abc{suffix}.damaged"]
    assert [call.kwargs["path"] for call in logged.calls] == [str(file.with_name(f"abc{suffix}.damaged"))]


def test_no_record_is_written_that_is_too_large_to_be_read(tmp_path: Path) -> None:
    """Plugins of the attachment would run, and no DEL would find it."""
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    large = msgspec.structs.replace(attachment("net1"), config=f'{{"type":"{"b" * MAX_RECORD_BYTES}"}}')
    with pytest.raises(CniError, match=r"the record of sandbox abc would have \d+ bytes; the limit is") as caught:
        records.write(sandbox(large))
    assert caught.value.code == 5
    assert files(tmp_path) == []


def test_files_of_others_that_are_too_large_count_as_absent(tmp_path: Path) -> None:
    devices, upstream = DeviceInfoFiles(tmp_path), UpstreamCache(tmp_path)
    described = devices.path("ns/blue", "abc", "net1")
    for file in (described, tmp_path / "abc", tmp_path / "results" / "blue-abc-net1"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.truncate(file, 1 << 40)
    assert devices.read("ns/blue", "abc", "net1") is None
    assert upstream.read("abc") is None


def test_files_of_others_that_are_not_utf8_count_as_absent(tmp_path: Path) -> None:
    devices, upstream = DeviceInfoFiles(tmp_path), UpstreamCache(tmp_path)
    described = devices.path("ns/blue", "abc", "net1")
    described.parent.mkdir()
    described.write_bytes(b'{"type":"\xff"}')
    assert devices.read("ns/blue", "abc", "net1") is None
    (tmp_path / "abc").write_bytes(b'[{"Name":"\xff"}]')
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "blue-abc-net1").write_bytes(b'{"containerId":"\xff"}')
    assert upstream.sandbox_ids() == ["abc"]
    assert upstream.read("abc") is None


def test_a_damaged_record_is_an_error_for_who_may_not_rename_it(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    (tmp_path / "sandboxes" / "abc.json").write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(CniError, match="the record of sandbox abc is damaged: ") as caught:
            records.read("abc", rename_damaged=False)
        assert caught.value.code == 5
    assert files(tmp_path) == ["abc.json"]


def test_read_refuses_ids_that_leave_the_directory(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    for name in ("../x", "", "a/b", ".hidden", "ü"):
        with pytest.raises(CniError):
            records.read(name)


async def test_one_call_at_a_time_holds_a_sandboxs_lock(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG, lock_timeout=0.05)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def hold() -> None:
        async with records.lock("abc"):
            entered.set()
            await leave.wait()

    holder = asyncio.create_task(hold())
    await entered.wait()
    async with records.lock("other"):
        pass
    with pytest.raises(CniError) as caught:
        async with records.lock("abc"):
            raise AssertionError("two calls hold one sandbox")
    assert caught.value.code == 11
    leave.set()
    await holder
    async with records.lock("abc"):
        pass


def test_damaged_records_go_with_their_sandbox(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    folder = tmp_path / "sandboxes"
    for name in ("gone", "alive", "deleted"):
        (folder / f"{name}.json").write_bytes(b"{")
        (folder / f"{name}.unsettled").write_bytes(b"{")
        assert records.read(name) is None
    errors = records.keep_damaged({"alive", "deleted"})
    assert {name: error.code for name, error in errors.items()} == {"alive": 5, "deleted": 5}
    assert "the record of sandbox alive is damaged, so its attachments are not known" in errors["alive"].msg
    records.forget_damaged("deleted")
    records.forget_damaged("never-there")
    assert files(tmp_path) == ["alive.json.damaged", "alive.unsettled.damaged"]


def test_damaged_records_are_bounded(tmp_path: Path) -> None:
    records = Records(tmp_path, tracer=NoOpTracer(), log=LOG)
    folder = tmp_path / "sandboxes"
    for number in range(MAX_DAMAGED + 3):
        path = folder / f"s{number}.json"
        path.write_bytes(b"{")
        os.utime(path, (number, number))
        records.read(f"s{number}")
    assert len(files(tmp_path)) == MAX_DAMAGED
    assert not {"s0.json.damaged", "s1.json.damaged", "s2.json.damaged"} & set(files(tmp_path))
