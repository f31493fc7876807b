"""The state of a guest's double: NICs, netdevs with their taps, and the events that it emits. No sockets.

Error texts and events are QEMU's, as far as the handler and the doctor use them. Only the standard library is
imported; :mod:`lab.guest.double`, which serves this state, gives the reason.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

NAMED: Final = "/machine/peripheral"
ANONYMOUS: Final = "/machine/peripheral-anon"

# <linux/if_tun.h>
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x0100

Reply = dict[str, Any]
Arguments = dict[str, Any]


class CommandError(Exception):
    """A QMP command failed.

    :param description: QEMU's text.
    :ivar kind: QMP's error class.
    """

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


def not_found(device: str) -> CommandError:
    """Return QEMU's error for a device that does not exist."""
    return CommandError(f"Device '{device}' not found", "DeviceNotFound")


@dataclass(slots=True)
class TapBackend:
    """A netdev.

    :ivar taps: descriptors of its tap, one for each queue.
    """

    taps: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the tap."""
        while self.taps:
            os.close(self.taps.pop())


@dataclass(slots=True)
class DoubleNic:
    """A NIC.

    :ivar port: id of its root port; empty for a NIC that was present at boot.
    :ivar link: name of the link in the guest.
    """

    mac: str
    backend: str
    port: str
    link: str
    mtu: int = 1500
    link_up: bool = True
    unplug_pending: bool = False

    def console_line(self, action: str) -> str:
        """Return the line that the guest prints about it."""
        carrier = "on" if self.link_up else "off"
        return f"link {action} {self.link} mac {self.mac} mtu {self.mtu} state up carrier {carrier}"


class DoubleMachine:
    """Devices, netdevs and the guest's reaction to them.

    :param emit_event: emits a QMP event on every monitor.
    :param print_line: prints a line on the guest's console.
    :param unplug_delay: seconds from an unplug request until the guest completes it.
    :param bind_delay: seconds from a plug until the guest's driver has bound to the device.
    """

    def __init__(
        self,
        *,
        ports: int,
        cpus: int,
        unplug_delay: float,
        bind_delay: float,
        emit_event: Callable[[str, Arguments], None],
        print_line: Callable[[str], None],
    ) -> None:
        self.ports = [f"rp{number}" for number in range(1, ports + 1)]
        self.cpus = cpus
        self.nics: dict[str, DoubleNic] = {}
        self.backends: dict[str, TapBackend] = {}
        self._unplug_delay = unplug_delay
        self._bind_delay = bind_delay
        self._emit_event = emit_event
        self._print_line = print_line
        self._links = 0
        self._bound: set[str] = set()

    def boot(self, nics: list[tuple[str, str]]) -> None:
        """Add the NICs that are present at boot, given by interface and MAC, and report that the guest is ready."""
        for interface, mac in nics:
            self.backends[f"host-ua-{interface}"] = TapBackend()
            self._plug(f"ua-{interface}", DoubleNic(mac.lower(), f"host-ua-{interface}", "", ""))
            self._driver_bound(f"ua-{interface}")
        self._print_line("ready")

    def qom_list(self, path: str) -> list[Reply]:
        """Return the devices below `NAMED` or `ANONYMOUS`."""
        if path == ANONYMOUS:
            found = [("device[0]", "virtserialport")]
        elif path == NAMED:
            found = [("agent-bus", "virtio-serial-pci"), *((port, "pcie-root-port") for port in self.ports)]
            found += [(alias, "virtio-net-pci") for alias in self.nics]
        else:
            raise not_found(path)
        return [{"name": "type", "type": "string"}, *({"name": n, "type": f"child<{t}>"} for n, t in found)]

    def qom_get(self, path: str, name: str) -> str:
        """Return a property of a device: its parent bus, or a NIC's MAC."""
        folder, _, device = path.rpartition("/")
        nic = self.nics.get(device) if folder == NAMED else None
        if name == "parent_bus":
            if nic is not None and nic.port:
                return f"{NAMED}/{nic.port}/{nic.port}"
            if nic is not None or device in (*self.ports, "agent-bus", "device[0]"):
                return "/machine/q35/pcie.0"
        elif name == "mac" and nic is not None:
            return nic.mac
        elif nic is not None:
            raise CommandError(f"Property 'virtio-net-pci.{name}' not found")
        raise not_found(path)

    def pci(self) -> list[Reply]:
        """Return the root ports with the bus numbers that a firmware gives them."""
        ports = enumerate(self.ports, start=1)
        return [{"devices": [{"qdev_id": name, "pci_bridge": {"bus": {"secondary": bus}}} for bus, name in ports]}]

    def netdev_add(self, backend: str, kind: str, tap: str, queues: int) -> None:
        """Open a tap by its name.

        :raises CommandError: the id is taken, or the tap cannot be opened.
        """
        if backend in self.backends:
            raise CommandError(f"Duplicate ID '{backend}' for netdev")
        if kind != "tap":
            raise CommandError(f"Parameter 'type' does not accept value '{kind}'")
        opened = TapBackend()
        try:
            for _ in range(queues):
                opened.taps.append(open_tap(tap, multi_queue=queues > 1))
        except OSError as error:
            opened.close()
            raise CommandError(f"could not configure /dev/net/tun ({tap}): {error.strerror}") from error
        self.backends[backend] = opened

    def netdev_del(self, backend: str) -> None:
        """Close a tap, whether or not a NIC uses it."""
        found = self.backends.pop(backend, None)
        if found is None:
            raise not_found(backend)
        found.close()

    def device_add(self, alias: str, driver: str, backend: str, bus: str, mac: str, mtu: int) -> None:
        """Plug a NIC into a root port.

        :raises CommandError: with QEMU's text, for every argument that QEMU rejects.
        """
        if driver != "virtio-net-pci":
            raise CommandError(f"'{driver}' is not a valid device model name")
        if alias in self.nics:
            raise CommandError(f"Duplicate device ID '{alias}'")
        if bus not in self.ports:
            raise CommandError(f"Bus '{bus}' not found")
        if backend not in self.backends:
            raise CommandError(f"Property 'virtio-net-pci.netdev' can't find value '{backend}'")
        for other, nic in self.nics.items():
            if nic.port == bus:
                raise CommandError(f"PCI: slot 0 function 0 not available for virtio-net-pci, in use by {other}")
            if nic.backend == backend:
                raise CommandError(f"Property 'virtio-net-pci.netdev' can't take value '{backend}', it's in use")
        self._plug(alias, DoubleNic(mac.lower(), backend, bus, "", mtu))
        # As in a guest, the driver binds some time after the plug, not within the command.
        asyncio.get_running_loop().call_later(self._bind_delay, self._driver_bound, alias)

    def device_del(self, alias: str) -> None:
        """Request an unplug from the guest, which completes it after its delay."""
        nic = self.nics.get(alias)
        if nic is None:
            raise not_found(alias)
        if nic.unplug_pending:
            raise CommandError(f"Device {alias} is already in the process of unplug")
        nic.unplug_pending = True
        asyncio.get_running_loop().call_later(self._unplug_delay, self._unplugged, alias)

    def set_link(self, name: str, up: bool) -> None:
        """Set a link up or down; the guest reports a change."""
        nic = self.nics.get(name)
        if nic is None:
            raise not_found(name)
        if nic.link_up is not up:
            nic.link_up = up
            if name in self._bound:
                self._print_line(nic.console_line("change"))

    def rx_filters(self) -> list[Reply]:
        """Return the NICs' receive filters; a guest's driver leaves promiscuous mode as soon as it has bound."""
        return [{"name": alias, "promiscuous": alias not in self._bound} for alias in self.nics]

    def interfaces(self) -> list[Reply]:
        """Return the guest agent's list of links."""
        loopback = {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": []}
        nics = [self.nics[alias] for alias in self.nics if alias in self._bound]
        return [loopback, *({"name": c.link, "hardware-address": c.mac, "ip-addresses": []} for c in nics)]

    def _plug(self, alias: str, nic: DoubleNic) -> None:
        nic.link = f"eth{self._links}"
        self._links += 1
        self.nics[alias] = nic

    def _driver_bound(self, alias: str) -> None:
        nic = self.nics.get(alias)
        if nic is None or alias in self._bound:
            return
        self._bound.add(alias)
        self._print_line(nic.console_line("add"))
        self._emit_event("NIC_RX_FILTER_CHANGED", {"name": alias, "path": f"{NAMED}/{alias}/virtio-backend"})

    def _unplugged(self, alias: str) -> None:
        nic = self.nics.pop(alias)
        if alias in self._bound:
            self._bound.discard(alias)
            self._print_line(f"link remove {nic.link} mac - mtu - state - carrier -")
        # QEMU reports the virtio backend first, without an id, and then the device.
        self._emit_event("DEVICE_DELETED", {"path": f"{NAMED}/{alias}/virtio-backend"})
        self._emit_event("DEVICE_DELETED", {"device": alias, "path": f"{NAMED}/{alias}"})


def open_tap(name: str, *, multi_queue: bool) -> int:
    """Attach to a tap of this network namespace and return its descriptor.

    :raises OSError: it is not a tap, or another process is attached to it.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if multi_queue else 0)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def execute(machine: DoubleMachine, command: str, arguments: Arguments) -> Any:
    """Execute one QMP command and return its result.

    :raises CommandError: the command fails.
    :raises KeyError: an argument is missing.
    """
    match command:
        case "qom-list":
            return machine.qom_list(arguments["path"])
        case "qom-get":
            return machine.qom_get(arguments["path"], arguments["property"])
        case "query-cpus-fast":
            return [{"cpu-index": index, "target": "x86_64", "thread-id": 0} for index in range(machine.cpus)]
        case "query-rx-filter":
            return machine.rx_filters()
        case "query-pci":
            return machine.pci()
        case "netdev_add":
            return machine.netdev_add(
                arguments["id"], arguments["type"], arguments.get("ifname", ""), arguments.get("queues", 1)
            )
        case "netdev_del":
            return machine.netdev_del(arguments["id"])
        case "device_add":
            return machine.device_add(
                arguments["id"],
                arguments["driver"],
                arguments["netdev"],
                arguments["bus"],
                arguments["mac"],
                arguments.get("host_mtu", 1500),
            )
        case "device_del":
            return machine.device_del(arguments["id"])
        case "set_link":
            return machine.set_link(arguments["name"], arguments["up"])
        case "quit":
            return None
    raise CommandError(f"The command {command} has not been found", "CommandNotFound")
