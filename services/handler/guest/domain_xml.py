"""libvirt's description of a domain, read and written: its cards, its free slots, the XML of a new card. Pure.

Slots are the domain's PCIe root ports. A card goes into the running domain and into its persistent configuration at
once, so a slot is free only where both have nothing in it. Next: :mod:`services.handler.guest.libvirt`, which asks.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from schemas.names import device_alias, interface_of_alias
from services.handler.guest.port import Card, GuestNotReachable, GuestView, NewCard

LONGEST = 4 * 1024 * 1024
"""Bytes of a description that are read; libvirt itself sends at most as much."""

_SLOT = "pci."
_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")


class UnreadableDomain(GuestNotReachable):
    """What libvirt sent is no domain that can be read."""


def describe(live: str, persistent: str | None, sending: Collection[str] = ()) -> GuestView:
    """Read a running domain.

    :param persistent: its persistent configuration, where it has one.
    :param sending: links behind cards that the guest has sent something by.
    :raises GuestNotReachable: it does not run, or this is not readable.
    """
    domain = _parse(live)
    if domain.get("id") is None:
        raise GuestNotReachable("the domain does not run")
    cards = {}
    for alias, interface in sorted(_interfaces(domain)):
        if interface_of_alias(alias) is None:
            continue
        mac = interface.find("mac")
        link = interface.find("link")
        up = link is None or link.get("state") != "down"
        target = interface.find("target")
        driven = target is not None and target.get("dev") in sending
        cards[alias] = Card(alias, (mac.get("address") or "").lower() if mac is not None else "", up, driven)
    taken = set(_buses(domain))
    if persistent is not None:
        taken |= set(_buses(_parse(persistent)))
    free = sorted(set(_ports(domain)) - taken)
    return GuestView(cards, tuple(f"{_SLOT}{bus}" for bus in free), _cpus(domain))


def senders(counters: Mapping[str, Any]) -> set[str]:
    """The links behind cards that the guest has sent something by, from libvirt's counters of a domain.

    A card is silent until a driver uses it; nothing else of what libvirt tells shows one.
    """
    return {
        str(counters.get(f"net.{number}.name"))
        for number in range(int(counters.get("net.count", 0)))
        if counters.get(f"net.{number}.tx.pkts", 0) > 0
    }


def has_card(description: str, interface: str) -> bool:
    """Whether a description has the card of an interface."""
    return any(alias == device_alias(interface) for alias, _ in _interfaces(_parse(description)))


def card_xml(card: NewCard, slot: str) -> str:
    """The element of a new card, in the order that KubeVirt writes it.

    :raises ValueError: the slot is none of :attr:`GuestView.free_slots`.
    """
    bus = int(slot.removeprefix(_SLOT)) if slot.startswith(_SLOT) else 0
    if bus < 1:
        raise ValueError(f"{slot} is not a slot of this domain")
    element = ElementTree.Element("interface", type="ethernet")
    ElementTree.SubElement(element, "target", dev=card.tap, managed="no")
    ElementTree.SubElement(element, "model", type="virtio-non-transitional")
    ElementTree.SubElement(element, "mac", address=card.mac)
    ElementTree.SubElement(element, "mtu", size=str(card.mtu))
    if not card.up:
        ElementTree.SubElement(element, "link", state="down")
    ElementTree.SubElement(element, "alias", name=device_alias(card.interface))
    if card.queues > 1:
        ElementTree.SubElement(element, "driver", queues=str(card.queues))
    # A card plugged at run time never boots: no ROM to load.
    ElementTree.SubElement(element, "rom", enabled="no")
    address = {"type": "pci", "domain": "0x0000", "bus": f"{bus:#04x}", "slot": "0x00", "function": "0x0"}
    ElementTree.SubElement(element, "address", address)
    return ElementTree.tostring(element, encoding="unicode")


def with_link(description: str, interface: str, up: bool) -> str | None:
    """A card's own element with its cable plugged or pulled; ``None`` when there is no such card."""
    for alias, element in _interfaces(_parse(description)):
        if alias == device_alias(interface):
            for link in element.findall("link"):
                element.remove(link)
            if not up:
                ElementTree.SubElement(element, "link", state="down")
            return ElementTree.tostring(element, encoding="unicode")
    return None


def _parse(description: str) -> ElementTree.Element:
    # Only a document type can declare entities, and libvirt never sends one.
    if len(description) > LONGEST or "<!DOCTYPE" in description:
        raise UnreadableDomain("the domain's description is too long or has a document type")
    try:
        domain = ElementTree.fromstring(description)
    except ElementTree.ParseError as error:
        raise UnreadableDomain(f"the domain's description is no XML: {error}") from error
    if domain.tag != "domain":
        raise UnreadableDomain(f"a {domain.tag} is no domain")
    return domain


def _devices(domain: ElementTree.Element) -> Iterator[ElementTree.Element]:
    yield from domain.iterfind("devices/*")


def _interfaces(domain: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    for interface in domain.iterfind("devices/interface"):
        alias = interface.find("alias")
        if alias is not None:
            yield alias.get("name") or "", interface


def _ports(domain: ElementTree.Element) -> Iterator[int]:
    for controller in domain.iterfind("devices/controller[@type='pci']"):
        target = controller.find("target")
        fixed = target is not None and target.get("hotplug") == "off"
        if controller.get("model") in _PORTS and not fixed:
            yield _number(controller.get("index"))


def _buses(domain: ElementTree.Element) -> Iterator[int]:
    """The bus of every device; what stands deeper in it is an address of the host."""
    for device in _devices(domain):
        for address in device.findall("address[@type='pci']"):
            yield _number(address.get("bus"))


def _number(text: str | None) -> int:
    try:
        return int(text or "0", 0)
    except ValueError as error:
        raise UnreadableDomain(f"{text!r} is no number") from error


def _cpus(domain: ElementTree.Element) -> int:
    vcpu = domain.find("vcpu")
    return _number(vcpu.get("current") or vcpu.text) if vcpu is not None else 1
