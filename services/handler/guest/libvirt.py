"""A guest that libvirt runs, such as KubeVirt's: list, attach, detach, link state, events.

Cards go into the running domain and, where it has one, into its persistent configuration, as KubeVirt does it. How a
domain is read and a card written stands in :mod:`services.handler.guest.domain_xml`; the blocking calls in
:mod:`services.handler.guest.libvirt_domain`. What should be attached is decided in :mod:`services.handler.plan`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.trace import SpanKind, Tracer

from schemas.names import device_alias
from services.handler.guest.agent import AgentSilent, GuestNic
from services.handler.guest.domain_xml import card_xml, describe, has_card, senders, with_link
from services.handler.guest.libvirt_domain import (
    BY_AGENT,
    INACTIVE,
    INTERFACE_STATS,
    LIVE,
    NO_WAIT,
    PERSISTENT,
    Domain,
)
from services.handler.guest.port import CardMissing, GuestEvent, GuestNotReachable, GuestRefused, GuestView, NewCard

DEADLINE = 5.0
"""Seconds for one call; connecting is part of it."""


class LibvirtGuest:
    """One domain. Connects at the first call, and again after the connection broke.

    :param name: the domain's. :param socket: finds libvirtd's socket; its path is good inside the context.
    """

    def __init__(
        self,
        name: str,
        socket: Callable[[], Awaitable[AbstractContextManager[str]]],
        tracer: Tracer,
        *,
        deadline: float = DEADLINE,
    ) -> None:
        self.domain = Domain(name, socket, deadline=deadline)
        self._tracer = tracer

    async def list(self) -> GuestView:
        """Look at the domain: its description, that of its persistent configuration, and what its cards have sent."""
        return await self.domain.call("list", _view)

    async def attach(self, card: NewCard, slot: str) -> None:
        """Plug a card, into the persistent configuration as well."""
        try:
            xml = card_xml(card, slot)
        except ValueError as error:
            raise GuestRefused(str(error)) from error
        with self._span("attachDeviceFlags", card.interface) as span:
            span.set_attribute("hotnic.slot", slot)
            await self.domain.call("attachDeviceFlags", lambda domain: _attach(domain, xml, card.interface))

    async def detach(self, interface: str) -> None:
        """Ask the guest to let go; the persistent configuration loses the card at once."""
        with self._span("detachDeviceAlias", interface):
            await self.domain.call("detachDeviceAlias", lambda domain: _detach(domain, interface))

    async def remove_backend(self, interface: str) -> None:
        """libvirt removes the backend with the card; the persistent configuration may still have it."""
        await self.domain.call("detachDeviceAlias", lambda domain: _forget(domain, interface))

    async def set_link(self, interface: str, up: bool) -> None:
        """Plug or pull the cable."""
        with self._span("updateDeviceFlags", interface) as span:
            span.set_attribute("hotnic.link", "up" if up else "down")
            await self.domain.call("updateDeviceFlags", lambda domain: _set_link(domain, interface, up))

    def events(self) -> AsyncIterator[GuestEvent]:
        """Changes from now on, until the connection ends."""
        return self.domain.events()

    async def close(self) -> None:
        """Disconnect."""
        await self.domain.close()

    def _span(self, method: str, interface: str) -> Any:
        attributes = {"rpc.system": "libvirt", "rpc.method": method, "hotnic.interface": interface}
        return self._tracer.start_as_current_span(f"libvirt {method}", kind=SpanKind.CLIENT, attributes=attributes)


class LibvirtAgent:
    """The guest's agent as libvirt reaches it: the channel is libvirt's own."""

    def __init__(self, guest: LibvirtGuest) -> None:
        self._domain = guest.domain

    async def interfaces(self, *, timeout: float) -> tuple[GuestNic, ...]:
        """The guest's NICs that have a MAC.

        :raises AgentSilent: nobody answered, or not in time.
        """
        try:
            found = await self._domain.ask(lambda domain: domain.interfaceAddresses(BY_AGENT), timeout=timeout)
        except (GuestNotReachable, GuestRefused) as error:
            raise AgentSilent(str(error)) from error
        return tuple(
            GuestNic(name, seen["hwaddr"].lower(), tuple(address["addr"] for address in seen["addrs"] or ()))
            for name, seen in found.items()
            if seen["hwaddr"] not in (None, "", "00:00:00:00:00:00")
        )

    async def close(self) -> None:
        """The connection is the guest's."""


def _descriptions(domain: Any) -> tuple[str, str | None]:
    return domain.XMLDesc(0), domain.XMLDesc(INACTIVE) if domain.isPersistent() else None


def _view(domain: Any) -> GuestView:
    live, persistent = _descriptions(domain)
    [(_, counters)] = domain.connect().domainListGetStats([domain], INTERFACE_STATS, NO_WAIT)
    return describe(live, persistent, senders(counters))


def _attach(domain: Any, xml: str, interface: str) -> None:
    live, persistent = _descriptions(domain)
    if has_card(live, interface):
        raise GuestRefused(f"{device_alias(interface)} is in the domain already")
    # What an interrupted unplug left would be in the way.
    if persistent is not None and has_card(persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)
    domain.attachDeviceFlags(xml, LIVE | (PERSISTENT if persistent is not None else 0))


def _detach(domain: Any, interface: str) -> None:
    live, persistent = _descriptions(domain)
    if not has_card(live, interface):
        raise CardMissing(f"{device_alias(interface)} is not in the domain")
    # Not both in one call: asked again, libvirt would fail for want of the persistent card. By alias it does not wait
    # for the guest, by XML it does, for five seconds.
    if persistent is not None and has_card(persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)
    domain.detachDeviceAlias(device_alias(interface), LIVE)


def _forget(domain: Any, interface: str) -> None:
    _, persistent = _descriptions(domain)
    if persistent is not None and has_card(persistent, interface):
        domain.detachDeviceAlias(device_alias(interface), PERSISTENT)


def _set_link(domain: Any, interface: str, up: bool) -> None:
    live, persistent = _descriptions(domain)
    xml = with_link(live, interface, up)
    if xml is None:
        raise CardMissing(f"{device_alias(interface)} is not in the domain")
    domain.updateDeviceFlags(xml, LIVE)
    if persistent is not None and (kept := with_link(persistent, interface, up)) is not None:
        domain.updateDeviceFlags(kept, PERSISTENT)
