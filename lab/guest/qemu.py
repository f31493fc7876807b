"""One QEMU guest of the lab: its command line, its process, and waits for what it reports.

The command line is a pure function of a frozen `GuestSpec`. hotnic's handler plugs NICs into a running guest over
QMP; this module uses only the lab's own monitor, to quit QEMU. `lab.guest.console` reads what the guest
prints; `lab.node` decides which guests run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab.guest.console import ConsoleFollower, LinkEvent, Ready
from lab.tools import Accel, LabTools
from services.common.guest.port import GuestNotReachable
from services.common.guest.qmp_client import QmpClient

QMP_SOCKET: Final = "qmp.sock"
LAB_QMP_SOCKET: Final = "lab-qmp.sock"
AGENT_SOCKET: Final = "agent.sock"
CONSOLE_SOCKET: Final = "console.sock"
CONSOLE_LOG: Final = "console.log"
QEMU_LOG: Final = "qemu.log"

AGENT_PORT_NAME: Final = "org.qemu.guest_agent.0"
DEFAULT_MEMORY_MIB: Final = 128
BOOT_DEADLINE: Final = 120.0
"""Seconds until a guest should have booted. An emulated one gets only the CPU time that other processes leave."""
QBOOT: Final = Path("/usr/share/qemu/qboot.rom")
_TB_SIZE_MIB: Final = 64
_MONITOR_TIMEOUT: Final = 2.0

# Each argument was measured under TCG; together they reduce a boot from 5.4 s to 3.3 s: no relocation, no patching of
# retpolines and locks, no self-tests, no security modules, no PCIe port services (hot-plug goes through ACPI), and RCU
# without its grace periods on one CPU.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0",
    "quiet",
    "loglevel=4",
    "printk.devkmsg=on",
    "panic=-1",
    "nokaslr",
    "mitigations=off",
    "noreplace-smp",
    "no_timer_check",
    "cryptomgr.notests=1",
    "apparmor=0",
    "lsm=",
    "pcie_ports=compat",
    "rcupdate.rcu_expedited=1",
)

# Under TCG the TSC counts the host's ticks. On a busy host the guest measures their rate wrongly (seen: a clock 25
# times too fast), and so all of its time stamps. The ACPI timer follows QEMU's own clock.
TCG_ARGUMENTS: Final = ("notsc", "clocksource=acpi_pm")


class GuestError(Exception):
    """QEMU ended, or did not do what was requested; the message ends with QEMU's error output."""


@dataclass(frozen=True, slots=True)
class BootNic:
    """A NIC that is present at boot, on QEMU's user networking.

    :ivar interface: its name in the VMI.
    """

    interface: str
    mac: str


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """Everything that determines a guest's command line.

    :ivar uid: the VMI's UID (a UUID).
    :ivar folder: folder of its sockets and logs; the path of a socket in it must stay below 108 bytes.
    :ivar ports: number of free PCIe root ports for hot-plug, called `rp1` and so on.
    :ivar double: run `lab.guest.double` instead of QEMU.
    """

    name: str
    uid: str
    folder: Path
    qemu: Path
    kernel: Path
    initrd: Path
    accel: Accel = "tcg"
    memory_mib: int = DEFAULT_MEMORY_MIB
    cores: int = 1
    ports: int = 8
    nics: tuple[BootNic, ...] = field(default=())
    double: bool = False

    @classmethod
    def with_tools(
        cls,
        tools: LabTools,
        *,
        name: str,
        uid: str,
        folder: Path,
        nics: Sequence[BootNic] = (),
        memory_mib: int = DEFAULT_MEMORY_MIB,
        cores: int = 1,
        ports: int = 8,
        double: bool = False,
    ) -> GuestSpec:
        """Return a specification that boots the lab's kernel and image."""
        return cls(
            name=name, uid=uid, folder=folder, qemu=tools.qemu, kernel=tools.kernel, initrd=tools.initrd,
            accel=tools.accel, memory_mib=memory_mib, cores=cores, ports=ports, nics=tuple(nics), double=double,
        )  # fmt: skip


def command_line(spec: GuestSpec, firmware: Path | None = None) -> list[str]:
    """Return QEMU's argument vector for `spec`.

    :param firmware: replaces SeaBIOS; qboot starts 0.5 s faster.
    """
    arguments = [
        str(spec.qemu),
        *("-name", f"guest={_escape(spec.name)}"),
        *("-uuid", spec.uid),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-machine", "q35,hpet=off,sata=off,smbus=off,usb=off"),
        # Not `kvm:tcg`: QEMU falls back only if KVM cannot be opened. `prepare.py` finds out whether it works.
        *("-accel", f"tcg,tb-size={_TB_SIZE_MIB}" if spec.accel == "tcg" else "kvm"),
        # The plainest CPU model: under TCG it boots faster than `max`; under nested KVM `host` may not start at all.
        *("-cpu", "qemu64"),
        *("-m", f"{spec.memory_mib}M"),
        *("-smp", str(spec.cores)),
        *("-kernel", str(spec.kernel)),
        *("-initrd", str(spec.initrd)),
        *("-append", " ".join(KERNEL_ARGUMENTS + (TCG_ARGUMENTS if spec.accel == "tcg" else ()))),
        *_socket("console", spec.folder / CONSOLE_SOCKET, log=spec.folder / CONSOLE_LOG),
        *("-serial", "chardev:console"),
        *_socket("qmp", spec.folder / QMP_SOCKET),
        *("-mon", "chardev=qmp,mode=control"),
        *_socket("lab", spec.folder / LAB_QMP_SOCKET),
        *("-mon", "chardev=lab,mode=control"),
        *_socket("agent", spec.folder / AGENT_SOCKET),
        *("-device", "virtio-serial-pci,id=agent-bus"),
        *("-device", f"virtserialport,bus=agent-bus.0,chardev=agent,name={AGENT_PORT_NAME}"),
    ]
    if firmware is not None:
        arguments += ["-bios", str(firmware)]
    for nic in spec.nics:
        alias = f"ua-{_escape(nic.interface)}"
        arguments += ["-netdev", f"user,id=host-{alias},ipv6=off"]
        # `romfile=`: no boot ROM, because the guest boots from `-kernel`.
        arguments += ["-device", f"virtio-net-pci,id={alias},netdev=host-{alias},mac={nic.mac},romfile="]
    # A PCI Express port takes one device, so the number of ports limits the number of hot-plugged NICs.
    for number in range(1, spec.ports + 1):
        arguments += [
            "-device",
            # QEMU requires a different pair of chassis and slot for each port.
            f"pcie-root-port,id=rp{number},bus=pcie.0,chassis={number},slot={number},hotplug=on",
        ]
    return arguments


