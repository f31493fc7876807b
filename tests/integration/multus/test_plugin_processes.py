"""Plugins that misbehave, as real processes with cgroups of the kernel: what they inherit, and what is left of them."""

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from schemas import cni
from services.multus.cni.errors import CniError
from services.multus.cni.executor import Executor, Invocation
from services.multus.cni.plugin_cgroups import PREFIX, PluginCgroup, PluginCgroups
from tests.support.node.cgroups import empty
from tests.support.telemetry.spans import recording_telemetry

CALL = Invocation(cni.CniCommand.ADD, "abc", "/run/netns/x", "net1")


def executor(
    folder: Path, *, cgroups: PluginCgroups | None, timeout: float = 60.0, chroot: Path | None = None
) -> Executor:
    log = structlog.get_logger()
    telemetry = recording_telemetry()[0]
    return Executor([str(folder)], tracer=telemetry.tracer, log=log, timeout=timeout, cgroups=cgroups, chroot=chroot)


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


def python(path: Path, text: str) -> Path:
    return script(path, text, sys.executable)


async def gone(pid: int) -> None:
    """Wait for the end of a process that is no child of this one."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(60):
                await ended.wait()
        finally:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)


DAEMON = """
import os, pathlib, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pathlib.Path({pid!r}).write_text(str(os.getpid()))
        {work}
    os._exit(0)
