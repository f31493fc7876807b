"""The search for the processes of a run of a plugin, in folders that look like proc."""

import math
import os
from pathlib import Path

from services.multus.cni.plugin_marks import new_mark, processes_of

DAEMON = "4:memory:/kubepods/multus\n0::/kubepods/multus\n"
MARK = "MARK=5f0c"


def proc(folder: Path, own: str = DAEMON) -> Path:
    (folder / "self").mkdir()
    (folder / "self" / "cgroup").write_text(own)
    (folder / "uptime").write_text("1 1\n")
    return folder


def add(folder: Path, pid: int, environ: str, cgroup: str = DAEMON) -> Path:
    process = folder / str(pid)
    process.mkdir()
    (process / "cgroup").write_text(cgroup)
    (process / "environ").write_text(environ)
    return process


def test_processes_with_the_whole_variable_are_found(tmp_path: Path) -> None:
    folder = proc(tmp_path)
    add(folder, 1, f"{MARK}\0PATH=/bin\0")
    add(folder, 2, f"PATH=/bin\0{MARK}\0")
    add(folder, 3, f"A={MARK}\0")
    add(folder, 4, f"X{MARK}\0")
    add(folder, 5, f"{MARK}0\0")
    add(folder, 6, "".join(f"A{n}={MARK}\0" for n in range(20_000)))
    add(folder, 7, "")
    assert processes_of(MARK, math.inf, proc=folder) == {1, 2}


def test_a_process_of_another_cgroup_is_not_even_read(tmp_path: Path) -> None:
    folder = proc(tmp_path)
    add(folder, 1, f"{MARK}\0")
    # With version 1 of cgroups, the one of version 2 may be the same for all.
    others = ["0::/kubepods/pod\n", "4:memory:/kubepods/pod\n0::/kubepods/multus\n", DAEMON + "more\n", ""]
    for pid, cgroup in enumerate(others, 2):
        process = add(folder, pid, "", cgroup)
        (process / "environ").unlink()
        # To open it would wait for ever, as to read it does from memory that a file system does not give.
        os.mkfifo(process / "environ")
    assert processes_of(MARK, math.inf, proc=folder) == {1}


def test_a_process_in_a_cgroup_below_that_of_a_daemon_in_a_namespace_of_cgroups_is_another_one(tmp_path: Path) -> None:
    folder = proc(tmp_path, "0::/\n")
    add(folder, 1, f"{MARK}\0", "0::/\n")
    add(folder, 2, f"{MARK}\0", "0::/../../pod\n")
    add(folder, 3, f"{MARK}\0", "0::/hotnic-plugin-1-1\n")
    assert processes_of(MARK, math.inf, proc=folder) == {1}


def test_the_mark_alone_decides_without_cgroups_in_the_kernel(tmp_path: Path) -> None:
    folder = proc(tmp_path)
    (folder / "self" / "cgroup").unlink()
    for pid, environ in enumerate((f"{MARK}\0", "PATH=/bin\0"), 1):
        (add(folder, pid, environ) / "cgroup").unlink()
    assert processes_of(MARK, math.inf, proc=folder) == {1}


def test_the_search_has_limits(tmp_path: Path) -> None:
    folder = proc(tmp_path)
    for pid in range(1, 9):
        add(folder, pid, f"{MARK}\0")
        add(folder, 100 + pid, f"{MARK}\0", "0::/pod\n")
    assert len(processes_of(MARK, math.inf, proc=folder, limit=3)) == 3
    assert len(processes_of(MARK, math.inf, proc=folder, limit=8)) == 8
    assert processes_of(MARK, -math.inf, proc=folder) == set()


def test_marks_cannot_be_guessed() -> None:
    marks = {new_mark() for _ in range(100)}
    assert len(marks) == 100
    assert {len(mark) for mark in marks} == {32}
