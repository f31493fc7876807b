"""Read libvirt's description of a domain (its NICs and free slots) and write the element of a new NIC. Pure.

The slots are the domain's PCIe root ports. A device goes into the running domain and into its persistent configuration
at the same time, so a slot is free only where neither has a device in it.
Next: :mod:`services.common.guest.libvirt`, which gets the descriptions.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from schemas.inputs import Edge, RejectReason, printable, reject
from schemas.names import device_alias, interface_of_alias
from services.common.domain.mac_address import find_mac
from services.common.guest.port import MAX_NAME, GuestFloods, GuestNotReachable, GuestView, NetDevice, NetDeviceSpec

MAX_DESCRIPTION = 512 * 1024
"""Characters of the longest description that is read: some hundred devices. libvirt itself sends 4 MiB at most."""

MAX_MARKUP = 32768
"""Tags and attributes of a description. A tree of them has a hundred times the size of the text."""

MAX_NUMBER = 0xFFFF
"""Of buses and CPUs."""

MAX_INTERFACES = 1024
"""Interfaces whose statistics are read."""

_SLOT = "pci."
_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")


class UnreadableDomain(GuestNotReachable):
    """The description from libvirt is not a readable domain."""


def parse_domain(live: str, persistent: str | None, transmitting: Collection[str] = ()) -> GuestView:
    """Return the observed state of a running domain.

    :param live: the description of the running domain.
    :param persistent: the description of its persistent configuration; ``None`` when it has none.
    :param transmitting: the taps that the guest has sent packets through.
    :raises GuestNotReachable: the domain does not run, or a description is not readable.
    """
    # One tree after the other.
    taken = set(_buses(_parse(persistent))) if persistent is not None else set()
    domain = _parse(live)
    # libvirt gives an id to running domains only.
    if domain.get("id") is None:
        raise GuestNotReachable("the domain does not run")
    devices = {}
    # By the alias alone: elements have no order, and a description may repeat an alias.
    for alias, interface in sorted(_interfaces(domain), key=lambda found: found[0]):
        if interface_of_alias(alias) is None or len(alias) > MAX_NAME:
            continue
        address = interface.find("mac")
        mac = find_mac(address.get("address")) if address is not None else None
        if mac is None:
            reject(Edge.DOMAIN, RejectReason.INVALID, "MAC address")
            continue
        link = interface.find("link")
        up = link is None or link.get("state") != "down"
        target = interface.find("target")
        active = target is not None and target.get("dev") in transmitting
        devices[alias] = NetDevice(alias, mac, up, active)
    taken |= set(_buses(domain))
    ports = sorted(set(_ports(domain)))
    free = tuple(f"{_SLOT}{bus}" for bus in ports if bus not in taken)
    return GuestView(devices, free, _cpus(domain), {f"{_SLOT}{bus}": bus for bus in ports})


def transmitting_taps(counters: Mapping[str, Any]) -> set[str]:
    """Return the taps that the guest has sent packets through.

    A device sends nothing until a driver in the guest uses it. libvirt reports no better sign of a driver.

    :param counters: libvirt's interface statistics of the domain.
    """
    return {
        str(counters.get(f"net.{number}.name"))
        for number in range(min(int(counters.get("net.count", 0)), MAX_INTERFACES))
        if counters.get(f"net.{number}.tx.pkts", 0) > 0
    }


def has_device(description: str, interface: str) -> bool:
    """Return whether a description has the device of an interface."""
    return any(alias == device_alias(interface) for alias, _ in _interfaces(_parse(description)))


def interface_xml(device: NetDeviceSpec, slot: str) -> str:
    """Return the ``<interface>`` element of a new device, with its parts in the order that KubeVirt writes them.

    :raises ValueError: the slot is not one of :attr:`GuestView.free_slots`.
    """
    bus = int(slot.removeprefix(_SLOT)) if slot.startswith(_SLOT) else 0
    # Bus 0 is the root complex (pcie.0), which does not support hot-plug.
    if bus < 1:
        raise ValueError(f"{slot} is not a slot of this domain")
    element = ElementTree.Element("interface", type="ethernet")
    # Without managed="no" libvirt creates the tap itself, and deletes it with the device.
    ElementTree.SubElement(element, "target", dev=device.tap, managed="no")
    # KubeVirt's translation of the model `virtio`.
    ElementTree.SubElement(element, "model", type="virtio-non-transitional")
    ElementTree.SubElement(element, "mac", address=device.mac)
    ElementTree.SubElement(element, "mtu", size=str(device.mtu))
    if not device.up:
        ElementTree.SubElement(element, "link", state="down")
    ElementTree.SubElement(element, "alias", name=device_alias(device.interface))
    if device.queues > 1:
        ElementTree.SubElement(element, "driver", queues=str(device.queues))
    # The guest never boots from a hot-plugged device, so it needs no option ROM.
    ElementTree.SubElement(element, "rom", enabled="no")
    if device.acpi_index is not None:
        ElementTree.SubElement(element, "acpi", index=str(device.acpi_index))
    address = {"type": "pci", "domain": "0x0000", "bus": f"{bus:#04x}", "slot": "0x00", "function": "0x0"}
    ElementTree.SubElement(element, "address", address)
    return ElementTree.tostring(element, encoding="unicode")


def with_link_state(description: str, interface: str, up: bool) -> str | None:
    """Return a device's own element with a link state; ``None`` when there is no such device."""
    for alias, element in _interfaces(_parse(description)):
        if alias == device_alias(interface):
            for link in element.findall("link"):
                element.remove(link)
            if not up:
                ElementTree.SubElement(element, "link", state="down")
            try:
                return ElementTree.tostring(element, encoding="unicode")
            except RecursionError as error:
                raise UnreadableDomain("the device's element is nested too deeply") from error
    return None


