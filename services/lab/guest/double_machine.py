"""What a guest's double remembers and does: cards, backends, taps, and what it tells of itself. No sockets.

In QEMU's words, as far as the handler and the doctor ask. Standard library only, see
:mod:`services.lab.guest.double`, which serves it.
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

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x0100

Answer = dict[str, Any]
Arguments = dict[str, Any]


class Refused(Exception):
    """The answer is an error. :ivar kind: QMP's error class."""

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


def not_found(device: str) -> Refused:
    """The error of a device that is not there."""
    return Refused(f"Device '{device}' not found", "DeviceNotFound")


@dataclass(slots=True)
class Backend:
    """A netdev: the descriptors of its tap, one for each queue."""

    taps: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Let go of the tap."""
        while self.taps:
            os.close(self.taps.pop())


@dataclass(slots=True)
class Card:
    """A network card; `slot` is a root port's id, empty for one that was there from the start."""

    mac: str
    backend: str
    slot: str
    link: str
    """The guest's own name of it."""
    mtu: int = 1500
    cable: bool = True
    leaving: bool = False

    def line(self, action: str) -> str:
        """What the guest prints of it."""
        carrier = "on" if self.cable else "off"
        return f"link {action} {self.link} mac {self.mac} mtu {self.mtu} state up carrier {carrier}"


