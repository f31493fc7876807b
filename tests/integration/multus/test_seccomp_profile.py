"""What the daemon does needs no more system calls than containerd's own seccomp profile permits with its capabilities.

A container of the real containerd and runc, with that profile and the capabilities of the table, lists the links of a
pod and runs the real plugin `bridge` in the root of the node, as the daemon's container does.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.tools import default_root
from services.common.node.capabilities import REASONS

CHECKOUT = Path(__file__).resolve().parents[3]
CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
OF_CONTAINERD = {
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
    *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
}
"""The capabilities that `ctr` gives to a container (containerd's `defaultUnixCaps`)."""

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import structlog
from opentelemetry.trace import NoOpTracer
from schemas import cni
from services.common.netlink.pool import NetnsPool
from services.common.node.capabilities import REASONS, missing
from services.multus.cni.executor import Executor, Invocation
from services.multus.cni.plugin_cgroups import CgroupLimits, open_cgroups

plugins, netns, leases = sys.argv[1:]
CONFIG = {
    "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br-blue", "isGateway": True,
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": leases},
}

async def main():
    log = structlog.get_logger()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    cgroups = open_cgroups(None, CgroupLimits(1 << 30, 1024), "/host", log)
    executor = Executor([plugins], tracer=NoOpTracer(), log=log, chroot=Path("/host"), cgroups=cgroups)
    pool = NetnsPool("/host", timeout=60.0)
    seen = []
    for command in (cni.CniCommand.ADD, cni.CniCommand.DEL):
        call = Invocation(command, "abc", netns, "net1", "IgnoreUnknown=1")
        await executor.run("bridge", call, json.dumps(CONFIG).encode())
        seen.append(sorted(link.name for link in await (await pool.open(netns)).links()))
    pool.close()
    seccomp = Path("/proc/self/status").read_text().split("Seccomp:")[1].split()[0]
    print(json.dumps({"seen": seen, "seccomp": seccomp, "missing": missing(*REASONS["multus"])}))

asyncio.run(main())
"""


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a containerd of the test's own."""
    folder = tmp_path / "containerd"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    socket = folder / "containerd.sock"
    paths = [f"--{name}={folder / name}" for name in ("root", "state")]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            default_root() / "bin" / "containerd",
            *(f"--config={folder / 'config.toml'}", f"--address={socket}", *paths),
            env=environment(),
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(60):
            while not socket.exists():  # noqa: ASYNC110 (another process makes it)
                await asyncio.sleep(0.05)
        yield socket
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def host(tmp_path: Path, sandbox_netns: Path) -> Iterator[Path]:
    """The root directory, mounted elsewhere: a container's root must be a mount of its own."""
    folder = tmp_path / "host"
    folder.mkdir()
    subprocess.run(["mount", "--rbind", "/", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{default_root() / 'bin'}:{os.environ['PATH']}"}


async def test_containerds_profile_suffices(
    tmp_path: Path, plugins: Path, sandbox_netns: Path, containerd: Path, host: Path
) -> None:
    needed = set(REASONS["multus"])
    options = [f"--cap-add=CAP_{name}" for name in sorted(needed - OF_CONTAINERD)]
    options += [f"--cap-drop=CAP_{name}" for name in sorted(OF_CONTAINERD - needed)]
    options += ["--rm", "--rootfs", "--seccomp", "--net-host", f"--cgroup=hotnic-seccomp-{os.getpid()}"]
    # As with `hostPID`: plugins find themselves in the node's /proc.
    options += [f"--with-ns=pid:/proc/{os.getpid()}/ns/pid", f"--cwd={CHECKOUT}", f"--env=PYTHONPATH={CHECKOUT}"]
    options += ["--mount=type=bind,src=/,dst=/host,options=rbind:rw"]
    process = await asyncio.create_subprocess_exec(
        default_root() / "bin" / "ctr",
        *(f"--address={containerd}", "run", *options, host, "seccomp", sys.executable, "-c", PROGRAM),
        *(plugins, sandbox_netns, tmp_path / "leases"),
        env=environment(),
        stdout=-1,
        stderr=-1,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, err.decode()
    assert json.loads(out) == {"seen": [["lo", "net1"], ["lo"]], "seccomp": "2", "missing": []}
