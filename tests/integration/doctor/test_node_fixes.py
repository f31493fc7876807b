"""`hotnic doctor --fix` on a node: links and leases are removed only if nothing in any network namespace uses them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cli.doctor.collect.node_files import NAMESPACES, NodeSettings
from services.cli.doctor.fix.changes import LeaseRemoval, LinkRemoval
from services.cli.doctor.fix.node import NodeChangeFailed, SubjectChanged, apply_change
from tests.support.node import netns

IP = "203.0.113.9"
TAP = "tap7e0055a6880"
LONG_AGO = 1000.0
HOLD_TAP = f"""
import fcntl, struct, sys
with open("/dev/net/tun", "r+b", buffering=0) as tap:
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"{TAP}", 0x1002))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def pod() -> Iterator[Path]:
    """The network namespace of a pod, mounted where container runtimes mount it."""
    with netns.namespace(Path(NAMESPACES), "cni-doctor") as path:
        yield path


@contextmanager
def process_with_tap(pod: Path) -> Iterator[None]:
    """A process in the pod that holds the tap open, as a guest does."""
    command = ["nsenter", f"--net={pod}", sys.executable, "-I", "-S", "-c", HOLD_TAP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


async def test_lease_is_kept_as_long_as_a_link_has_its_address(pod: Path, tmp_path: Path) -> None:
    file = tmp_path / "net" / IP
    file.parent.mkdir()
    file.write_text("gone\r\nnet1")
    os.utime(file, (LONG_AGO, LONG_AGO))
    change = LeaseRemoval("net", IP, str(file), "gone", "net1", LONG_AGO)
    netns.ip(pod, "address", "add", f"{IP}/24", "dev", "lo")
    with pytest.raises(SubjectChanged, match=f"a link on this node has the address {IP}"):
        await apply_change(change, NodeSettings())
    assert file.exists()
    netns.ip(pod, "address", "del", f"{IP}/24", "dev", "lo")
    await apply_change(change, NodeSettings())
    assert not file.exists()
    with pytest.raises(SubjectChanged):
        await apply_change(change, NodeSettings())


async def test_a_link_in_the_place_of_the_lock_is_not_followed(pod: Path, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "net" / IP, tmp_path / "elsewhere"
    file.parent.mkdir()
    file.write_text("gone\r\nnet1")
    os.utime(file, (LONG_AGO, LONG_AGO))
    (file.parent / "lock").symlink_to(elsewhere)
    with pytest.raises(NodeChangeFailed):
        await apply_change(LeaseRemoval("net", IP, str(file), "gone", "net1", LONG_AGO), NodeSettings())
    assert (file.exists(), elsewhere.exists()) == (True, False)


async def test_tap_is_kept_as_long_as_a_process_holds_it_open(pod: Path) -> None:
    netns.ip(pod, "tuntap", "add", "dev", TAP, "mode", "tap")
    index = netns.links(pod)[TAP]["ifindex"]
    change = LinkRemoval("default/p", str(pod), index, TAP, "tun", TAP)
    with process_with_tap(pod), pytest.raises(SubjectChanged, match=f"a process holds {TAP} open"):
        await apply_change(change, NodeSettings())
    assert TAP in netns.links(pod)
    await apply_change(change, NodeSettings())
    assert TAP not in netns.links(pod)
    with pytest.raises(SubjectChanged, match="not the same any more"):
        await apply_change(change, NodeSettings())
