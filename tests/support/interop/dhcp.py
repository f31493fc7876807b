"""A DHCP server on a bridge of the node, and the daemon of the CNI plugin `dhcp`.

The server is busybox' `udhcpd` in a network namespace of its own, and answers on that bridge only.
"""

import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.tools import default_root
from tests.support.interop.reference_plugins import HOST, PARENT
from tests.support.node import netns as namespaces

BRIDGE: Final = "br-dhcp"
_LEASE: Final = struct.Struct("!I4s6s20s2x")
"""A lease in the server's file: seconds until it expires, address, MAC, host name."""


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has created a file."""
    deadline = time.monotonic() + 45
    while not path.exists():
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args!r} has not created {path}"
        time.sleep(0.01)


@dataclass
class DhcpServer:
    """A running server with the addresses 10.66.0.10 to 10.66.0.20."""

    folder: Path
    process: subprocess.Popen[bytes]

    def leases(self) -> set[str]:
        """Return the addresses that are leased now."""
        file = self.folder / "leases"
        file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_for(file, self.process)
        content = b""
        # The server writes the time first, and then each lease.
        while len(content) < 8 or (len(content) - 8) % _LEASE.size:
            content = file.read_bytes()
        found = (_LEASE.unpack_from(content, at) for at in range(8, len(content), _LEASE.size))
        return {".".join(map(str, address)) for expires, address, *_ in found if expires}


@contextmanager
def dhcp_server(folder: Path) -> Iterator[DhcpServer]:
    """Run a server on the bridge `BRIDGE`, which also has the peer of the node's link `PARENT`."""
    folder.mkdir()
    config = folder / "udhcpd.conf"
    files = f"lease_file {folder / 'leases'}\npidfile {folder / 'pid'}\nauto_time 0\n"
    options = "option subnet 255.255.255.0\noption router 10.66.0.1\noption lease 600\n"
    config.write_text(f"start 10.66.0.10\nend 10.66.0.20\ninterface server\n{files}{options}")
    # With an address of its own: otherwise it takes that of a port, which `bridge` reports as a failed CHECK.
    namespaces.ip(HOST, "link", "add", BRIDGE, "address", "02:00:00:00:00:09", "type", "bridge")
    namespaces.ip(HOST, "link", "set", BRIDGE, "up")
    namespaces.ip(HOST, "link", "set", f"{PARENT}-p", "master", BRIDGE, "up")
    with namespaces.namespace(folder, "server") as netns:
        namespaces.veth(netns, "server", HOST, "to-server")
        namespaces.ip(HOST, "link", "set", "to-server", "master", BRIDGE)
        namespaces.ip(netns, "addr", "add", "10.66.0.1/24", "dev", "server")
        namespaces.ip(netns, "link", "set", "server", "up")
        busybox = default_root() / "unpacked" / "busybox" / "bin" / "busybox"
        # Without -a 0 it waits 2 s before each offer, for another host with the address.
        command = ["nsenter", f"--net={netns}", str(busybox), "udhcpd", "-f", "-a", "0", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for(folder / "pid", process)
            yield DhcpServer(folder, process)
        finally:
            process.terminate()
            process.wait(45)
            namespaces.ip(netns, "link", "del", "server")


@contextmanager
def dhcp_daemon(plugin: Path, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon of the plugin `dhcp`."""
    # Its first request is lost, because the link is not up yet. By default it waits 10 s before the next one.
    command = [str(plugin), "daemon", "-timeout", "1s", "-socketpath", str(socket)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(socket, process)
        yield process
    finally:
        process.terminate()
        process.wait(45)
