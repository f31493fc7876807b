"""Decode QEMU's answers and events, of which a launcher's process may write any: typed, and with limits. Pure.

Only what is used is decoded. What is kept of an answer is short text and numbers.
Next: :mod:`services.common.guest.qmp`, which executes the commands.
"""

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import msgspec

from schemas.inputs import Edge, InputDecoder, RejectReason, check_count, reject
from services.common.guest.port import MAX_NAME, GuestChange, GuestEvent

MAX_OBJECTS = 16384
"""JSON objects of one answer. QEMU lists some for each device and each CPU."""
MAX_BUS_NUMBER = 255

_EVENTS = {
    "DEVICE_DELETED": GuestChange.DEVICE_DELETED,
    # x86 machines do not send this for a NIC: there, a guest that refuses does not answer.
    "DEVICE_UNPLUG_GUEST_ERROR": GuestChange.UNPLUG_REFUSED,
    "NIC_RX_FILTER_CHANGED": GuestChange.DEVICE_IN_USE,
}
_EMPTY = msgspec.Raw(b"[]")
T = TypeVar("T")


class _Child(msgspec.Struct, frozen=True):
    name: str
    type: str


class _Cpu(msgspec.Struct, frozen=True, rename="kebab"):
    cpu_index: int


class _RxFilter(msgspec.Struct, frozen=True, rename="kebab"):
    name: str
    promiscuous: bool = True
    # Not decoded: QEMU lists up to 4096 VLANs for each NIC, and as many addresses as the guest likes.
    multicast_table: msgspec.Raw = _EMPTY
    unicast_table: msgspec.Raw = _EMPTY


class _BridgeBus(msgspec.Struct, frozen=True):
    secondary: int = 0


class _Bridge(msgspec.Struct, frozen=True):
    bus: _BridgeBus = _BridgeBus()


class _PciDevice(msgspec.Struct, frozen=True):
    qdev_id: str = ""
    pci_bridge: _Bridge | None = None


class _PciBus(msgspec.Struct, frozen=True):
    devices: list[_PciDevice] = []


_text = InputDecoder(Edge.DOMAIN, str)
_children = InputDecoder(Edge.DOMAIN, list[_Child])
_cpus = InputDecoder(Edge.DOMAIN, list[_Cpu])
_rx_filters = InputDecoder(Edge.DOMAIN, list[_RxFilter])
_pci_buses = InputDecoder(Edge.DOMAIN, list[_PciBus])


def parse_text(answer: msgspec.Raw) -> str:
    """Parse the answer to ``qom-get`` of a property that is text.

    :raises RejectedInput: it is no text.
    """
    return _text.decode(answer)


def parse_devices(answer: msgspec.Raw) -> dict[str, str]:
    """Return the types of the devices that ``qom-list`` lists, by name.

    :raises RejectedInput: it is no such answer, or a name or a type is too long.
    """
    devices = {item.name: item.type for item in _decode(_children, answer) if item.type.startswith("child<")}
    for name, kind in devices.items():
        if max(len(name), len(kind)) > MAX_NAME:
            raise reject(Edge.DOMAIN, RejectReason.TOO_LARGE, "a device's name or type")
    return devices


def count_cpus(answer: msgspec.Raw) -> int:
    """Return how many CPUs ``query-cpus-fast`` lists.

    :raises RejectedInput: it is no such answer.
    """
    return len(_decode(_cpus, answer))


def active_devices(answer: msgspec.Raw) -> set[str]:
    """Return the NICs of ``query-rx-filter`` that a driver in the guest uses: only that changes a filter after a reset.

    :raises RejectedInput: it is no such answer.
    """
    return {found.name for found in _decode(_rx_filters, answer) if _is_changed(found)}


def bus_numbers(answer: msgspec.Raw, ports: Collection[str]) -> dict[str, int]:
    """Return the number of the bus behind each root port that has one: none has before the firmware has run.

    :param answer: the answer to ``query-pci``.
    :param ports: ids of the root ports.
    :raises RejectedInput: it is no such answer.
    """
    return {
        device.qdev_id: device.pci_bridge.bus.secondary
        for bus in _decode(_pci_buses, answer)
        for device in bus.devices
        if device.qdev_id in ports
        and device.pci_bridge is not None
        and 0 < device.pci_bridge.bus.secondary <= MAX_BUS_NUMBER
    }


def parse_event(message: Any) -> GuestEvent:
    """Parse a QMP event."""
    data = message.get("data") or {}
    if message["event"] == "VSERPORT_CHANGE" and data.get("open"):
        # The only virtio-serial port that a guest opens is the agent's.
        return GuestEvent(GuestChange.AGENT_CONNECTED)
    return GuestEvent(_EVENTS.get(message["event"], GuestChange.OTHER), _alias((data.get("device"), data.get("name"))))


def _alias(found: Iterable[Any]) -> str | None:
    alias = next(filter(None, found), None)
    if alias is not None and not (isinstance(alias, str) and len(alias) <= MAX_NAME):
        raise reject(Edge.DOMAIN, RejectReason.INVALID, "an event's device")
    return alias


def _is_changed(found: _RxFilter) -> bool:
    return not found.promiscuous or any(map(_has_items, (found.multicast_table, found.unicast_table)))


def _has_items(table: msgspec.Raw) -> bool:
    text = bytes(table).strip()
    return text.startswith(b"[") and bool(text[1:-1].strip())


def _decode(decoder: InputDecoder[T], answer: msgspec.Raw) -> T:
    # Before it is decoded: an empty object has two bytes, and takes thirty times as many.
    check_count(Edge.DOMAIN, bytes(answer).count(b"{"), MAX_OBJECTS, "too many objects in one answer")
    return decoder.decode(answer)