def check_length(description: str) -> None:
    """Refuse a description that is too long to be kept while another one is read.

    :raises GuestFloods: it is.
    """
    if len(description) > MAX_DESCRIPTION:
        reject(Edge.DOMAIN, RejectReason.TOO_LARGE, "description")
        raise GuestFloods(f"the domain's description has more than {MAX_DESCRIPTION} characters")


def _parse(description: str) -> ElementTree.Element:
    check_length(description)
    # Before it is parsed. A `<` is not in a text, and a `=` rarely is.
    if description.count("<") + description.count("=") > MAX_MARKUP:
        reject(Edge.DOMAIN, RejectReason.TOO_MANY, "description")
        raise GuestFloods(f"the domain's description has more than {MAX_MARKUP} tags and attributes")
    # Only a document type can declare entities, which could expand without limit. libvirt never sends one.
    if "<!DOCTYPE" in description:
        raise UnreadableDomain("the domain's description has a document type")
    try:
        domain = ElementTree.fromstring(description)
    except ElementTree.ParseError as error:
        raise UnreadableDomain(f"the domain's description is not valid XML: {printable(str(error))}") from error
    if domain.tag != "domain":
        raise UnreadableDomain(f"the description is of a {printable(domain.tag)}, not of a domain")
    return domain


def _devices(domain: ElementTree.Element) -> Iterator[ElementTree.Element]:
    yield from domain.iterfind("devices/*")


def _interfaces(domain: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield the interfaces that have an alias, with the alias."""
    for interface in domain.iterfind("devices/interface"):
        alias = interface.find("alias")
        if alias is not None:
            yield alias.get("name") or "", interface


def _ports(domain: ElementTree.Element) -> Iterator[int]:
    """Yield the bus of every PCIe port that supports hot-plug."""
    for controller in domain.iterfind("devices/controller[@type='pci']"):
        target = controller.find("target")
        fixed = target is not None and target.get("hotplug") == "off"
        if controller.get("model") in _PORTS and not fixed:
            yield _number(controller.get("index"))


def _buses(domain: ElementTree.Element) -> Iterator[int]:
    """Yield the bus of every device.

    Only an ``<address>`` directly below the device counts: a deeper one is the address of a host device.
    """
    for device in _devices(domain):
        for address in device.findall("address[@type='pci']"):
            yield _number(address.get("bus"))


def _number(text: str | None) -> int:
    shown = printable(text or "0", 20)
    try:
        number = int(shown, 0)
        if not 0 <= number <= MAX_NUMBER:
            raise ValueError("out of range")
    except ValueError as error:
        raise UnreadableDomain(f"{shown!r} is not the number of a bus or of CPUs") from error
    return number


def _cpus(domain: ElementTree.Element) -> int:
    vcpu = domain.find("vcpu")
    return _number(vcpu.get("current") or vcpu.text) if vcpu is not None else 1
