"""A guest behind QEMU's own monitor (QMP on a unix socket): list, attach, detach, link state, events.

One connection per guest, kept, because QEMU serves one client at a time and it brings the events.
Cards are ``virtio-net-pci`` with the alias as their id, on a free PCIe root port, backed by a tap that QEMU opens by
name in the pod's network namespace. What should be attached is decided in :mod:`services.handler.plan`.
Source of the commands: QEMU's QMP reference, QAPI schema since 7.0.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from opentelemetry.trace import SpanKind, Tracer
from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from schemas.names import device_alias, interface_of_alias
from services.common import faults
from services.handler.guest.port import (
    Card,
    CardMissing,
    Change,
    GuestEvent,
    GuestNotReachable,
    GuestRefused,
    GuestView,
    NewCard,
)

DEADLINE = 5.0
"""Seconds for one command; connecting takes at most as long."""

_DEVICES = ("/machine/peripheral", "/machine/peripheral-anon")
_ROOT_PORTS = ("child<pcie-root-port>", "child<ioh3420>")
_MISSING = "DeviceNotFound"
_EVENTS = {
    "DEVICE_DELETED": Change.CARD_GONE,
    "DEVICE_UNPLUG_GUEST_ERROR": Change.CARD_STAYS,
    "NIC_RX_FILTER_CHANGED": Change.CARD_IN_USE,
}


class _Device(msgspec.Struct, frozen=True):
    bus: str
    card: Card | None


class QmpGuest:
    """One guest's monitor. Connects at the first call, and again after the connection broke."""

    def __init__(self, socket_path: str, tracer: Tracer, *, deadline: float = DEADLINE) -> None:
        self._path = socket_path
        self._tracer = tracer
        self._deadline = deadline
        self._client: QMPClient | None = None
        self._connecting = asyncio.Lock()
        self._known: dict[str, _Device] = {}
        self._up: dict[str, bool] = {}
        self._cpus = 0

    async def list(self) -> GuestView:
        """Look at the domain: three commands, and up to two more for each device not seen before."""
        # Before both at once: one that fails must leave no other that is still connecting.
        await self._connected()
        named, anonymous, filters = await asyncio.gather(
            *(self._execute("qom-list", {"path": path}) for path in _DEVICES), self._execute("query-rx-filter")
        )
        found = {
            f"{path}/{item['name']}": str(item["type"])
            for path, items in zip(_DEVICES, (named, anonymous), strict=True)
            for item in items
            if str(item["type"]).startswith("child<")
        }
        self._known = {path: known for path, known in self._known.items() if path in found}
        for path in found.keys() - self._known.keys():
            self._known[path] = await self._inspect(path, found[path])
        if not self._cpus:
            self._cpus = len(await self._execute("query-cpus-fast"))
        taken = {device.bus for device in self._known.values()}
        ports = {path.rpartition("/")[2]: path for path, kind in found.items() if kind in _ROOT_PORTS}
        cards = {device.card.alias: device.card for device in self._known.values() if device.card is not None}
        # QEMU tells nobody how a link is set: only what was set over this connection is known.
        self._up = {alias: up for alias, up in self._up.items() if alias in cards}
        driven = {one["name"] for one in filters if is_driven(one)}
        return GuestView(
            {
                alias: msgspec.structs.replace(cards[alias], up=self._up.get(alias), driven=alias in driven)
                for alias in sorted(cards)
            },
            # A port's bus bears the port's own id.
            tuple(sorted((name for name, path in ports.items() if f"{path}/{name}" not in taken), key=_natural)),
            self._cpus,
        )

    async def _inspect(self, path: str, kind: str) -> "_Device":
        """A device's bus and, for a NIC of the VMI's spec, its MAC: neither ever changes.

        Not by ``query-pci``: it shows nothing behind a port before the guest's firmware has numbered the buses.
        """
        try:
            bus = str(await self._execute("qom-get", {"path": path, "property": "parent_bus"}))
            alias, card = path.rpartition("/")[2], None
            if interface_of_alias(alias) and "-net" in kind:
                mac = str(await self._execute("qom-get", {"path": path, "property": "mac"}))
                card = Card(alias, mac.lower())
        except GuestRefused:
            # Not a device on a bus, or just gone: it takes no slot.
            return _Device("", None)
        return _Device(bus, card)

    async def attach(self, card: NewCard, slot: str) -> None:
        """Plug a card: a tap backend, then the device on a root port."""
        alias = device_alias(card.interface)
        backend = f"host-{alias}"
        netdev: dict[str, Any] = {
            "type": "tap",
            "id": backend,
            "ifname": card.tap,
            "script": "no",
            "downscript": "no",
        }
        device: dict[str, Any] = {
            "driver": "virtio-net-pci",
            "id": alias,
            "netdev": backend,
            "mac": card.mac,
            "bus": slot,
            # A port has one place. Left to itself, QEMU makes another one there, where no guest looks.
            "addr": "0",
            "host_mtu": card.mtu,
            # A card plugged at run time never boots: no ROM to load.
            "romfile": "",
        }
        if card.queues > 1:
            netdev["queues"] = card.queues
            device |= {"mq": True, "vectors": 2 * card.queues + 2}
        with self._span("netdev_add", card.interface):
            try:
                with faults.step("handler.netdev-add"):
                    await self._execute("netdev_add", netdev)
            except GuestRefused as refusal:
                if "uplicate ID" not in str(refusal) or alias in (await self.list()).cards:
                    raise
                # What an interrupted attempt left: a backend without a card.
                await self._execute("netdev_del", {"id": backend})
                await self._execute("netdev_add", netdev)
        with self._span("device_add", card.interface) as span:
            span.set_attribute("hotnic.slot", slot)
            commands = [self._execute("device_add", device)]
            if not card.up:
                # In one breath: QEMU makes every card with its cable plugged, and the guest needs some milliseconds to
                # find it. On a busy host it may still see a carrier for a moment.
                commands.append(self.set_link(card.interface, up=False))
            with faults.step("handler.device-add"):
                plugged, *pulled = await asyncio.gather(*commands, return_exceptions=True)
                if isinstance(plugged, GuestRefused):
                    await self._execute("netdev_del", {"id": backend})
                for outcome in (plugged, *pulled):
                    if isinstance(outcome, BaseException):
                        raise outcome
        self._up[alias] = card.up

    async def detach(self, interface: str) -> None:
        """Ask the guest to let go; the backend stays until the device is gone."""
        with self._span("device_del", interface):
            await self._execute("device_del", {"id": device_alias(interface)})

    async def remove_backend(self, interface: str) -> None:
        """Remove the tap backend, which outlives its device."""
        with self._span("netdev_del", interface) as span:
            try:
                await self._execute("netdev_del", {"id": f"host-{device_alias(interface)}"})
            except CardMissing:
                span.set_attribute("hotnic.backend", "gone already")

    async def set_link(self, interface: str, up: bool) -> None:
        """Plug or pull the cable. The guest hears of it only when it changes something."""
        alias = device_alias(interface)
        with self._span("set_link", interface) as span:
            span.set_attribute("hotnic.link", "up" if up else "down")
            await self._execute("set_link", {"name": alias, "up": up})
        self._up[alias] = up

    async def events(self) -> AsyncIterator[GuestEvent]:
        """Changes from now on, until the connection ends."""
        client = await self._connected()
        with client.listener() as listener:
            ended = asyncio.ensure_future(_ended(client))
            try:
                while not ended.done():
                    got = asyncio.ensure_future(listener.get())
                    try:
                        await asyncio.wait({got, ended}, return_when=asyncio.FIRST_COMPLETED)
                        if not got.done():
                            return
                        yield event_of(got.result())
                    finally:
                        got.cancel()
            finally:
                ended.cancel()

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await _disconnect(client)

    async def _connected(self) -> QMPClient:
        async with self._connecting:
            if self._client is not None and self._client.runstate == Runstate.RUNNING:
                return self._client
            if self._client is not None:
                await _disconnect(self._client)
                self._client = None
            client = QMPClient("hotnic-handler")
            try:
                async with asyncio.timeout(self._deadline):
                    await client.connect(self._path)
            except TimeoutError as exc:
                await _disconnect(client)
                raise GuestNotReachable(
                    f"QMP at {self._path}: no greeting within {self._deadline:g} s (is another client connected?)"
                ) from exc
            except (QMPError, OSError) as exc:
                raise GuestNotReachable(f"QMP at {self._path}: {exc}") from exc
            self._client = client
            self._known.clear()
            self._up.clear()
            self._cpus = 0
            return client

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        client = await self._connected()
        try:
            async with asyncio.timeout(self._deadline):
                return await client.execute(command, arguments)
        except ExecuteError as exc:
            refused = CardMissing if exc.error_class == _MISSING else GuestRefused
            raise refused(f"{command}: {exc}") from exc
        except TimeoutError as exc:
            await self.close()
            raise GuestNotReachable(f"QMP at {self._path}: {command} not answered within {self._deadline:g} s") from exc
        except (QMPError, OSError) as exc:
            await self.close()
            raise GuestNotReachable(f"QMP at {self._path}: {command}: {exc}") from exc

    def _span(self, command: str, interface: str) -> Any:
        attributes = {"rpc.system": "qmp", "rpc.method": command, "hotnic.interface": interface}
        return self._tracer.start_as_current_span(f"qmp {command}", kind=SpanKind.CLIENT, attributes=attributes)


def is_driven(rx_filter: Any) -> bool:
    """Whether a card's receive filter is no longer as a reset leaves it: only a driver in the guest changes it."""
    return not rx_filter.get("promiscuous", True) or bool(
        rx_filter.get("multicast-table") or rx_filter.get("unicast-table")
    )


def event_of(message: Any) -> GuestEvent:
    """Read a QMP event."""
    data = message.get("data") or {}
    if message["event"] == "VSERPORT_CHANGE" and data.get("open"):
        # Of the serial ports of a guest, the agent's is the one that is opened.
        return GuestEvent(Change.AGENT_CAME)
    return GuestEvent(_EVENTS.get(message["event"], Change.OTHER), data.get("device") or data.get("name"))


async def _ended(client: QMPClient) -> None:
    while client.runstate == Runstate.RUNNING:
        await client.runstate_changed()


async def _disconnect(client: QMPClient) -> None:
    if client.runstate == Runstate.IDLE:
        return
    try:
        async with asyncio.timeout(1.0):
            await client.disconnect()
    except (QMPError, OSError, EOFError, TimeoutError):
        # Why a broken connection ended is told where the command failed.
        return


def _natural(name: str) -> tuple[int, str]:
    return len(name), name
