"""The protocol of a client of a guest's domain, whether QEMU or libvirt is the server. Types only.

The domain is the guest's virtual machine in QEMU. A device in it has an alias (QEMU's device id) and, on the host, a
backend, which for a NIC is its tap. A slot is a PCIe root port, which takes one hot-plugged device.
Next: :mod:`services.common.guest.drivers`, which selects an implementation.
"""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import msgspec

MAX_NAME = 256
"""Characters of a device's name, or alias, that is read of a domain."""


class GuestNotReachable(Exception):
    """The domain does not answer. Whether the last request took effect is unknown."""


class GuestFloods(GuestNotReachable):
    """The domain sends more than any domain does, or what takes long to parse: a call soon after gains nothing."""


class GuestRefused(Exception):
    """The domain refused a request. ``str()`` is the domain's own message."""


class DeviceMissing(GuestRefused):
    """The domain does not have the device, or no longer."""


class NetDevice(msgspec.Struct, frozen=True):
    """A NIC in the domain.

    :ivar alias: the device's alias, ``ua-<interface>``.
    :ivar mac: the MAC address, lower case.
    :ivar up: the link state; ``None`` when the domain does not report it.
    :ivar driver_active: whether a driver in the guest has been seen to use the device.
    """

    alias: str
    mac: str
    up: bool | None = None
    driver_active: bool = False


class GuestView(msgspec.Struct, frozen=True):
    """The observed state of a domain.

    :ivar devices: the NICs, by alias.
    :ivar free_slots: ids of the slots without a device: for QMP the id of the root port, for libvirt ``pci.<bus>``.
    :ivar cpus: the number of virtual CPUs.
    :ivar buses: the number of the PCI bus behind each slot, with a device or without, as far as it is known.
    """

    devices: dict[str, NetDevice]
    free_slots: tuple[str, ...]
    cpus: int = 1
    buses: dict[str, int] = {}


class NetDeviceSpec(msgspec.Struct, frozen=True):
    """A virtio NIC to attach.

    :ivar interface: the name of the interface in the VMI's spec.
    :ivar mac: the MAC address of the guest NIC.
    :ivar tap: the tap behind the device, in the network namespace of the guest's process.
    :ivar mtu: bytes.
    :ivar queues: the number of queues; must match the tap's.
    :ivar up: the initial link state.
    :ivar acpi_index: the number in the predictable name that the guest gives the NIC (``eno<i>``); ``None`` for none.
    """

    interface: str
    mac: str
    tap: str
    mtu: int
    queues: int = 1
    up: bool = True
    acpi_index: int | None = None


class GuestChange(StrEnum):
    """The kind of a :class:`GuestEvent`."""

    DEVICE_DELETED = "device-deleted"
    DEVICE_IN_USE = "device-in-use"
    UNPLUG_REFUSED = "unplug-refused"
    AGENT_CONNECTED = "agent-connected"
    OTHER = "other"


class GuestEvent(msgspec.Struct, frozen=True):
    """An event of a domain.

    :ivar change: what happened.
    :ivar alias: the device that the event is about; ``None`` when it is about none.
    """

    change: GuestChange
    alias: str | None = None


class GuestDriver(Protocol):
    """A client of one running domain.

    Every call has a deadline, and raises :class:`GuestNotReachable` or :class:`GuestRefused`.
    """

    async def list(self) -> GuestView:
        """Return the observed state of the domain."""
        ...

    async def attach(self, device: NetDeviceSpec, slot: str) -> None:
        """Attach a device in a free slot; a backend that an interrupted attempt left is replaced.

        :param slot: one of :attr:`GuestView.free_slots`.
        """
        ...

    async def request_unplug(self, interface: str) -> None:
        """Request that the guest give up a device.

        The device is gone only when :meth:`events` or :meth:`list` shows that it is.

        :raises DeviceMissing: the domain does not have the device.
        :raises GuestRefused: the request was refused, for example because an earlier one is pending.
        """
        ...

    async def remove_backend(self, interface: str) -> None:
        """Remove the backend of a device that is gone; a backend that is gone too is no error."""
        ...

    async def set_link(self, interface: str, up: bool) -> None:
        """Set the link state of a device; setting the present state again has no effect.

        :raises DeviceMissing: the domain does not have the device.
        """
        ...

    def events(self) -> AsyncIterator[GuestEvent]:
        """Yield the domain's events from now on, until the connection ends."""
        ...

    async def close(self) -> None:
        """Disconnect; may be called repeatedly."""
        ...
