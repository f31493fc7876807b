"""Plugins and processes of pods that try to escape from, or get into, the cgroup of a run of a plugin."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.multus import PLUGIN_MARK
from services.multus.cni.plugin_cgroups import PREFIX, PluginCgroups
from services.multus.cni.plugin_marks import join, kill_marked, new_mark
from services.multus.cni.plugin_process import MAX_OUTPUT, FloodError, PluginProcesses, limit_size

MANY = 5000


def plugin(path: Path, text: str, interpreter: str = sys.executable) -> str:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return str(path)


@contextlib.contextmanager
def process(environ: dict[str, str], cgroup: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that has no capabilities, as of a pod, until it is killed."""
    enter = f"echo $$ > {cgroup}/cgroup.procs; " if cgroup else ""
    script = f"{enter}exec setpriv --bounding-set=-all --inh-caps=-all sh -c 'echo; exec sleep 600'"
    with subprocess.Popen(["sh", "-c", script], env=environ | {"PATH": os.environ["PATH"]}, stdout=-1) as running:
        try:
            assert running.stdout is not None
            running.stdout.readline()
            yield running
        finally:
            running.kill()


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_a_process_of_another_cgroup_with_the_mark_of_a_run_stays_there_and_lives(parent: Path) -> None:
    pod = parent / "pod"
    pod.mkdir()
    value = new_mark()
    mark = f"{PLUGIN_MARK}={value}"
    cgroup = PluginCgroups(parent).make()
    with process({PLUGIN_MARK: value}, pod) as foreign, process({PLUGIN_MARK: value}) as own:
        join(cgroup, mark)
        assert (PREFIX in cgroup_of(foreign.pid), PREFIX in cgroup_of(own.pid)) == (False, True)
        assert cgroup_of(foreign.pid).endswith("/pod")
        kill_marked(mark, cgroup)
        own.wait(60)
        assert foreign.poll() is None
        kill_marked(mark, None)
        assert foreign.poll() is None


@pytest.mark.parametrize("name", [PLUGIN_MARK, "X"])
async def test_a_process_that_guesses_marks_is_neither_moved_nor_killed(
    tmp_path: Path, parent: Path, name: str
) -> None:
    """It is in the daemon's own cgroup, so that the mark alone protects it: each one is random and a whole variable."""
    seen = tmp_path / "seen"
    program = plugin(tmp_path / "p", f'echo "${PLUGIN_MARK}" >> {seen}; exec sleep 600', "/bin/sh")
    guessed = {f"{name}{n}": f"{PLUGIN_MARK}={os.getpid()}-{n}" for n in range(MANY)}
    processes = PluginProcesses(root=None, cgroups=PluginCgroups(parent, join_after=0.1), mark=PLUGIN_MARK)
    with process(guessed | {PLUGIN_MARK: f"{os.getpid()}-1"}) as foreign:
        before = cgroup_of(foreign.pid)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await processes.run(program, {"PATH": os.environ["PATH"]}, b"")
            assert (foreign.poll(), cgroup_of(foreign.pid)) == (None, before)
    first, second = seen.read_text().split()
    assert first != second
    assert {len(first), len(second)} == {32}


async def until_gone(pid: str) -> None:
    """Wait until a process has ended."""
    left = Path("/proc") / pid / "cmdline"
    async with asyncio.timeout(60):
        # Until it is reaped, or has no memory any more.
        while left.exists() and left.read_bytes():  # noqa: ASYNC110 (another process ends)
            await asyncio.sleep(0.01)


SEAL = """
import fcntl, os, sys, time
for stream in (1, 2): fcntl.fcntl(stream, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
{work}
"""


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_plugin_that_seals_its_output_does_not_escape_the_limit(
    tmp_path: Path, parent: Path, stream: int
) -> None:
    """The kernel then refuses to limit the file, but the plugin is killed and its cgroup removed."""
    flood = f"time.sleep(0.5)\nwhile True: os.write({stream}, bytes(1 << 20)); time.sleep(0.01)"
    program = plugin(tmp_path / "p", SEAL.format(work=flood))
    cgroups = PluginCgroups(parent, join_after=0.1)
    processes = PluginProcesses(root=None, cgroups=cgroups, mark=PLUGIN_MARK)
    with pytest.raises(FloodError):
        async with asyncio.timeout(60):
            await processes.run(program, {}, b"")
    async with asyncio.timeout(60):
        while [name for name in os.listdir(parent) if name.startswith(PREFIX)]:
            cgroups.close()
            await asyncio.sleep(0.01)


async def test_what_a_plugin_leaves_cannot_write_into_the_hole_that_it_has_made(tmp_path: Path) -> None:
    """It ends before anybody looks, and the size of its output is over the limit, but takes no memory yet."""
    pid = tmp_path / "pid"
    work = f"""
import os, time
os.ftruncate(1, 64 << 20)
if os.fork() == 0:
    with open("{pid}.new", "w") as file: file.write(str(os.getpid()))
    os.rename("{pid}.new", "{pid}")
    time.sleep(600)
while not os.path.exists("{pid}"): pass
"""
    processes = PluginProcesses(root=None, cgroups=None, mark=PLUGIN_MARK)
    with pytest.raises(FloodError):
        async with asyncio.timeout(60):
            await processes.run(plugin(tmp_path / "p", work), {"PATH": os.environ["PATH"]}, b"")
    await until_gone(pid.read_text())


def test_a_file_with_a_hole_is_cut(tmp_path: Path) -> None:
    file = os.memfd_create("out", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, 64 << 20)
    assert limit_size(file)
    assert os.fstat(file).st_size == MAX_OUTPUT
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", MAX_OUTPUT)
    os.close(file)


@pytest.mark.parametrize("join_after", [0.1, 60.0])
async def test_what_a_plugin_leaves_with_output_that_cannot_be_limited_is_killed(
    tmp_path: Path, parent: Path, join_after: float
) -> None:
    pid = tmp_path / "pid"
    work = f"""
child = os.fork()
if child == 0:
    os.setsid()
    time.sleep(600)
time.sleep(0.5)
open({str(pid)!r}, "w").write(str(child))
print("fine")"""
    program = plugin(tmp_path / "p", SEAL.format(work=work))
    cgroups = PluginCgroups(parent, join_after=join_after)
    finished = await PluginProcesses(root=None, cgroups=cgroups, mark=PLUGIN_MARK).run(program, {}, b"")
    assert (finished.code, finished.out) == (0, b"fine\n")
    await until_gone(pid.read_text())
