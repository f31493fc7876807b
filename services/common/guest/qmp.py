"""The QMP driver of a guest: list, attach, request unplug, link state and events over QEMU's own monitor.

QEMU serves one QMP client at a time, and events need an open connection, so each guest has one persistent connection.
A NIC is a ``virtio-net-pci`` device with the alias as its id, on a free PCIe root port. Its backend is a tap that QEMU
opens by name in the pod's network namespace. The commands follow QEMU's QMP reference, QAPI schema since 7.0.
Next: :mod:`services.common.guest.agent`, the client of the guest agent.
"""

import asyncio
from collections.abc import AsyncIterator, Container, Coroutine
from typing import Any

import msgspec
from opentelemetry.trace import SpanKind, Tracer

from schemas.inputs import Edge, RejectedInput, RejectReason, printable, reject
from schemas.names import device_alias, interface_of_alias
from services.common.domain.mac_address import find_mac
from services.common.guest.port import (
    DeviceMissing,
    GuestEvent,
    GuestFloods,
    GuestNotReachable,
    GuestRefused,
    GuestView,
    NetDevice,
    NetDeviceSpec,
)
from services.common.guest.qmp_answers import (
    active_devices,
    bus_numbers,
    count_cpus,
    parse_devices,
    parse_event,
    parse_text,
)
from services.common.guest.qmp_client import DEADLINE, QmpClient

LIST_DEADLINE = 30.0
"""Seconds for a list of some hundred devices."""
MAX_DEVICES = 1024

_DEVICES = ("/machine/peripheral", "/machine/peripheral-anon")
_ROOT_PORTS = ("child<pcie-root-port>", "child<ioh3420>")


class _Device(msgspec.Struct, frozen=True):
    """A device in QEMU's object tree.

    :ivar bus: the bus that it is on, as a path in the object tree; empty for an object behind no root port.
    :ivar nic: the NIC; ``None`` for a device that is not a NIC of the VMI's spec, or has no MAC that a NIC can have.
    """

    bus: str
    nic: NetDevice | None


