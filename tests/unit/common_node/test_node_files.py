"""Files of a node are replaced whole: while copies of the old program run, by several writers, after a crash."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.node.files import FileTooLarge, install_executable, read_bounded, replace_file, temporary_files

COPIES = 50
PYTHON = Path(os.path.realpath(sys.executable))
"""An executable that is always there. A script is never "busy", because the kernel maps its interpreter instead."""


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_up_to_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * size)
    assert read_bounded(file, 100) == b"x" * size


def test_a_file_of_several_reads_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    assert read_bounded(file) == file.read_bytes()


def test_what_a_reader_does_not_take_is_refused_with_its_path(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"x" * 101)
    with pytest.raises(FileTooLarge, match=r"limit of 100 bytes: '/.*/file'"):
        read_bounded(file, 100)
    # The size that a file names is not what it has: /proc has files of size 0.
    with pytest.raises(FileTooLarge):
        read_bounded(Path("/proc/self/status"), 100)
    os.mkfifo(pipe)
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}'"):
        read_bounded(tmp_path)
    for other in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match=f"no regular file: '{other}'"):
            read_bounded(other)
    with pytest.raises(FileNotFoundError, match=r"'/.*/none'"):
        read_bounded(tmp_path / "none")


def test_a_program_is_written_once_with_its_mode(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "bin" / "program"
    target.parent.mkdir()
    source.write_text("#!/bin/sh\necho 1\n")
    assert install_executable(source, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    before = target.stat()
    assert not install_executable(source, target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    target.chmod(0o600)
    assert install_executable(source, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    source.write_text("#!/bin/sh\necho 2\n")
    assert install_executable(source, target)
    assert subprocess.run([target], capture_output=True, check=True).stdout == b"2\n"
    assert os.listdir(target.parent) == ["program"]


async def test_a_program_is_replaced_while_copies_of_it_run(tmp_path: Path) -> None:
    """Upstream fault multus-cni#1221: `cp: Text file busy`, and the DaemonSet never starts again."""
    target = tmp_path / "program"
    old, new = PYTHON, tmp_path / "new"
    install_executable(old, target)
    new.write_text("#!/bin/sh\necho new\n")
    copies = [
        await asyncio.create_subprocess_exec(target, "-IS", "-c", "input(); print('old')", stdin=-1, stdout=-1)
        for _ in range(COPIES)
    ]
    with pytest.raises(OSError, match="Text file busy"):
        target.write_bytes(b"")
    assert install_executable(new, target)
    replaced = await asyncio.create_subprocess_exec(target, stdout=-1)
    assert (await replaced.communicate())[0] == b"new\n"
    outputs = await asyncio.wait_for(asyncio.gather(*(copy.communicate(b"\n") for copy in copies)), 50)
    assert [out for out, _ in outputs] == [b"old\n"] * COPIES
    assert [copy.returncode for copy in copies] == [0] * COPIES


def test_several_writers_leave_one_complete_program(tmp_path: Path) -> None:
    """An init container and a daemon have the same process id, each in its own namespace."""
    target = tmp_path / "program"
    sources = [tmp_path / f"source{i}" for i in range(4)]
    for i, source in enumerate(sources):
        source.write_bytes(bytes([i]) * 1_000_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: install_executable(sources[i % 4], target), range(40)))
    content = target.read_bytes()
    assert len(content) == 1_000_000
    assert len(set(content)) == 1
    assert temporary_files(target) == []


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "program"
    source.write_bytes(b"x")
    old, recent = tmp_path / ".program.1-a.tmp", tmp_path / ".program.1-b.tmp"
    for path in (old, recent):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    install_executable(source, target)
    assert temporary_files(target) == [recent]


def test_a_directory_is_in_the_way_of_no_program(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "program"
    source.write_text("#!/bin/sh")
    old = time.time() - 7200
    for path in (target, target.with_name(".program.1.tmp")):
        path.mkdir()
        (path / "10.0.0.1").touch()
        path.chmod(0o755)
        os.utime(path, (old, old))
    assert install_executable(source, target)
    assert target.read_text() == "#!/bin/sh"
    (aside,) = tmp_path.glob("program.aside-*")
    assert (aside / "10.0.0.1").exists()
    assert temporary_files(target) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "program"
    with pytest.raises(FileNotFoundError):
        install_executable(tmp_path / "nothing", target)
    with pytest.raises(FileNotFoundError):
        install_executable(Path(__file__), tmp_path / "no" / "program")
    replace_file(target, b"old")
    with pytest.raises(TypeError):
        replace_file(target, None)  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["program"]
