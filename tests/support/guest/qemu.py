"""A QEMU without a guest in it, paused and with free root ports, and the lab's double of one."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lab.guest.console import ConsoleFollower
from lab.node.guest_process import DOUBLE

REPOSITORY = Path(__file__).resolve().parents[3]
PRIMARY_MAC = "52:54:00:00:00:01"


def command_line(monitor: int, ports: int, cpus: int) -> list[str]:
    """Return QEMU's command line.

    :param monitor: the descriptor of a listening socket for QMP.
    :param ports: the number of root ports.
    :param cpus: the number of CPUs.
    """
    arguments = ["qemu-system-x86_64", "-M", "q35,accel=tcg", "-m", "32", "-smp", str(cpus)]
    arguments += ["-nodefaults", "-display", "none", "-S"]
    arguments += ["-chardev", f"socket,id=qmp,fd={monitor},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    for i in range(1, ports + 1):
        arguments += ["-device", f"pcie-root-port,id=rp{i},chassis={i},slot={i}"]
    arguments += ["-netdev", "user,id=host-ua-default"]
    arguments += ["-device", f"virtio-net-pci,id=ua-default,netdev=host-ua-default,mac={PRIMARY_MAC},romfile="]
    return arguments


@asynccontextmanager
async def paused_qemu(socket_path: Path, netns: Path, *, ports: int = 4, cpus: int = 1) -> AsyncIterator[int]:
    """Run a machine in a network namespace for the duration of the context; yield its process id.

    The monitor's socket is created here, so that a client can connect before QEMU listens.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(socket_path))
    listener.listen(4)
    with listener:
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--net={netns}",
            *command_line(listener.fileno(), ports, cpus),
            pass_fds=(listener.fileno(),),
        )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)


@asynccontextmanager
async def double(
    socket_path: Path,
    netns: Path,
    *,
    ports: int = 4,
    cpus: int = 1,
    release: float = 3600.0,
    notice: float = 0.01,
) -> AsyncIterator[int]:
    """Run the lab's double of a guest in a network namespace for the duration of the context; yield its process id.

    :param release: seconds until it completes an unplug; a paused machine never does.
    :param notice: seconds until its driver has bound to a new device.
    """
    arguments = ["--monitor", str(socket_path), "--ports", str(ports), "--cpus", str(cpus), "--release", str(release)]
    arguments += ["--agent", str(socket_path.with_name("agent.sock")), "--nic", f"default={PRIMARY_MAC}"]
    arguments += ["--notice", str(notice)]
    console = socket_path.with_name("console.log")
    console.unlink(missing_ok=True)
    arguments += ["--console", str(console)]
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={netns}", sys.executable, "-S", "-m", DOUBLE, *arguments),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        # The last line that it prints. The socket file exists before it accepts connections.
        async with ConsoleFollower(console) as follower:
            await follower.wait_ready(60)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