class QmpGuest:
    """The driver of one guest. It connects at the first call, and again after the connection broke.

    :ivar client: the client of the guest's QMP socket.
    :ivar list_deadline: seconds for all commands of a list. A domain with many devices may answer each of them in time.
    """

    def __init__(
        self, socket_path: str, tracer: Tracer, *, trusted: str | None = None, deadline: float = DEADLINE
    ) -> None:
        """Create the driver; it does not connect yet.

        :param socket_path: QEMU's QMP socket.
        :param trusted: as of :class:`services.common.guest.qmp_client.QmpClient`.
        :param tracer: makes the spans of the commands that change something.
        :param deadline: seconds for one command, and for connecting.
        """
        self.client = QmpClient(socket_path, trusted=trusted, deadline=deadline, on_connect=self._forget)
        self.list_deadline = LIST_DEADLINE
        self._tracer = tracer
        # What this connection has found: devices by path in the object tree, link states by alias, the number of CPUs.
        self._known: dict[str, _Device] = {}
        self._up: dict[str, bool] = {}
        self._cpus = 0
        self._buses: dict[str, int] = {}

    async def list(self) -> GuestView:
        """Return the observed state, with three commands and up to two more for each device not seen before.

        The first call needs two more, for the number of CPUs and of the buses.
        """
        try:
            async with asyncio.timeout(self.list_deadline):
                return await self._list()
        except TimeoutError as error:
            raise GuestNotReachable(f"the devices were not listed within {self.list_deadline:g} s") from error
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            text = printable(f"QEMU's list of devices: {type(error).__name__}: {error}")
            if isinstance(error, RejectedInput) and error.reason in (RejectReason.TOO_MANY, RejectReason.TOO_LARGE):
                await self.client.give_up()
                raise GuestFloods(text) from error
            raise GuestNotReachable(str(reject(Edge.DOMAIN, RejectReason.INVALID, text))) from error

    async def _list(self) -> GuestView:
        # Connect before the parallel commands: if one of them failed, the others would still be connecting.
        await self.client.connect()
        self.client.expect_answers()
        *listed, filters = await asyncio.gather(
            *(self.client.execute("qom-list", {"path": path}) for path in _DEVICES),
            self.client.execute("query-rx-filter"),
        )
        active = active_devices(filters)
        found = {
            f"{path}/{name}": kind
            for path, answer in zip(_DEVICES, listed, strict=True)
            for name, kind in parse_devices(answer).items()
        }
        if len(found) > MAX_DEVICES:
            raise reject(Edge.DOMAIN, RejectReason.TOO_MANY, f"more than {MAX_DEVICES} devices")
        ports = {path.rpartition("/")[2]: path for path, kind in found.items() if kind in _ROOT_PORTS}
        # The bus behind a root port has the port's own id as its name.
        behind = {f"{path}/{name}": name for name, path in ports.items()}
        self._known = {path: known for path, known in self._known.items() if path in found}
        for path in found.keys() - self._known.keys():
            self._known[path] = await self._inspect(path, found[path], behind.keys())
        if not self._cpus:
            self._cpus = count_cpus(await self.client.execute("query-cpus-fast"))
        # Any device takes its port: disks and NICs share the root ports (kubevirt#14180).
        taken = {device.bus for device in self._known.values()}
        if not ports.keys() <= self._buses.keys():
            # Empty until the firmware has numbered the buses.
            self._buses = bus_numbers(await self.client.execute("query-pci"), ports.keys())
        nics = {device.nic.alias: device.nic for device in self._known.values() if device.nic is not None}
        # QMP has no query for the link state: only what was set over this connection is known.
        self._up = {alias: up for alias, up in self._up.items() if alias in nics}
        return GuestView(
            {
                alias: msgspec.structs.replace(nics[alias], up=self._up.get(alias), driver_active=alias in active)
                for alias in sorted(nics)
            },
            tuple(sorted((name for bus, name in behind.items() if bus not in taken), key=_natural)),
            self._cpus,
            {name: self._buses[name] for name in ports if name in self._buses},
        )

    async def _inspect(self, path: str, kind: str, buses: Container[str]) -> "_Device":
        """Return a device's bus and, for a NIC of the VMI's spec, its MAC; neither ever changes.

        ``query-pci`` is no alternative: it shows nothing behind a port before the guest's firmware has numbered the
        buses.

        :param buses: the buses behind the root ports.
        """
        try:
            bus = parse_text(await self.client.execute("qom-get", {"path": path, "property": "parent_bus"}))
            alias, nic = path.rpartition("/")[2], None
            if interface_of_alias(alias) and "-net" in kind:
                mac = find_mac(parse_text(await self.client.execute("qom-get", {"path": path, "property": "mac"})))
                if mac is not None:
                    nic = NetDevice(alias, mac)
                else:
                    reject(Edge.DOMAIN, RejectReason.INVALID, "MAC address")
        except GuestRefused:
            # The object is on no bus, or was deleted meanwhile: it takes no slot.
            return _Device("", None)
        return _Device(bus if bus in buses else "", nic)

    async def attach(self, device: NetDeviceSpec, slot: str) -> None:
        """Attach a device: a tap backend, then the device on a root port."""
        alias = device_alias(device.interface)
        backend = f"host-{alias}"
        netdev: dict[str, Any] = {
            "type": "tap",
            "id": backend,
            "ifname": device.tap,
            # By default QEMU runs /etc/qemu-ifup and /etc/qemu-ifdown on the tap.
            "script": "no",
            "downscript": "no",
        }
        frontend: dict[str, Any] = {
            "driver": "virtio-net-pci",
            "id": alias,
            "netdev": backend,
            "mac": device.mac,
            "bus": slot,
            # Without an address QEMU would accept a second device behind a port, where no guest looks for one.
            "addr": "0",
            "host_mtu": device.mtu,
            # The guest never boots from a hot-plugged device, so it needs no option ROM.
            "romfile": "",
        }
        if device.acpi_index is not None:
            frontend["acpi-index"] = device.acpi_index
        if device.queues > 1:
            netdev["queues"] = device.queues
            # One vector for each receive and each transmit queue, one for the control queue, one for the configuration.
            frontend |= {"mq": True, "vectors": 2 * device.queues + 2}
        with self._span("netdev_add", device.interface):
            try:
                await self.client.execute("netdev_add", netdev)
            except GuestRefused as refusal:
                # Without the first letter, which may be upper or lower case.
                if "uplicate ID" not in str(refusal) or alias in (await self.list()).devices:
                    raise
                # An interrupted attempt left a backend without a device.
                await self.client.execute("netdev_del", {"id": backend})
                await self.client.execute("netdev_add", netdev)
        with self._span("device_add", device.interface) as span:
            span.set_attribute("hotnic.slot", slot)
            commands: list[Coroutine[Any, Any, object]] = [self.client.execute("device_add", frontend)]
            if not device.up:
                # QEMU creates every device with its link up. Both commands are sent at once, because the guest needs
                # some milliseconds to find the device. On a busy host it may still see a carrier for a moment.
                commands.append(self.set_link(device.interface, up=False))
            plugged, *link_set = await asyncio.gather(*commands, return_exceptions=True)
            if isinstance(plugged, GuestRefused):
                await self.client.execute("netdev_del", {"id": backend})
            for outcome in (plugged, *link_set):
                if isinstance(outcome, BaseException):
                    raise outcome
        self._up[alias] = device.up

    async def request_unplug(self, interface: str) -> None:
        """Request that the guest give up a device; the backend remains until the device is gone."""
        with self._span("device_del", interface):
            await self.client.execute("device_del", {"id": device_alias(interface)})

    async def remove_backend(self, interface: str) -> None:
        """Remove the tap backend: QEMU does not remove it with the device."""
        with self._span("netdev_del", interface) as span:
            try:
                await self.client.execute("netdev_del", {"id": f"host-{device_alias(interface)}"})
            except DeviceMissing:
                span.set_attribute("hotnic.backend", "gone already")

    async def set_link(self, interface: str, up: bool) -> None:
        """Set the link state of a device. The guest sees an event only when the state changes."""
        alias = device_alias(interface)
        with self._span("set_link", interface) as span:
            span.set_attribute("hotnic.link", "up" if up else "down")
            await self.client.execute("set_link", {"name": alias, "up": up})
        self._up[alias] = up

    def events(self) -> AsyncIterator[GuestEvent]:
        """Yield the domain's events from now on, until the connection ends."""
        return self.client.events(parse_event)

    async def close(self) -> None:
        """Disconnect."""
        await self.client.close()

    def _forget(self) -> None:
        """Forget what earlier connections have found: another QEMU may serve the socket by now."""
        self._known.clear()
        self._up.clear()
        self._cpus = 0
        self._buses.clear()

    def _span(self, command: str, interface: str) -> Any:
        attributes = {"rpc.system": "qmp", "rpc.method": command, "hotnic.interface": interface}
        return self._tracer.start_as_current_span(f"qmp {command}", kind=SpanKind.CLIENT, attributes=attributes)


def _natural(name: str) -> tuple[int, str]:
    """Return the sort key by which ``rp2`` comes before ``rp10``."""
    return len(name), name
