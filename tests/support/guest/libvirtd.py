"""A real libvirtd with mounts, processes and a network namespace of its own, and domains that QEMU emulates.

Its socket is visible only through ``/proc/<pid>/root``, like one in a launcher's container. Every process that it
starts ends with it, also after SIGKILL.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from lab.guest.qemu import KERNEL_ARGUMENTS, QBOOT, TCG_ARGUMENTS
from lab.tools import LabTools, default_root

PRIMARY_MAC = "52:54:00:00:00:01"
NAME = "default_vm1"
_SOCKET = "run/libvirt/libvirt-sock"

# bash remains process 1, where it reaps the orphans of QEMU. It restarts libvirtd whenever that ends, unless
# /run/stay-away exists. /etc and /usr/share are the host's with an overlay; libvirt's other directories are empty.
_INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs own "$WORK"
mkdir -p "$WORK"/{etc/libvirt,changes,scratch,share}
# a copy that every user can read, wherever the checkout is
cp -rL "$TOOLS" "$WORK"/home
mv "$WORK"/home/share "$WORK"/share/libvirt
{ cat /etc/passwd; echo libvirt-qemu:x:64055:64055::/:/bin/false; } >"$WORK"/etc/passwd
{ cat /etc/group; echo libvirt-qemu:x:64055:; echo kvm:x:64056:; } >"$WORK"/etc/group
cat >"$WORK"/etc/libvirt/qemu.conf <<END
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
seccomp_sandbox = 0
clear_emulator_capabilities = 0
END
cat >"$WORK"/etc/libvirt/libvirtd.conf <<END
auth_unix_rw = "none"
unix_sock_rw_perms = "0600"
log_outputs = "3:stderr"
END
mount -t overlay -o lowerdir="$WORK"/etc:/etc,upperdir="$WORK"/changes,workdir="$WORK"/scratch own /etc
mount -t overlay -o lowerdir="$WORK"/share:/usr/share own /usr/share
for folder in /run /var/lib /var/cache /var/log; do mount -t tmpfs own $folder; done
export LD_LIBRARY_PATH=$WORK/home/lib LIBVIRT_DRIVER_DIR=$WORK/home/drivers
start=("$WORK"/home/libvirtd --config /etc/libvirt/libvirtd.conf)
if [ "$AS_USER" != 0 ]; then
	# as KubeVirt runs it: as a session daemon of an unprivileged user that may open taps
	mkdir -p /run/home/libvirt
	grep -v -e user -e group -e owner -e capabilities /etc/libvirt/qemu.conf >/run/home/libvirt/qemu.conf
	mknod "$WORK"/tun c 10 200 && chmod 666 "$WORK"/tun && mount --bind "$WORK"/tun /dev/net/tun
	chown -R "$AS_USER:$AS_USER" /run
	export HOME=/run/home XDG_RUNTIME_DIR=/run XDG_CONFIG_HOME=/run/home XDG_CACHE_HOME=/run/home/cache
	start=(setpriv --reuid "$AS_USER" --regid "$AS_USER" --clear-groups "${start[@]}")
fi
set +e
while :; do
	[ -e /run/stay-away ] || "${start[@]}"
	sleep 0.02
done
"""


