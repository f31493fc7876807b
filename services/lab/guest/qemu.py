"""One QEMU guest of the lab: its command line, its process, and waiting for what it reports.

The command line is a pure function of a frozen `GuestSpec`. A guest that runs is plugged by the handler over
QMP, not from here: this module opens only the lab's own monitor, to end the guest. What the guest prints is read
in `services.lab.guest.console`; `services.lab.node` decides which guests run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.lab.guest.console import ConsoleFollower, LinkEvent, Ready
from services.lab.tools import Accel, Tools

QMP_SOCKET: Final = "qmp.sock"
LAB_QMP_SOCKET: Final = "lab-qmp.sock"
AGENT_SOCKET: Final = "agent.sock"
CONSOLE_SOCKET: Final = "console.sock"
CONSOLE_LOG: Final = "console.log"
QEMU_LOG: Final = "qemu.log"

AGENT_PORT_NAME: Final = "org.qemu.guest_agent.0"
DEFAULT_MEMORY_MIB: Final = 128
QBOOT: Final = Path("/usr/share/qemu/qboot.rom")
_TB_SIZE_MIB: Final = 64
_MONITOR_TIMEOUT: Final = 2.0

# Each of these was measured under TCG; together they take a boot from 5.4 s to 3.3 s:
# no relocation, no patching of retpolines and locks, no self-tests, no security modules, no port services
# (hot-plug goes through ACPI), RCU without its grace periods on one CPU.
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
# times too fast), and its time stamps with it; the ACPI timer follows QEMU's own clock.
TCG_ARGUMENTS: Final = ("notsc", "clocksource=acpi_pm")


class GuestError(Exception):
    """QEMU ended, or did not do what it was asked for; the message ends with QEMU's own words."""


@dataclass(frozen=True, slots=True)
class BootNic:
    """A NIC the guest has from the start, on QEMU user networking; `interface` is its name in the VMI."""

    interface: str
    mac: str


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """Everything that decides a guest's command line.

    `uid` is the VMI's UID (a UUID), `folder` the folder of its sockets and logs (its path must leave room for
    a socket name below 108 bytes), `ports` the number of free PCIe root ports `rp1` … for hot-plug.
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
    """No machine at all, but what `services.lab.guest.double` makes of one."""

    @classmethod
    def with_tools(
        cls,
        tools: Tools,
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
        """Return a spec that boots the lab's own kernel and image."""
        return cls(
            name=name, uid=uid, folder=folder, qemu=tools.qemu, kernel=tools.kernel, initrd=tools.initrd,
            accel=tools.accel, memory_mib=memory_mib, cores=cores, ports=ports, nics=tuple(nics), double=double,
        )  # fmt: skip


