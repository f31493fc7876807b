"""The VMI's `status.interfaces`: virt-controller's part, from the pod's network status, and virt-handler's, from the
domain and the guest agent.

All functions are pure. Next: `conditions.py`, the conditions of VM and VMI.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.kubevirt.annotations import read_network_status
from lab.kubevirt.specs import ABSENT, is_secondary, lists_of
from lab.kubevirt.versions import Behaviour
from schemas.names import pod_interface

Object = dict[str, Any]

DOMAIN, GUEST_AGENT, MULTUS_STATUS = "domain", "guest-agent", "multus-status"
_ORDER = (DOMAIN, GUEST_AGENT, MULTUS_STATUS)


@dataclass(frozen=True, slots=True)
class DomainDevice:
    """A NIC of the domain.

    :ivar name: name of the interface.
    :ivar mac: MAC in the guest.
    :ivar link_state: `up` or `down`.
    :ivar interface_name: name of the link in the guest; empty until the guest agent reports it.
    :ivar address: IP address; of the primary NIC only.
    :ivar queues: number of queues; none of an SR-IOV device.
    """

    name: str
    mac: str
    link_state: str = "up"
    interface_name: str = ""
    address: str = ""
    queues: int = 1


def tokens_of(entry: Object) -> set[str]:
    """Return the tokens of an entry's `infoSource`."""
    return {token for token in str(entry.get("infoSource") or "").split(", ") if token}


def guest_mac(interface: Object) -> str:
    """Return the MAC of a played guest NIC: that of the spec, else one derived from the name."""
    digits = hashlib.sha256(f"guest{interface['name']}".encode()).hexdigest()
    derived = ":".join(["02", *(digits[index : index + 2] for index in range(0, 10, 2))])
    return str(interface.get("macAddress") or derived)


def with_multus_status(vmi: Object, pod: Object, behaviour: Behaviour) -> list[Object]:
    """Return the entries with the token `multus-status` where the pod's network status lists the attachment.

    An entry that loses its last token stays, without `infoSource`, until virt-handler writes the list again.
    """
    status = {item.get("interface"): item for item in read_network_status(pod)}
    lists, entries = lists_of(vmi["spec"]), [dict(e) for e in vmi.get("status", {}).get("interfaces") or []]
    by_name = {entry.get("name"): entry for entry in entries}
    for interface in lists.interfaces:
        name, link = interface["name"], pod_interface(interface["name"])
        if not is_secondary(lists.network(name)):
            primary = next((item["interface"] for item in status.values() if item.get("default")), "eth0")
            if name in by_name:
                by_name[name]["podInterfaceName"] = primary
        elif link in status:
            entry = by_name.get(name)
            if entry is None:
                entry = {"name": name}
                entries.append(entry)
            entry["podInterfaceName"] = link
            _set_tokens(entry, tokens_of(entry) | {MULTUS_STATUS})
        elif name in by_name:
            _set_tokens(by_name[name], tokens_of(by_name[name]) - {MULTUS_STATUS})
    return [_kept(entry, behaviour) for entry in entries]


def with_domain(vmi: Object, devices: Mapping[str, DomainDevice], behaviour: Behaviour) -> list[Object]:
    """Return the entries as virt-handler writes them: one for each device, then those known from Multus only.

    An entry without a device and without `multus-status` ends here.
    """
    before = {str(entry.get("name")): entry for entry in vmi.get("status", {}).get("interfaces") or []}
    lists = lists_of(vmi["spec"])
    order = [interface["name"] for interface in lists.interfaces]
    ordered = sorted(devices, key=lambda name: order.index(name) if name in order else len(order))
    result = [_device_entry(devices[name], before.get(name, {})) for name in ordered]
    for name, entry in before.items():
        if name not in devices and MULTUS_STATUS in tokens_of(entry) and name in order:
            kept = {key: entry[key] for key in ("name", "mac", "podInterfaceName") if key in entry}
            result.append({**kept, "infoSource": MULTUS_STATUS})
    return [_kept(entry, behaviour) for entry in result]


def _device_entry(device: DomainDevice, before: Object) -> Object:
    entry: Object = {
        "name": device.name,
        "mac": device.mac,
        "queueCount": device.queues,
        "linkState": device.link_state,
    }
    tokens = {DOMAIN} | (tokens_of(before) & {MULTUS_STATUS})
    if device.interface_name:
        entry["interfaceName"] = device.interface_name
        tokens.add(GUEST_AGENT)
    if device.address:
        entry |= {"ipAddress": device.address, "ipAddresses": [device.address]}
    if "podInterfaceName" in before:
        entry["podInterfaceName"] = before["podInterfaceName"]
    _set_tokens(entry, tokens)
    return entry


def to_attach(vmi: Object, devices: Iterable[str]) -> list[Object]:
    """Return the interfaces that virt-handler attaches now: Multus has reported them, and the domain lacks them.

    Multus reports one of SR-IOV only in the target pod of a migration, whose domain gets its device then.
    """
    entries = {entry.get("name"): tokens_of(entry) for entry in vmi.get("status", {}).get("interfaces") or []}
    present = set(devices)
    return [
        interface
        for interface in lists_of(vmi["spec"]).interfaces
        if interface.get("state") != ABSENT
        and interface["name"] not in present
        and MULTUS_STATUS in entries.get(interface["name"], ())
    ]


def to_detach(vmi: Object, devices: Iterable[str]) -> list[str]:
    """Return the interfaces that are absent while the domain has them."""
    absent = {i["name"] for i in lists_of(vmi["spec"]).interfaces if i.get("state") == ABSENT}
    return [name for name in devices if name in absent]


def desired_link_state(interface: Object, behaviour: Behaviour) -> str:
    """Return the link state that the spec requests."""
    return "down" if behaviour.link_state and interface.get("state") == "down" else "up"


def _set_tokens(entry: Object, tokens: set[str]) -> None:
    if tokens:
        entry["infoSource"] = ", ".join(token for token in _ORDER if token in tokens)
    else:
        entry.pop("infoSource", None)


def _kept(entry: Object, behaviour: Behaviour) -> Object:
    """Return an entry without the fields that the CRD of this version prunes."""
    pruned = {"podInterfaceName", "linkState"} - behaviour.entry_fields
    return {key: value for key, value in entry.items() if key not in pruned}