os.wait()
while not os.path.exists({pid!r}): time.sleep(0.001)
{then}
"""


@pytest.mark.parametrize(
    ("in_cgroup", "work"),
    [
        (True, "time.sleep(600)"),
        (False, "time.sleep(600)"),
        # One that has no mark any more, and belongs to another user.
        (True, "time.sleep(1); os.setuid(4711); os.execve('/bin/sleep', ['sleep', '600'], {})"),
    ],
)
async def test_a_daemon_that_a_plugin_forks_dies_with_it_at_the_deadline(
    tmp_path: Path, parent: Path, in_cgroup: bool, work: str
) -> None:
    """It has left the plugin's session and process group."""
    pid = tmp_path / "pid"
    python(tmp_path / "p", DAEMON.format(pid=str(pid), work=work, then="time.sleep(600)"))
    cgroups = PluginCgroups(parent, join_after=0.5) if in_cgroup else None
    with pytest.raises(CniError, match="did not end within 3 s and was killed") as caught:
        await executor(tmp_path, cgroups=cgroups, timeout=3.0).run("p", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.TRY_AGAIN_LATER
    await gone(int(pid.read_text()))


async def test_a_daemon_of_a_plugin_that_succeeds_stays_and_its_output_goes_nowhere(
    tmp_path: Path, parent: Path
) -> None:
    """As of a plugin that starts a DHCP client. It may not fill the memory with what nobody reads."""
    pid, wrote = tmp_path / "pid", tmp_path / "wrote"
    go = tmp_path / "go"
    work = f"""
        while not os.path.exists({str(go)!r}): time.sleep(0.001)
        written = 0
        try:
            while written < 64 << 20: written += os.write(1, b"x" * 65536)
        except OSError as error:
            pathlib.Path({str(wrote)!r}).write_text(f"{{written}} {{error.errno}}")
        time.sleep(600)"""
    python(tmp_path / "p", DAEMON.format(pid=str(pid), work=work.strip(), then="print('{}', flush=True)"))
    cgroups = PluginCgroups(parent, join_after=0.1)
    run = executor(tmp_path, cgroups=cgroups)
    assert await run.run("p", CALL, b"") == b"{}\n"
    go.touch()
    async with asyncio.timeout(60):
        while not wrote.exists() or not wrote.read_text():  # noqa: ASYNC110 (another process writes it)
            await asyncio.sleep(0.01)
    written, error = wrote.read_text().split()
    assert (int(written), int(error)) == (0, errno.EPERM)
    # The deadline of another plugin does not kill it.
    script(tmp_path / "slow", "sleep 600")
    slow = executor(tmp_path, cgroups=cgroups, timeout=0.3)
    with pytest.raises(CniError, match="was killed"):
        await slow.run("slow", CALL, b"")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    await gone(int(pid.read_text()))


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_plugin_that_floods_its_output_is_killed(tmp_path: Path, parent: Path, stream: int) -> None:
    script(tmp_path / "p", f"exec cat /dev/zero >&{stream}")
    with pytest.raises(CniError, match="it wrote more than 4194304 bytes and was killed") as caught:
        await executor(tmp_path, cgroups=PluginCgroups(parent, join_after=0.1)).run("p", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.INTERNAL


@pytest.mark.parametrize("in_cgroup", [True, False])
async def test_a_plugin_that_ignores_signals_is_killed(tmp_path: Path, parent: Path, in_cgroup: bool) -> None:
    pid = tmp_path / "pid"
    text = "import os, pathlib, signal\nfor number in signal.valid_signals() - {9, 19}: signal.signal(number, 1)\n"
    python(tmp_path / "p", text + f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nsignal.pause()")
    cgroups = PluginCgroups(parent, join_after=0.1) if in_cgroup else None
    with pytest.raises(CniError, match="was killed"):
        await executor(tmp_path, cgroups=cgroups, timeout=2.0).run("p", CALL, b"")
    await gone(int(pid.read_text()))


@contextlib.contextmanager
def silent_file_system(point: Path) -> Iterator[threading.Event]:
    """Mount a FUSE file system that never answers; yield the event of its first request. Its end ends the requests."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"silent", os.fsencode(point), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())
    asked, end = threading.Event(), threading.Event()

    def serve() -> None:
        header = struct.Struct("<IIQQIIII")
        while not end.is_set():
            if not select.select([device], [], [], 0.05)[0]:
                continue
            request = os.read(device, 1 << 17)
            _, opcode, unique, *_ = header.unpack_from(request)
            if opcode == 26:  # FUSE_INIT, without which nothing else is asked
                major, minor = struct.unpack_from("<II", request, header.size)
                answer = struct.pack("<IIIIHHIIHH8I", major, min(minor, 31), 0, 0, 8, 6, 4096, 1, 0, 0, *[0] * 8)
                os.write(device, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
            elif opcode != 36:  # FUSE_INTERRUPT
                asked.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        end.set()
        thread.join()
        # The last descriptor of the device: the kernel gives up all requests.
        os.close(device)
        libc.umount2(os.fsencode(point), 2)


async def test_a_plugin_that_hangs_in_the_kernel_blocks_no_other(tmp_path: Path, parent: Path) -> None:
    """It cannot be killed (state D): its call fails at the deadline, and it is reaped when the kernel lets it go."""
    point, pid = tmp_path / "mnt", tmp_path / "pid"
    point.mkdir()
    script(tmp_path / "hanging", f"echo $$ > {pid}; exec cat {point}/file")
    script(tmp_path / "other", "echo fine")
    cgroups = PluginCgroups(parent, join_after=0.1)
    with silent_file_system(point) as asked:
        hanging = asyncio.create_task(executor(tmp_path, cgroups=cgroups, timeout=3.0).run("hanging", CALL, b""))
        await asyncio.to_thread(asked.wait, 60)
        process = Path(f"/proc/{pid.read_text().strip()}")
        run = executor(tmp_path, cgroups=cgroups)
        assert await run.run("other", CALL, b"") == b"fine\n"
        with pytest.raises(CniError, match="did not end within 3 s and was killed"):
            await hanging
        assert "State:\tD" in (process / "status").read_text()
        assert await run.run("other", CALL, b"") == b"fine\n"
    async with asyncio.timeout(60):
        while process.exists():  # noqa: ASYNC110, ASYNC240 (until it is reaped)
            await asyncio.sleep(0.01)


INHERITED = """
import os, signal
descriptors = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
ignored = {n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN}
by_python = {signal.SIGPIPE, signal.SIGXFSZ}
print(os.getcwd(), oct(os.umask(0)), descriptors, os.getpgrp() == os.getpid(), ignored - by_python)
print(signal.pthread_sigmask(0, []))
"""


async def test_a_plugin_inherits_nothing_but_what_is_named(tmp_path: Path, parent: Path) -> None:
    python(tmp_path / "p", INHERITED)
    inherited = os.dup(2)
    os.set_inheritable(inherited, True)
    umask = os.umask(0o077)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        printed = await executor(tmp_path, cgroups=PluginCgroups(parent, join_after=0.1)).run("p", CALL, b"")
    finally:
        os.umask(umask)
        signal.signal(signal.SIGHUP, ignored)
        os.close(inherited)
    assert printed == b"/ 0o22 [0, 1, 2] True set()\nset()\n"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The root directory, mounted elsewhere, with a file system that is only there."""
    folder = tmp_path / "root"
    folder.mkdir()
    subprocess.run(["mount", "--rbind", "/", folder], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "mnt"], check=True)
    (folder / "mnt" / "only-here").touch()
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_plugin_in_another_root_starts_there_and_the_daemon_stays(tmp_path: Path, root: Path) -> None:
    script(tmp_path / "p", "pwd; ls /mnt; cat")
    run = executor(tmp_path, cgroups=None, chroot=root)
    assert await run.run("p", CALL, b"in") == b"/\nonly-here\nin"
    assert os.readlink("/proc/self/root") == "/"
    assert "only-here" not in os.listdir("/mnt")


async def test_a_run_that_takes_long_has_a_cgroup_with_limits_until_it_ends(tmp_path: Path, parent: Path) -> None:
    (parent / f"{PREFIX}1-1").mkdir()  # of a daemon that was killed
    cgroups = PluginCgroups(parent, join_after=0.1)
    assert not [name for name in os.listdir(parent) if name.startswith(PREFIX)]
    # Its child that was started before is in it, too.
    script(tmp_path / "p", f"sleep 600 & while ! grep {PREFIX} /proc/self/cgroup /proc/$!/cgroup; do sleep 0.05; done")
    script(tmp_path / "quick", "cat /proc/self/cgroup")
    run = executor(tmp_path, cgroups=cgroups)
    quick = executor(tmp_path, cgroups=PluginCgroups(parent, join_after=60.0))
    assert PREFIX.encode() not in await quick.run("quick", CALL, b"")
    assert f"{PREFIX}{os.getpid()}-1\n".encode() in await run.run("p", CALL, b"")
    # The child that the plugin has left keeps the cgroup.
    [left] = [name for name in os.listdir(parent) if name.startswith(PREFIX)]
    PluginCgroup(parent / left).kill()
    empty(parent / left)
    async with asyncio.timeout(60):
        # Until the threads have found all processes.
        while [name for name in os.listdir(parent) if name.startswith(PREFIX)]:
            cgroups.close()
            await asyncio.sleep(0.01)


OWN = """
import os, sys, structlog
from pathlib import Path
from services.multus.cni.plugin_cgroups import CgroupLimits, open_cgroups
print(open_cgroups(None, CgroupLimits(1 << 30, 99), sys.argv[1], structlog.get_logger()))
"""


@pytest.mark.parametrize("host_root", ["/host", "/"])
async def test_a_container_finds_its_cgroup_in_the_nodes_file_system(
    tmp_path: Path, parent: Path, host_root: str
) -> None:
    """Its own view of the cgroups is read-only and begins at its own one."""
    mount = parent.parent
    while "cgroup.type" in os.listdir(mount):
        mount = mount.parent
    node = tmp_path / "sys" / "fs" / "cgroup"
    node.mkdir(parents=True)
    enter = (
        f"echo $$ > {parent}/cgroup.procs && exec unshare --cgroup --mount sh -c '"
        f"mount --rbind {mount} {node} && mount --make-rprivate / && "
        f"umount -l {mount} && mount -t cgroup2 none {mount} && mount -o remount,bind,ro {mount} && "
        f'exec {sys.executable} -c "$0" {tmp_path if host_root != "/" else "/"}'
        '\' "$0"'
    )
    process = await asyncio.create_subprocess_exec("sh", "-c", enter, OWN, stdout=-1, stderr=-1)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    text = out.decode()
    if host_root == "/":
        assert "plugins have no cgroups of their own" in text
        assert text.endswith("None\n")
    else:
        found = node / parent.relative_to(mount)
        assert f"parent={found}" in text
