"""MAC addresses as people and programs write them, and the VMs that share one on a network. Pure.

Next: :mod:`services.common.domain.eligibility`, which refuses interfaces whose MAC no NIC can have, or another
interface of the same VM has.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from schemas.kubernetes.limits import MAX_INTERFACES, MAX_NETWORK_NAME
from schemas.kubernetes.networks import MAX_QUOTE, canonical_mac
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from services.common.domain.nic import qualified_nad
from services.common.domain.operations import ABSENT

SHARED_MAC = "SharedMacAddress"
"""Reason of the Event about a MAC that another VM has on the same network."""

_FORMS = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}|[0-9a-f]{2}(?:-[0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}")
"""The forms that Go's ``net.ParseMAC`` reads, as far as they have the 6 bytes of an Ethernet address."""
_USUAL = re.compile(r"(?!00:00:00:00:00:00)[0-9a-f][02468ace](?::[0-9a-f]{2}){5}")
"""What :func:`normalize_mac` returns: an index of all MACs of a cluster passes it very often."""


def normalize_mac(text: str) -> str:
    """Return the MAC of a NIC as the kernel writes it: lower case, bytes separated by colons.

    >>> normalize_mac("0200.0000.00AB")
    '02:00:00:00:00:ab'

    :raises ValueError: no NIC can have this MAC; the message says why.
    """
    if _USUAL.fullmatch(text):
        return text
    shown = f"MAC address {text[:40]!r}"
    if not _FORMS.fullmatch(text.lower()):
        raise ValueError(f"{shown} is not one of six bytes, such as 02:00:00:00:00:01")
    mac = canonical_mac(text)
    octets = bytes.fromhex(mac.replace(":", ""))
    if octets == b"\xff" * 6:
        raise ValueError(f"{shown} is the broadcast address")
    if octets[0] & 1:
        raise ValueError(f"{shown} is a multicast address: its first byte is odd")
    if not any(octets):
        raise ValueError(f"{shown} is zero")
    return mac


def find_mac(value: object) -> str | None:
    """Return the MAC of a NIC as :func:`normalize_mac` does; ``None`` if there is none, or an impossible one."""
    try:
        return normalize_mac(value) if isinstance(value, str) else None
    except ValueError:
        return None


class MacUse(msgspec.Struct, frozen=True):
    """A MAC that an interface of a VM has on a network.

    :ivar mac: as :func:`normalize_mac` returns it.
    :ivar nad: the NAD of the network as ``namespace/name``.
    """

    interface: str
    mac: str
    nad: str


class SharedMac(msgspec.Struct, frozen=True):
    """A MAC that other VMs of the namespace have on the same network.

    :ivar use: the VM's own use.
    :ivar others: the names of the other VMs, sorted; not all of them if there are many.
    :ivar interface: the interface of the first of them.
    """

    use: MacUse
    others: tuple[str, ...]
    interface: str


def find_mac_uses(found: VirtualMachine | VirtualMachineInstance) -> Iterator[MacUse]:
    """Yield the MACs of the secondary interfaces of a VM's template or of a VMI; never raise.

    The primary network is left out: a masquerade interface is alone on its network, and the same MAC is then no fault.
    A VMI's interface without a MAC in the spec has the one of its status. What is being deleted or unplugged is not
    counted, and neither is an object with so many interfaces that it is refused everywhere: an index calls this for
    every change of every VM.
    """
    spec, entries = (
        (found.spec.template.spec, None) if isinstance(found, VirtualMachine) else (found.spec, found.status.interfaces)
    )
    interfaces = spec.domain.devices.interfaces or ()
    if max(len(interfaces), len(spec.networks or ())) > MAX_INTERFACES:
        return
    nads = dict(_find_nads(spec.networks or (), found.metadata.namespace))
    macs = {str(entry.get("name")): entry.get("mac") for entry in entries or ()}
    for item in interfaces if found.metadata.deletion_timestamp is None else ():
        name = str(item.get("name"))
        mac = find_mac(item.get("macAddress") or macs.get(name))
        if mac is not None and name in nads and item.get("state") != ABSENT:
            yield MacUse(name, mac, nads[name])


def _find_nads(networks: Iterable[dict[str, object]], namespace: str) -> Iterator[tuple[str, str]]:
    for item in networks:
        multus = item.get("multus")
        reference = multus.get("networkName") if isinstance(multus, dict) else None
        # A longer one is refused everywhere, and would be in the index once for each interface.
        if isinstance(reference, str) and 0 < len(reference) <= MAX_NETWORK_NAME:
            yield str(item.get("name")), qualified_nad(reference, namespace)


def mac_index(found: VirtualMachine | VirtualMachineInstance) -> list[str]:
    """Return the values under which an index finds the VMs of a namespace that have a MAC on a network."""
    return [_index_value(found.metadata.namespace, use) for use in find_mac_uses(found)]


def _index_value(namespace: str, use: MacUse) -> str:
    return f"{namespace} {use.mac} {use.nad}"


def find_shared_macs(
    own: Iterable[VirtualMachine | VirtualMachineInstance],
    indexed: Callable[[str], Iterable[VirtualMachine | VirtualMachineInstance]],
) -> Iterator[SharedMac]:
    """Yield the MACs that a VM shares with another one of its namespace on the same network, each one once.

    Only the same NAD is known to be the same network.

    :param own: the VM and its VMI.
    :param indexed: returns the objects with this value of :func:`mac_index`; the VM's own ones do not count.
    """
    seen: set[str] = set()
    for found in own:
        for use in find_mac_uses(found):
            value = _index_value(found.metadata.namespace, use)
            if value in seen:
                continue
            seen.add(value)
            others = {one.metadata.name: one for one in indexed(value) if one.metadata.name != found.metadata.name}
            if others:
                names = tuple(sorted(others))
                first = next(
                    one.interface for one in find_mac_uses(others[names[0]]) if (one.mac, one.nad) == (use.mac, use.nad)
                )
                yield SharedMac(use, names, first)


def explain_shared_mac(shared: SharedMac) -> str:
    """Return what is wrong with a shared MAC, for the user."""
    use = shared.use
    more = " and of others" if len(shared.others) > 1 else ""
    return (
        f"interface {use.interface[:MAX_QUOTE]!r} has the MAC address {use.mac} of interface "
        f"{shared.interface[:MAX_QUOTE]!r} of VM {shared.others[0]}{more} on the same network {use.nad[:MAX_QUOTE]!r}, "
        "where a frame then reaches only one of them; give each its own address"
    )