def _escape(text: str) -> str:
    """Escape `text` for use as a value in a QEMU option, where a comma ends the value."""
    return text.replace(",", ",,")


def _socket(identity: str, path: Path, log: Path | None = None) -> list[str]:
    value = f"socket,id={identity},path={_escape(str(path))},server=on,wait=off"
    if log is not None:
        value += f",logfile={_escape(str(log))},logappend=off"
    return ["-chardev", value]


class QemuGuest:
    """One running QEMU. Create it with `QemuGuest.start` and end it with `stop`, both in the same event loop."""

    def __init__(self, spec: GuestSpec, process: asyncio.subprocess.Process, console: ConsoleFollower) -> None:
        self.spec = spec
        self.console = console
        self._process = process
        self._reaper = asyncio.create_task(self._reap(), name=f"guest {spec.name}")

    @classmethod
    async def start(cls, spec: GuestSpec, launch: Sequence[str] = ()) -> QemuGuest:
        """Start QEMU and return as soon as its process runs; `wait_ready` waits for the guest.

        :param launch: command prefix, such as `nsenter --net=PATH --`; it must exec QEMU.
        :raises GuestError: the program cannot be started.
        """
        spec.folder.mkdir(parents=True, exist_ok=True)
        for name in (QMP_SOCKET, LAB_QMP_SOCKET, AGENT_SOCKET, CONSOLE_SOCKET, CONSOLE_LOG):
            # A socket or log of an earlier process would look like this one's.
            (spec.folder / name).unlink(missing_ok=True)
        console = ConsoleFollower(spec.folder / CONSOLE_LOG)
        console.open()
        arguments = [*launch, *command_line(spec, QBOOT if QBOOT.exists() else None)]
        try:
            with (spec.folder / QEMU_LOG).open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            console.close()
            raise GuestError(f"cannot start {arguments[0]}: {error}") from error
        return cls(spec, process, console)

    @property
    def pid(self) -> int:
        """Return QEMU's process id in the caller's PID namespace."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether QEMU still runs."""
        return self._process.returncode is None

    async def _reap(self) -> int:
        status = await self._process.wait()
        self.console.end(f"QEMU of guest {self.spec.name} ended with status {status}{self._error_output()}")
        return status

    def _error_output(self) -> str:
        try:
            text = (self.spec.folder / QEMU_LOG).read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-500:]}" if text else ""

    async def wait(self) -> int:
        """Return QEMU's exit status once it has ended."""
        return await asyncio.shield(self._reaper)

    async def wait_ready(self, timeout: float = BOOT_DEADLINE) -> Ready:
        """Return once the guest has booted.

        :raises GuestError: QEMU ended, or the guest did not boot within `timeout` seconds.
        """
        try:
            return await self.console.wait_ready(timeout)
        except TimeoutError as error:
            raise GuestError(f"guest {self.spec.name} did not boot in {timeout:g} s") from error
        except ConnectionError as error:
            raise GuestError(str(error)) from error

    async def wait_for_link(self, mac: str, timeout: float = 45.0, action: str = "add") -> LinkEvent:
        """Return the guest's report of `action` on the link with this MAC.

        :raises GuestError: QEMU ended, or the guest reported nothing within `timeout` seconds.
        """
        try:
            return await self.console.wait_for_link(mac, timeout, action)
        except TimeoutError as error:
            message = f"guest {self.spec.name} reported no {action} of {mac} in {timeout:g} s"
            raise GuestError(message) from error
        except ConnectionError as error:
            raise GuestError(str(error)) from error

    def links_seen(self) -> dict[str, LinkEvent]:
        """Return the guest's current links by name, as it last reported them."""
        return self.console.links_seen()

    async def stop(self, grace: float = 2.0) -> int:
        """End QEMU by the lab's monitor, then by SIGTERM, then by SIGKILL; return its exit status.

        Stopping twice is harmless.

        :param grace: seconds to wait after each attempt.
        """
        for end in (self._quit, self._terminate, self._kill):
            if not self.running:
                break
            try:
                await end()
                async with asyncio.timeout(grace):
                    await self.wait()
            except (OSError, TimeoutError, GuestNotReachable):
                continue
        status = await self.wait()
        self.console.close()
        return status

    async def _terminate(self) -> None:
        self._process.terminate()

    async def _kill(self) -> None:
        self._process.kill()

    async def _quit(self) -> None:
        """Send `quit` to the lab's monitor."""
        monitor = QmpClient(str(self.spec.folder / LAB_QMP_SOCKET), deadline=_MONITOR_TIMEOUT)
        await monitor.connect()
        # QEMU may end before its reply is read.
        with contextlib.suppress(GuestNotReachable):
            await monitor.execute("quit")
        await monitor.close()
