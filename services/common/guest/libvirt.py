"""The libvirt driver of a guest, such as KubeVirt's: list, attach, request unplug, link state, events.

A device goes into the running domain and, where the domain has one, into its persistent configuration, as KubeVirt
does. Descriptions are read and written in :mod:`services.common.guest.domain_xml`; blocking calls run in
:mod:`services.common.guest.libvirt_domain`.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind, Tracer

from schemas.inputs import RejectedInput, printable
from schemas.names import device_alias
from services.common.guest.agent import AgentFloods, AgentUnavailable, GuestNic, listed_nics
from services.common.guest.domain_xml import (
    UnreadableDomain,
    check_length,
    has_device,
    interface_xml,
    parse_domain,
    transmitting_taps,
    with_link_state,
)
from services.common.guest.libvirt_domain import (
    BY_AGENT,
    INACTIVE,
    INTERFACE_STATS,
    LIVE,
    NO_WAIT,
    PERSISTENT,
    LibvirtDomain,
)
from services.common.guest.port import (
    DeviceMissing,
    GuestEvent,
    GuestFloods,
    GuestNotReachable,
    GuestRefused,
    GuestView,
    NetDeviceSpec,
)

DEADLINE = 5.0
"""Seconds for one call, connecting included."""

_parsing = threading.Lock()
"""Held while a description is parsed. Each domain has a thread of its own, and one tree at a time is enough memory."""
_Result = TypeVar("_Result")


class LibvirtGuest:
    """The driver of one domain. It connects at the first call, and again after the connection broke."""

    def __init__(
        self,
        name: str,
        socket: Callable[[], Awaitable[AbstractContextManager[str]]],
        tracer: Tracer,
        *,
        deadline: float = DEADLINE,
    ) -> None:
        """Create the driver; it does not connect yet.

        :param name: the domain's name.
        :param socket: finds libvirtd's socket; the path is valid inside the context.
        :param tracer: makes the spans of the calls that change something.
        :param deadline: seconds for one call, connecting included.
        """
        self.domain = LibvirtDomain(name, socket, deadline=deadline)
        self._tracer = tracer

    async def list(self) -> GuestView:
        """Return the observed state, from both descriptions of the domain and its interface statistics."""
        try:
            return await self.domain.call("list", _view)
        except GuestFloods:
            await self.domain.give_up()
            raise

    async def attach(self, device: NetDeviceSpec, slot: str) -> None:
        """Attach a device, to the persistent configuration as well."""
        try:
            xml = interface_xml(device, slot)
        except ValueError as error:
            raise GuestRefused(str(error)) from error
        with self._span("attachDeviceFlags", device.interface) as span:
            span.set_attribute("hotnic.slot", slot)
            await self.domain.call("attachDeviceFlags", lambda domain: _attach(domain, xml, device.interface))

    async def request_unplug(self, interface: str) -> None:
        """Request that the guest give up a device; the persistent configuration loses it at once."""
        with self._span("detachDeviceAlias", interface):
            await self.domain.call("detachDeviceAlias", lambda domain: _request_unplug(domain, interface))

    async def remove_backend(self, interface: str) -> None:
        """Remove the device from the persistent configuration. libvirt removes the backend with the device."""
        await self.domain.call("detachDeviceAlias", lambda domain: _remove_persistent(domain, interface))

    async def set_link(self, interface: str, up: bool) -> None:
        """Set the link state of a device."""
        with self._span("updateDeviceFlags", interface) as span:
            span.set_attribute("hotnic.link", "up" if up else "down")
            await self.domain.call("updateDeviceFlags", lambda domain: _set_link(domain, interface, up))

    def events(self) -> AsyncIterator[GuestEvent]:
        """Yield the domain's events from now on, until the connection ends."""
        return self.domain.events()

    async def close(self) -> None:
        """Disconnect."""
        await self.domain.close()

    def _span(self, method: str, interface: str) -> Any:
        attributes = {"rpc.system": "libvirt", "rpc.method": method, "hotnic.interface": interface}
        return self._tracer.start_as_current_span(f"libvirt {method}", kind=SpanKind.CLIENT, attributes=attributes)


class LibvirtAgent:
    """A client of the guest agent through libvirt, which owns the agent's channel."""

    def __init__(self, guest: LibvirtGuest) -> None:
        self._domain = guest.domain

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """Return the guest's NICs that have a MAC.

        :param timeout: seconds for the whole query.
        :raises AgentUnavailable: there was no response in time.
        :raises AgentFloods: the response has more addresses than any guest has.
        """
        try:
            found = await self._domain.query(lambda domain: domain.interfaceAddresses(BY_AGENT), timeout=timeout)
        except (GuestNotReachable, GuestRefused) as error:
            raise AgentUnavailable(str(error)) from error
        try:
            return listed_nics(
                (name, link["hwaddr"], [address["addr"] for address in link["addrs"] or ()])
                for name, link in found.items()
            )
        except RejectedInput as error:
            raise AgentFloods(str(error)) from error

    async def close(self) -> None:
        """Do nothing: the connection belongs to the guest's driver."""


def _descriptions(domain: Any) -> tuple[str, str | None]:
    """Return the XML of the running domain and of its persistent configuration; ``None`` for a transient domain."""
    live = domain.XMLDesc(0)
    check_length(live)
    return live, domain.XMLDesc(INACTIVE) if domain.isPersistent() else None


def _parse(parse: Callable[..., _Result], *arguments: Any) -> _Result:
    with _parsing:
        return parse(*arguments)


def _view(domain: Any) -> GuestView:
    live, persistent = _descriptions(domain)
    try:
        [(_, counters)] = domain.connect().domainListGetStats([domain], INTERFACE_STATS, NO_WAIT)
        transmitting = transmitting_taps(counters)
    except (ValueError, TypeError) as error:
        raise UnreadableDomain(f"libvirt's statistics: {printable(str(error))}") from error
    return _parse(parse_domain, live, persistent, transmitting)


def _attach(domain: Any, xml: str, interface: str) -> None:
    live, persistent = _descriptions(domain)
    if _parse(has_device, live, interface):
        raise GuestRefused(f"{device_alias(interface)} is in the domain already")
    # An interrupted unplug may have left the device in the persistent configuration, where it blocks the attach.
    if persistent is not None and _parse(has_device, persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)
    domain.attachDeviceFlags(xml, LIVE | (PERSISTENT if persistent is not None else 0))


def _request_unplug(domain: Any, interface: str) -> None:
    live, persistent = _descriptions(domain)
    if not _parse(has_device, live, interface):
        raise DeviceMissing(f"{device_alias(interface)} is not in the domain")
    # Two calls: one call with both flags fails when it is repeated, because the persistent device is gone by then.
    # By alias: libvirt then returns at once; by XML it waits five seconds for the guest.
    if persistent is not None and _parse(has_device, persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)
    domain.detachDeviceAlias(device_alias(interface), LIVE)


def _remove_persistent(domain: Any, interface: str) -> None:
    _, persistent = _descriptions(domain)
    if persistent is not None and _parse(has_device, persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)


def _set_link(domain: Any, interface: str, up: bool) -> None:
    live, persistent = _descriptions(domain)
    xml = _parse(with_link_state, live, interface, up)
    if xml is None:
        raise DeviceMissing(f"{device_alias(interface)} is not in the domain")
    domain.updateDeviceFlags(xml, LIVE)
    if persistent is not None and (updated := _parse(with_link_state, persistent, interface, up)) is not None:
        domain.updateDeviceFlags(updated, PERSISTENT)