class Libvirtd:
    """A running libvirtd.

    :ivar pid: a process in its namespaces.
    :ivar root: its root directory, as seen from here.
    :ivar log: its log file.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self.log = log

    async def socket(self) -> contextlib.AbstractContextManager[str]:
        """Return its socket's path, in the form that a driver asks for."""
        return contextlib.nullcontext(str(self.root / _SOCKET))

    def ready(self) -> None:
        """Wait until it accepts connections."""
        _until(self._listens, lambda: f"libvirtd did not start:\n{self.log.read_text()}")

    def connect(self) -> Any:
        """Return a connection of libvirt's binding."""
        return libvirt.open(f"qemu+unix:///session?socket={self.root / _SOCKET}")

    def define(self, xml: str, *, paused: bool = True) -> None:
        """Define the domain and start it."""
        connection = self.connect()
        try:
            domain = connection.defineXML(xml)
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        finally:
            connection.close()

    def remove(self) -> None:
        """Stop the domain in whatever state it is, and undefine it."""
        connection = self.connect()
        try:
            for domain in connection.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        finally:
            connection.close()

    def restart(self) -> None:
        """Kill the daemon and wait for the next one; its domains continue to run."""
        with self.away():
            pass
        self.ready()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Suspend the daemon for the duration of the context."""
        daemon = self._of("libvirtd")
        os.kill(daemon, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(daemon, signal.SIGCONT)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have no daemon for the duration of the context."""
        (self.root / "run/stay-away").touch()
        os.kill(self._of("libvirtd"), signal.SIGKILL)
        _until(lambda: not self._listens(), lambda: "libvirtd did not end")
        try:
            yield
        finally:
            (self.root / "run/stay-away").unlink()

    def kill_domain(self) -> None:
        """Kill the domain's QEMU."""
        os.kill(self._of("qemu-system-x86_64"), signal.SIGKILL)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.root / _SOCKET))
            except OSError:
                return False
        return True

    def _of(self, program: str) -> int:
        """Return the one process of a program among the children, including adopted ones."""
        children = _children(self.pid)
        [found] = [pid for pid in children if Path(f"/proc/{pid}/exe").resolve().name == program]
        return found


@contextmanager
def running_libvirtd(folder: Path, netns: Path, *, user: int = 0) -> Iterator[Libvirtd]:
    """Run a libvirtd in a network namespace for the duration of the context.

    :param folder: for its files.
    :param netns: the network namespace.
    :param user: the user id of the daemon and its QEMU.
    """
    work = folder / "libvirt"
    work.mkdir()
    log = folder / "libvirtd.log"
    environment = {**os.environ, "WORK": str(work), "TOOLS": str(default_root() / "libvirt")}
    environment["AS_USER"] = str(user)
    with log.open("wb") as output:
        holder = subprocess.Popen(
            [
                *("nsenter", f"--net={netns}", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
                *("bash", "-c", _INIT),
            ],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        _until(lambda: bool(_children(holder.pid)), lambda: "no namespace was made")
        daemon = Libvirtd(_children(holder.pid)[0], log)
        daemon.ready()
        yield daemon
    finally:
        holder.kill()
        holder.wait()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _until(holds: Callable[[], bool], error: Callable[[], str], *, timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError(error())
        time.sleep(0.01)


def domain_xml(*, ports: int = 4, cpus: int = 1, boot: Path | None = None) -> str:
    """Return a domain like KubeVirt's, with one NIC and free root ports.

    :param ports: the number of root ports.
    :param cpus: the number of CPUs.
    :param boot: boot the lab's guest, with its console in this directory.
    """
    tools = LabTools.find()
    system, channels, memory = "", "", 32
    if boot is not None:
        memory = 128
        firmware = f"<loader type='rom'>{QBOOT}</loader>" if QBOOT.exists() else ""
        arguments = " ".join(KERNEL_ARGUMENTS + TCG_ARGUMENTS)
        system = (
            f"{firmware}<kernel>{tools.kernel}</kernel><initrd>{tools.initrd}</initrd><cmdline>{arguments}</cmdline>"
        )
        channels = f"""
            <serial type="file"><source path="{boot}/console.log"/></serial>
            <controller type="virtio-serial" index="0" model="virtio-non-transitional"/>
            <channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel>"""
    return f"""
    <domain type="qemu">
      <name>{NAME}</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
      <memory unit="MiB">{memory}</memory><vcpu>{cpus}</vcpu>
      <os><type arch="x86_64" machine="q35">hvm</type>{system}</os>
      <features><acpi/></features>
      <clock offset="utc"><timer name="hpet" present="no"/></clock>
      <devices>
        <emulator>{tools.qemu.resolve()}</emulator>
        <controller type="usb" model="none"/>
        <controller type="pci" model="pcie-root"/>
        {'<controller type="pci" model="pcie-root-port"/>' * ports}
        <memballoon model="none"/>
        <interface type="user">
          <mac address="{PRIMARY_MAC}"/><model type="virtio-non-transitional"/>
          <alias name="ua-default"/><rom enabled="no"/>
        </interface>
        {channels}
      </devices>
    </domain>"""