class Machine:
    """What QEMU would be: devices, backends, and what it tells of itself.

    :param say: tells every monitor of an event. :param report: prints a line on the console.
    :param release: seconds until the guest lets go of a card. :param notice: until it has found a new one.
    """

    def __init__(
        self,
        *,
        ports: int,
        cpus: int,
        release: float,
        notice: float,
        say: Callable[[str, Arguments], None],
        report: Callable[[str], None],
    ) -> None:
        self.ports = [f"rp{number}" for number in range(1, ports + 1)]
        self.cpus = cpus
        self.cards: dict[str, Card] = {}
        self.backends: dict[str, Backend] = {}
        self._release = release
        self._notice = notice
        self._say = say
        self._report = report
        self._links = 0
        self._seen: set[str] = set()

    def boot(self, nics: list[tuple[str, str]]) -> None:
        """Put the cards in that are there from the start, by interface and MAC; tell that the guest is up."""
        for interface, mac in nics:
            self.backends[f"host-ua-{interface}"] = Backend()
            self._plug(f"ua-{interface}", Card(mac.lower(), f"host-ua-{interface}", "", ""))
            self._noticed(f"ua-{interface}")
        self._report("ready")

    def qom_list(self, path: str) -> list[Answer]:
        """The devices below one of the two folders."""
        if path == ANONYMOUS:
            found = [("device[0]", "virtserialport")]
        elif path == NAMED:
            found = [("agent-bus", "virtio-serial-pci"), *((port, "pcie-root-port") for port in self.ports)]
            found += [(alias, "virtio-net-pci") for alias in self.cards]
        else:
            raise not_found(path)
        return [{"name": "type", "type": "string"}, *({"name": n, "type": f"child<{t}>"} for n, t in found)]

    def qom_get(self, path: str, name: str) -> str:
        """A property of a device: its bus, or a card's MAC."""
        folder, _, device = path.rpartition("/")
        card = self.cards.get(device) if folder == NAMED else None
        if name == "parent_bus":
            if card is not None and card.slot:
                return f"{NAMED}/{card.slot}/{card.slot}"
            if card is not None or device in (*self.ports, "agent-bus", "device[0]"):
                return "/machine/q35/pcie.0"
        elif name == "mac" and card is not None:
            return card.mac
        elif card is not None:
            raise Refused(f"Property 'virtio-net-pci.{name}' not found")
        raise not_found(path)

    def netdev_add(self, backend: str, kind: str, tap: str, queues: int) -> None:
        """Open a tap by its name."""
        if backend in self.backends:
            raise Refused(f"Duplicate ID '{backend}' for netdev")
        if kind != "tap":
            raise Refused(f"Parameter 'type' does not accept value '{kind}'")
        opened = Backend()
        try:
            for _ in range(queues):
                opened.taps.append(open_tap(tap, several=queues > 1))
        except OSError as error:
            opened.close()
            raise Refused(f"could not configure /dev/net/tun ({tap}): {error.strerror}") from error
        self.backends[backend] = opened

    def netdev_del(self, backend: str) -> None:
        """Close a tap, whether or not a card is in front of it."""
        found = self.backends.pop(backend, None)
        if found is None:
            raise not_found(backend)
        found.close()

    def device_add(self, alias: str, driver: str, backend: str, bus: str, mac: str, mtu: int) -> None:
        """Plug a card into a root port."""
        if driver != "virtio-net-pci":
            raise Refused(f"'{driver}' is not a valid device model name")
        if alias in self.cards:
            raise Refused(f"Duplicate device ID '{alias}'")
        if bus not in self.ports:
            raise Refused(f"Bus '{bus}' not found")
        if backend not in self.backends:
            raise Refused(f"Property 'virtio-net-pci.netdev' can't find value '{backend}'")
        for other, card in self.cards.items():
            if card.slot == bus:
                raise Refused(f"PCI: slot 0 function 0 not available for virtio-net-pci, in use by {other}")
            if card.backend == backend:
                raise Refused(f"Property 'virtio-net-pci.netdev' can't take value '{backend}', it's in use")
        self._plug(alias, Card(mac.lower(), backend, bus, "", mtu))
        asyncio.get_running_loop().call_later(self._notice, self._noticed, alias)

    def device_del(self, alias: str) -> None:
        """Ask the guest to let go of a card; it does so after its time."""
        card = self.cards.get(alias)
        if card is None:
            raise not_found(alias)
        if card.leaving:
            raise Refused(f"Device {alias} is already in the process of unplug")
        card.leaving = True
        asyncio.get_running_loop().call_later(self._release, self._gone, alias)

    def set_link(self, name: str, up: bool) -> None:
        """Plug or pull a cable; tells the guest when that changes something."""
        card = self.cards.get(name)
        if card is None:
            raise not_found(name)
        if card.cable is not up:
            card.cable = up
            if name in self._seen:
                self._report(card.line("change"))

    def rx_filters(self) -> list[Answer]:
        """The cards' receive filters: the guest's driver narrows one as soon as it has found the card."""
        return [{"name": alias, "promiscuous": alias not in self._seen} for alias in self.cards]

    def interfaces(self) -> list[Answer]:
        """What the guest agent says of the guest's links."""
        loopback = {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": []}
        cards = [self.cards[alias] for alias in self.cards if alias in self._seen]
        return [loopback, *({"name": c.link, "hardware-address": c.mac, "ip-addresses": []} for c in cards)]

    def _plug(self, alias: str, card: Card) -> None:
        card.link = f"eth{self._links}"
        self._links += 1
        self.cards[alias] = card

    def _noticed(self, alias: str) -> None:
        card = self.cards.get(alias)
        if card is None or alias in self._seen:
            return
        self._seen.add(alias)
        self._report(card.line("add"))
        self._say("NIC_RX_FILTER_CHANGED", {"name": alias, "path": f"{NAMED}/{alias}/virtio-backend"})

    def _gone(self, alias: str) -> None:
        card = self.cards.pop(alias)
        if alias in self._seen:
            self._seen.discard(alias)
            self._report(f"link remove {card.link} mac - mtu - state - carrier -")
        self._say("DEVICE_DELETED", {"path": f"{NAMED}/{alias}/virtio-backend"})
        self._say("DEVICE_DELETED", {"device": alias, "path": f"{NAMED}/{alias}"})


def open_tap(name: str, *, several: bool) -> int:
    """Attach to a tap of this network namespace; returns its descriptor.

    :raises OSError: it is no tap, or somebody is attached.
    """
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if several else 0)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def execute(machine: Machine, command: str, asked: Arguments) -> Any:
    """Carry out one command of a monitor.

    :raises Refused: it cannot be done. :raises KeyError: an argument is missing.
    """
    match command:
        case "qom-list":
            return machine.qom_list(asked["path"])
        case "qom-get":
            return machine.qom_get(asked["path"], asked["property"])
        case "query-cpus-fast":
            return [{"cpu-index": index, "target": "x86_64", "thread-id": 0} for index in range(machine.cpus)]
        case "query-rx-filter":
            return machine.rx_filters()
        case "netdev_add":
            return machine.netdev_add(asked["id"], asked["type"], asked.get("ifname", ""), asked.get("queues", 1))
        case "netdev_del":
            return machine.netdev_del(asked["id"])
        case "device_add":
            return machine.device_add(
                asked["id"], asked["driver"], asked["netdev"], asked["bus"], asked["mac"], asked.get("host_mtu", 1500)
            )
        case "device_del":
            return machine.device_del(asked["id"])
        case "set_link":
            return machine.set_link(asked["name"], asked["up"])
        case "quit":
            return None
    raise Refused(f"The command {command} has not been found", "CommandNotFound")
