"""Whether an interface can be plugged or unplugged at run time, and the reason if not, for api and controller.

Decided from specs and pod annotations only; free NIC slots and the existence of NADs are checked elsewhere.
Next: :mod:`services.common.domain.attachments`, the attachments that the pod then needs.
"""

import re
from collections.abc import Iterable, Iterator

from schemas.kubernetes.objects import Interface, Network, VmiSpec
from schemas.names import KNOWN_INTERFACE_NAME, interface_hash
from services.common.domain.mac_address import find_mac, normalize_mac
from services.common.domain.nic import VmiNics
from services.common.domain.operations import ABSENT
from services.common.domain.status_interfaces import DOMAIN, parse_tokens

MODELS = (None, "", "virtio")
"""Models of a NIC that can be hot-plugged; the default is virtio."""

BINDINGS = ("bridge", "masquerade", "sriov", "slirp", "macvtap", "passt", "passt_binding", "binding")
"""The fields of an interface that are bindings."""

LINK_STATES = ("", "up", "down")
"""The values of an interface's ``state`` that set the state of its link; empty is up."""

STATES = (*LINK_STATES, ABSENT)
"""The values of an interface's ``state``."""

MAX_ACPI_INDEX = 16 * 1024 - 1
"""QEMU's limit, which is Linux's limit for the number in a link's name."""

PCI_ADDRESS = re.compile(r"0000:([0-9a-fA-F]{2}):00\.0")
"""Pattern of an address behind a PCIe root port (``fullmatch``); its group is the bus."""

START_FIELDS = ("tag", "boot_order", "dhcp_options")
"""The fields of an interface that apply at the VM's start only."""

OUTSIDE_SPEC = frozenset({"UnsupportedModel", "InvalidInterface"})
"""The reasons of :func:`find_spec_obstacle`."""
PLUG_FAILURES = OUTSIDE_SPEC | {
    "DuplicateMacAddress",
    "NoFreeSlot",
    "NoSuchSlot",
    "UnsupportedPodLink",
    "PodNicRecordTooLarge",
}
"""Refusals of the handler that end a plug: they are written to its operation, and the interface is removed from the
spec."""

ORDINAL_NAMES = "its pod has ordinal interface names (net1, …), which an unplug would renumber; restart the VM first"


def find_change_obstacle(interface: Interface, network: Network | None) -> str | None:
    """Return why an interface can be neither plugged nor unplugged while the VM runs; ``None`` if it can."""
    name = interface.name
    if network is None:
        return f"interface {name!r} has no network of the same name; add it to spec.networks"
    if network.multus is None or network.multus.default:
        return f"interface {name!r} is on the pod's primary network, which cannot change while the VM runs"
    if interface.bridge is None:
        return (
            f"interface {name!r} does not use the bridge binding; only bridge interfaces can change while the VM runs"
        )
    return None


def find_spec_obstacle(interface: Interface) -> tuple[str, str] | None:
    """Return why no guest can have an interface with these values, as reason and message; ``None`` if one can.

    The reason is one of :data:`OUTSIDE_SPEC`. :data:`START_FIELDS` are no obstacle here: an interface that the VMI has
    from its start may have them, and only a change of a running VM cannot follow them.
    """
    subject = f"interface {interface.name!r}"
    if interface.model not in MODELS:
        return "UnsupportedModel", f"{subject} has model {interface.model}; only virtio can be hot-plugged"
    why = next(_invalid_values(interface), None)
    return ("InvalidInterface", f"{subject} is invalid: {why}") if why is not None else None


def _field(name: str) -> str:
    """Return the name of a field in JSON."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _invalid_values(interface: Interface) -> Iterator[str]:
    bindings = [name for name in BINDINGS if getattr(interface, name) is not None]
    if len(bindings) > 1:
        yield f"it has {len(bindings)} bindings ({', '.join(map(_field, bindings))}); choose one"
    if interface.state not in STATES:
        yield f"state {interface.state[:40]!r} is unknown; use up, down or absent"
    if interface.mac_address:
        try:
            normalize_mac(interface.mac_address)
        except ValueError as error:
            yield str(error)
    index = interface.acpi_index
    # Zero is Go's empty value.
    if index and not (isinstance(index, int) and 0 < index <= MAX_ACPI_INDEX):
        yield f"acpiIndex {str(index)[:40]} is not a number from 1 to {MAX_ACPI_INDEX}"
    if interface.pci_address and requested_bus(interface) is None:
        address = str(interface.pci_address)[:40]
        yield f"pciAddress {address!r} is not behind a PCIe root port, where it would be 0000:<bus>:00.0"


def requested_bus(interface: Interface) -> int | None:
    """Return the PCI bus that an interface requests; ``None`` if it requests none, or an invalid one."""
    found = PCI_ADDRESS.fullmatch(str(interface.pci_address or ""))
    return int(found[1], 16) if found is not None and int(found[1], 16) else None


def find_mac_holder(nics: VmiNics, interface: Interface, accepted: Iterable[Interface] = ()) -> Interface | None:
    """Return the interface beside which another one of its VMI cannot have its MAC; ``None`` if there is none.

    Of two interfaces of the VMI the first has the MAC, or the one that is in the guest.

    :param accepted: interfaces that the VMI is to get before this one.
    """
    mac = find_mac(interface.mac_address)
    names = list(nics.interfaces)
    later = names[names.index(interface.name) + 1 :] if interface.name in nics.interfaces else ()
    for other in (*nics.interfaces.values(), *accepted) if mac is not None else ():
        entry = nics.status_entries.get(other.name, {})
        if other.name == interface.name or (other.name in later and DOMAIN not in parse_tokens(entry)):
            continue
        if find_mac(other.mac_address or entry.get("mac")) == mac:
            return other
    return None


def explain_duplicate_mac(interface: Interface, holder: Interface) -> str:
    """Return why an interface cannot have its MAC.

    :param holder: the interface that has it.
    """
    mac = find_mac(interface.mac_address)
    return f"interface {interface.name!r} has the MAC address {mac} of interface {holder.name!r}"


def find_plug_obstacle(interface: Interface, network: Network | None) -> str | None:
    """Return why an interface cannot be plugged into a running VM as specified; ``None`` if it can."""
    if not KNOWN_INTERFACE_NAME.fullmatch(interface.name):
        return f"interface name {interface.name!r} is malformed: use only letters, digits, '-' and '_'"
    if (why := find_change_obstacle(interface, network)) is not None:
        return why
    if (found := find_spec_obstacle(interface)) is not None:
        return found[1]
    field = next((field for field in START_FIELDS if getattr(interface, field)), None)
    if field is None:
        return None
    return f"interface {interface.name!r} has {_field(field)}, which applies at the VM's start only; leave it out"


def find_hash_collision(spec: VmiSpec, name: str) -> str | None:
    """Return another interface of the spec with the same ``<h>`` as ``name``; ``None`` if there is none."""
    digits = interface_hash(name)
    others = (str(item.get("name")) for item in spec.domain.devices.interfaces or ())
    return next((other for other in others if other != name and interface_hash(other) == digits), None)


def find_unplug_obstacle(nics: VmiNics, name: str) -> str | None:
    """Return why an interface of a running VMI cannot be unplugged; ``None`` if it can."""
    ordinal = f"interface {name!r} cannot be unplugged: {ORDINAL_NAMES}" if nics.ordinal else None
    return find_change_obstacle(nics.interfaces[name], nics.networks.get(name)) or ordinal
