"""Records of sandboxes: what is on disk, and that calls for one sandbox wait for each other."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import structlog

from services.multus.disk import replace
from services.multus.errors import CniError
from services.multus.records import Attachment, Owner, Records, Sandbox, State

LOG = structlog.get_logger()


def attachment(ifname: str, state: State = State.ADDED) -> Attachment:
    return Attachment(ifname, "ns/blue", Owner.DELEGATE, '{"type":"b"}', "blue", "1.0.0", "f", state, {"mac": "x"})


def sandbox(*attachments: Attachment) -> Sandbox:
    return Sandbox("abc", "/ns", "default", "pod", "uid", attachments)


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "sandboxes").iterdir())


async def test_what_is_written_is_read_before_and_after_it_is_on_the_disk(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG)
    known = sandbox(attachment("net1"), attachment("net2", State.ADDING))
    records.write(known)
    assert files(tmp_path) == ["abc.unsettled"]
    assert Records(tmp_path, log=LOG).read("abc") == known  # as after a kill
    assert records.ids() == ["abc"]
    await records.settled()
    assert files(tmp_path) == ["abc.json"]
    assert records.read("abc") == known
    file = tmp_path / "sandboxes" / "abc.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    records.write(sandbox())
    assert records.read("abc") is None
    await records.settled()
    records.write(sandbox())
    await records.settled()
    assert files(tmp_path) == []


async def test_the_newest_record_wins_whatever_the_disk_does_meanwhile(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG)
    for count in range(1, 20):
        records.write(sandbox(*(attachment(f"net{i}") for i in range(count))))
        await asyncio.sleep(0)
    assert len((records.read("abc") or sandbox()).attachments) == 19
    await records.settled()
    assert len((records.read("abc") or sandbox()).attachments) == 19
    records.write(sandbox(attachment("net1")))
    await asyncio.sleep(0)  # on its way to the disk now
    records.write(sandbox())
    assert records.read("abc") is None
    await records.settled()
    assert files(tmp_path) == []


async def test_a_removed_record_does_not_come_back_while_the_disk_still_has_the_older_one(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG)
    caught = 0
    while caught < 10:
        records.write(sandbox(attachment("net1")))
        settled = asyncio.create_task(records.settled())
        while not settled.done():
            await asyncio.sleep(0)
            if any(name.startswith(".abc.json") for name in files(tmp_path)):  # the worker thread is at it
                caught += 1
                break
        records.write(sandbox())
        while not settled.done():
            assert records.read("abc") is None
            await asyncio.sleep(0)
        await records.settled()
        assert records.read("abc") is None
        assert files(tmp_path) == []


async def test_a_record_written_as_another_has_just_settled_settles_too(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG, unsettled=tmp_path / "unsettled")
    for count in range(1, 40):
        records.write(sandbox(attachment(f"net{count}")))
        while any((tmp_path / "unsettled").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        records.write(sandbox(attachment(f"net{count}"), attachment("other")))
        await records.settled()
        assert not list((tmp_path / "unsettled").iterdir())


async def test_a_record_that_cannot_be_written_leaves_what_was_recorded(tmp_path: Path) -> None:
    """The caller hears of it as a CNI error, and neither memory nor files speak of what was not recorded."""
    memory = tmp_path / "memory"
    records = Records(tmp_path, log=LOG, unsettled=memory)
    records.write(sandbox(attachment("net1")))
    await records.settled()
    memory.rmdir()
    memory.touch()  # nothing can be made in a file
    with pytest.raises(CniError, match="the record of sandbox abc cannot be written") as caught:
        records.write(sandbox(attachment("net1"), attachment("net2")))
    assert caught.value.code == 5
    with pytest.raises(CniError) as caught:
        records.read("abc")
    assert caught.value.code == 5
    memory.unlink()
    memory.mkdir()
    assert records.read("abc") == sandbox(attachment("net1"))
    settled = tmp_path / "sandboxes" / "abc.json"
    settled.unlink()
    settled.mkdir()  # it cannot be unlinked
    with pytest.raises(CniError, match="cannot be written"):
        records.write(sandbox())
    settled.rmdir()
    records.write(sandbox())
    await records.settled()
    assert records.read("abc") is None


async def test_what_an_earlier_process_left_in_memory_is_settled(tmp_path: Path) -> None:
    """Killed before the disk was written: the next process owes it that."""
    records = Records(tmp_path, log=LOG, unsettled=tmp_path / "memory")
    known = sandbox(attachment("net1"))
    (tmp_path / "memory" / "abc.unsettled").write_bytes(msgspec.json.encode(known))
    records.settle("abc")
    records.settle("other")
    await records.settled()
    assert files(tmp_path) == ["abc.json"]
    assert not list((tmp_path / "memory").iterdir())
    assert records.read("abc") == known


async def test_a_record_that_a_full_disk_refused_is_settled_later(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG, unsettled=tmp_path / "memory")
    known = sandbox(attachment("net1"))
    in_the_way = tmp_path / "sandboxes" / "abc.json"
    in_the_way.mkdir()
    records.write(known)
    await records.settled()
    assert records.read("abc") == known
    in_the_way.rmdir()
    records.settle("abc")
    await records.settled()
    assert files(tmp_path) == ["abc.json"]


def test_a_file_that_was_cut_off_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / ".abc.json.4711.tmp").write_bytes(b"{")
    (tmp_path / "sandboxes" / "abc.json").write_bytes(msgspec.json.encode(sandbox(attachment("net1"))))
    Records(tmp_path, log=LOG)
    assert files(tmp_path) == ["abc.json"]


async def test_a_torn_unsettled_record_falls_back_to_the_settled_one(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG)
    records.write(sandbox(attachment("net1")))
    await records.settled()
    (tmp_path / "sandboxes" / "abc.unsettled").write_bytes(b"")
    assert records.read("abc") == sandbox(attachment("net1"))
    assert files(tmp_path) == ["abc.json", "abc.unsettled.damaged"]


def test_attachments_keep_their_order() -> None:
    known = sandbox(attachment("a"), attachment("b"))
    assert [a.ifname for a in known.with_(attachment("a", State.ADDING)).attachments] == ["a", "b"]
    assert [a.ifname for a in known.with_(attachment("c")).without("a").attachments] == ["b", "c"]


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b'{"sandboxId":"abc"', b"[]"])
def test_a_damaged_record_is_put_aside(tmp_path: Path, data: bytes) -> None:
    records = Records(tmp_path, log=LOG)
    folder = tmp_path / "sandboxes"
    (folder / "abc.json").write_bytes(data)
    assert records.read("abc") is None
    assert files(tmp_path) == ["abc.json.damaged"]
    assert records.ids() == []


def test_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG)
    for name in ("../x", "", "a/b", ".hidden", "ü"):
        with pytest.raises(CniError):
            records.read(name)


async def test_one_call_at_a_time_holds_a_sandbox(tmp_path: Path) -> None:
    records = Records(tmp_path, log=LOG, lock_timeout=0.05)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def hold() -> None:
        async with records.locked("abc"):
            entered.set()
            await leave.wait()

    holder = asyncio.create_task(hold())
    await entered.wait()
    async with records.locked("other"):
        pass
    with pytest.raises(CniError) as caught:
        async with records.locked("abc"):
            raise AssertionError("two calls hold one sandbox")
    assert caught.value.code == 11
    leave.set()
    await holder
    async with records.locked("abc"):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    replace(target, b"old", mode=0o755, synced=True)
    assert target.stat().st_mode & 0o777 == 0o755
    with pytest.raises(TypeError):
        replace(target, None)  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
