"""The handler's capabilities: each privileged operation of its own, in a process with all of the table or all but one.

Each operation is the handler's code against the real kernel; the sockets and the process of the launcher belong to
another user, as QEMU's do.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.node.capabilities import REASONS
from tests.support.node import netns as namespaces
from tests.support.node.bounded import bounded

ALL = frozenset(REASONS["handler"])
QEMU = 4711

NEEDS = {
    "enter the network namespace": "SYS_ADMIN",
    "add a bridge": "NET_ADMIN",
    "make a tap": "NET_ADMIN",
    "open a packet socket": "NET_RAW",
    "connect to the monitor": "DAC_OVERRIDE",
    "find the socket of libvirt": "SYS_PTRACE",
    "read the name servers": "SYS_PTRACE",
}
"""By operation: the capability without which it fails."""

OPERATIONS = """
import asyncio, json, sys
from pathlib import Path, PurePath
from services.common.guest.launcher import libvirt_socket
from services.common.guest.sockets import connect_below
from services.common.netlink.packets import Instruction
from services.common.netlink.pool import NetnsPool
from services.handler.addresses.offer import NO_RESOLVER
from services.handler.addresses.resolv import read_resolver

path, folder, pid = sys.argv[1:]
failures = {}

async def attempt(name, operation):
    try:
        found = await operation()
        return found
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"

async def main():
    pool = NetnsPool("/", timeout=30.0)
    netns = await attempt("enter the network namespace", lambda: pool.open(path))
    if netns is not None:
        await attempt("add a bridge", lambda: netns.add_bridge("k6t-x"))
        await attempt("make a tap", lambda: netns.add_tap("tapx", owner=0))
        accept = [Instruction(6, 0xFFFF)]
        opened = await attempt("open a packet socket", lambda: netns.open_packet_socket("lo", accept))
        if opened is not None:
            opened.close()
    async def monitor():
        connect_below(Path(folder), PurePath("qmp.sock")).close()
    await attempt("connect to the monitor", monitor)
    async def libvirt():
        with libvirt_socket(Path("/proc") / pid / "root"):
            return None
    await attempt("find the socket of libvirt", libvirt)
    async def resolver():
        if read_resolver(Path("/proc") / pid / "root") == NO_RESOLVER:
            raise OSError("no name servers")
    await attempt("read the name servers", resolver)
    pool.close()
    print(json.dumps(failures))

asyncio.run(main())
"""


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    with namespaces.pod_namespace(tmp_path) as path:
        yield path


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Path]:
    """The folder of a QMP socket that only QEMU's user may use."""
    folder = tmp_path / "guest"
    folder.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "qmp.sock"))
    server.listen()
    for path in (folder / "qmp.sock", folder):
        path.chmod(0o700)
        os.chown(path, QEMU, QEMU)
    yield folder
    server.close()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[int]:
    """A process of QEMU's user whose root has a socket of libvirt and a resolv.conf, and which nobody may inspect."""
    root = tmp_path / "container"
    (root / "run" / "libvirt").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc" / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "run" / "libvirt" / "libvirt-sock"))

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.chroot(root)
        os.setresgid(QEMU, QEMU, QEMU)
        os.setresuid(QEMU, QEMU, QEMU)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        yield pid
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
        server.close()


async def failures(names: frozenset[str], netns: Path, monitor: Path, launcher: int) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", OPERATIONS, netns, monitor, str(launcher)),
        stdout=subprocess.PIPE,
        preexec_fn=bounded(names),
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


async def test_the_capabilities_of_the_table_suffice(netns: Path, monitor: Path, launcher: int) -> None:
    assert await failures(ALL, netns, monitor, launcher) == {}


@pytest.mark.parametrize("dropped", sorted(ALL))
async def test_without_one_capability_the_errors_name_it(
    netns: Path, monitor: Path, launcher: int, dropped: str
) -> None:
    found = await failures(ALL - {dropped}, netns, monitor, launcher)
    assert set(found) == {operation for operation, needed in NEEDS.items() if needed == dropped}
    # Without its name servers a guest is served nevertheless; the handler has said at its start what it lacks.
    found.pop("read the name servers", None)
    assert all(f"lacks CAP_{dropped})" in text for text in found.values()), found
    # What is refused is not gone: nothing may be deleted for it.
    assert not any(text.startswith("NetnsGone") for text in found.values())