def command_line(spec: GuestSpec, firmware: Path | None = None) -> list[str]:
    """Return QEMU's argument vector for `spec`; `firmware` replaces SeaBIOS (qboot starts 0.5 s faster)."""
    arguments = [
        str(spec.qemu),
        *("-name", f"guest={_escape(spec.name)}"),
        *("-uuid", spec.uid),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-machine", "q35,hpet=off,sata=off,smbus=off,usb=off"),
        *("-accel", f"tcg,tb-size={_TB_SIZE_MIB}" if spec.accel == "tcg" else "kvm"),
        # the plainest processor: under TCG it boots faster than `max`, under nested KVM `host` may not start at all
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
        arguments += ["-device", f"virtio-net-pci,id={alias},netdev=host-{alias},mac={nic.mac},romfile="]
    for number in range(1, spec.ports + 1):
        arguments += [
            "-device",
            f"pcie-root-port,id=rp{number},bus=pcie.0,chassis={number},slot={number},hotplug=on",
        ]
    return arguments


def _escape(text: str) -> str:
    """Return `text` for use as a value in a QEMU option, where a comma would end it."""
    return text.replace(",", ",,")


def _socket(identity: str, path: Path, log: Path | None = None) -> list[str]:
    value = f"socket,id={identity},path={_escape(str(path))},server=on,wait=off"
    if log is not None:
        value += f",logfile={_escape(str(log))},logappend=off"
    return ["-chardev", value]


class Guest:
    """One running QEMU. Make it with `Guest.start`, end it with `stop`; both in the same event loop."""

    def __init__(self, spec: GuestSpec, process: asyncio.subprocess.Process, console: ConsoleFollower) -> None:
        self.spec = spec
        self.console = console
        self._process = process
        self._reaper = asyncio.create_task(self._reap(), name=f"guest {spec.name}")

    @classmethod
    async def start(cls, spec: GuestSpec, launch: Sequence[str] = ()) -> Guest:
        """Start QEMU behind the prefix `launch` (such as `nsenter --net=PATH --`, which must exec).

        Returns as soon as the process runs: `wait_ready` waits for the guest. Raises GuestError when the
        program cannot be started at all.
        """
        spec.folder.mkdir(parents=True, exist_ok=True)
        for name in (QMP_SOCKET, LAB_QMP_SOCKET, AGENT_SOCKET, CONSOLE_SOCKET, CONSOLE_LOG):
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
            raise GuestError(f"{arguments[0]} cannot be started: {error}") from error
        return cls(spec, process, console)

    @property
    def pid(self) -> int:
        """Return QEMU's process id, as seen from the caller's PID namespace."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether QEMU has not ended."""
        return self._process.returncode is None

    async def _reap(self) -> int:
        status = await self._process.wait()
        self.console.end(f"QEMU of guest {self.spec.name} ended with status {status}{self._last_words()}")
        return status

    def _last_words(self) -> str:
        try:
            text = (self.spec.folder / QEMU_LOG).read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-500:]}" if text else ""

    async def wait(self) -> int:
        """Return QEMU's exit status once it has ended."""
        return await asyncio.shield(self._reaper)

    async def wait_ready(self, timeout: float = 30.0) -> Ready:
        """Return when the guest has booted; raises GuestError when QEMU ends first or time is up."""
        try:
            return await self.console.wait_ready(timeout)
        except TimeoutError as error:
            raise GuestError(f"guest {self.spec.name} did not boot in {timeout:g} s") from error
        except ConnectionError as error:
            raise GuestError(str(error)) from error

    async def wait_for_link(self, mac: str, timeout: float = 10.0, action: str = "add") -> LinkEvent:
        """Return the guest's own report of a link with that MAC; raises GuestError."""
        try:
            return await self.console.wait_for_link(mac, timeout, action)
        except TimeoutError as error:
            message = f"guest {self.spec.name} reported no {action} of {mac} in {timeout:g} s"
            raise GuestError(message) from error
        except ConnectionError as error:
            raise GuestError(str(error)) from error

    def links_seen(self) -> dict[str, LinkEvent]:
        """Return the links that the guest has now, by name, as it reported them."""
        return self.console.links_seen()

    async def stop(self, grace: float = 2.0) -> int:
        """End QEMU: by the lab's monitor, else SIGTERM, else SIGKILL, each after `grace` seconds.

        Returns its exit status; stopping twice is harmless.
        """
        for end in (self._quit, self._terminate, self._kill):
            if not self.running:
                break
            try:
                await end()
                async with asyncio.timeout(grace):
                    await self.wait()
            except (OSError, TimeoutError, GuestError):
                continue
        status = await self.wait()
        self.console.close()
        return status

    async def _terminate(self) -> None:
        self._process.terminate()

    async def _kill(self) -> None:
        self._process.kill()

    async def _quit(self) -> None:
        """Tell QEMU to quit over the lab's monitor; a few lines of QMP need no client library."""
        async with asyncio.timeout(_MONITOR_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(str(self.spec.folder / LAB_QMP_SOCKET))
            try:
                if "QMP" not in json.loads(await reader.readline() or b"{}"):
                    raise GuestError("no greeting from QEMU's monitor")
                for command in ("qmp_capabilities", "quit"):
                    writer.write(json.dumps({"execute": command}).encode() + b"\n")
                    await writer.drain()
                    await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
