"""Plan the report to the VMI: its NICs, free slots and ended operations, as one guarded patch. Pure.

``status.interfaces`` follows the domain's devices and the guest agent's NICs. A device and a NIC of the agent belong
together when they have the same MAC, as in KubeVirt (virt-handler's netstat). The handler's tokens in ``infoSource``
are ``domain`` and ``guest-agent``; what others wrote in an entry is not changed. The same patch writes ``released`` to
the operation of a completed unplug and ``failed`` to the operation of a plug that cannot succeed.
Next: :mod:`services.handler.report`, which writes the patch and publishes the events.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from schemas.bus.events import ConfirmedBy
from schemas.kubernetes.objects import Interface, VirtualMachineInstance
from schemas.kubernetes.operations import (
    NIC_SLOTS,
    NicSlots,
    Operation,
    encode_annotation,
    held_by,
    operation_key,
    read_nic_slots,
)
from schemas.names import device_alias
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.spec_patch import PatchOp, annotation_path, build_annotation_ops
from services.common.domain.status_interfaces import (
    DOMAIN,
    GUEST_AGENT,
    Entry,
    entries_by_name,
    find_entry,
    parse_tokens,
    with_token,
    without_token,
)
from services.common.guest.agent import GuestNic
from services.common.guest.port import GuestView, NetDevice
from services.handler.plan.actions import Observed, Outcome, ReportStatus
from services.handler.plan.nics import absent_nics, attached_nics
from services.handler.plan.plugs import queues_of

STATUS_PATH = "/status/interfaces"
"""Patched with the object itself: KubeVirt's CRD of VMIs has no status subresource."""

_NAME_FIELDS = ("interfaceName",)
_AGENT_FIELDS = (*_NAME_FIELDS, "ipAddress", "ipAddresses")
"""The fields of an entry that come from the guest agent; behind NAT it is only the name."""


def plan_report(observed: Observed, outcome: Outcome) -> ReportStatus | None:
    """Return what to report; ``None`` when the VMI is up to date."""
    vmi, pod, guest = observed.vmi, observed.pod, observed.guest
    nics = {nic.name: nic for nic in attached_nics(observed.nics)}
    before = vmi.status.interfaces
    after = status_entries(
        before,
        list(observed.nics.interfaces.values()),
        {name: nic.link for name, nic in nics.items()},
        guest,
        observed.agent,
        queues=queues_of(observed),
        primary=_primary(observed.nics),
        pod_ips=[ip for one in pod.status.pod_ips if (ip := one.get("ip"))],
    )
    ops: list[PatchOp] = []
    if after != (before or []):
        ops += [
            {"op": "test", "path": STATUS_PATH, "value": before},
            {"op": "add", "path": STATUS_PATH, "value": after},
        ]
    slots = NicSlots(free=len(guest.free_slots), nics=len(guest.devices), pod_uid=pod.metadata.uid)
    released = [
        _with_outcome(nic, released=pod.metadata.uid)
        for nic in absent_nics(observed.nics)
        if nic.name in outcome.released and not observed.nics.released(nic)
    ]
    failed = [_with_outcome(nics[name], failed=reason) for name, reason in outcome.failed.items() if name in nics]
    ops += _annotations(vmi, slots, [nic.operation for nic in (*released, *failed)])
    confirmed = [(nics[name], by) for name, by in _confirmed(before, after, observed) if name in nics]
    if ops:
        # Another VMI may have the name by now.
        ops.insert(0, {"op": "test", "path": "/metadata/uid", "value": vmi.metadata.uid})
    return ReportStatus(ops, confirmed, released, outcome) if ops or confirmed else None


def _primary(nics: VmiNics) -> str | None:
    """Return the interface on the pod network, which is listed first; ``None`` when there is none."""
    return next(
        (name for name in nics.interfaces if name in nics.networks and nics.networks[name].pod is not None), None
    )


def _confirmed(before: list[Entry] | None, after: list[Entry], observed: Observed) -> Iterator[tuple[str, ConfirmedBy]]:
    """Yield the interfaces that are confirmed now, each only with the strongest confirmation."""
    by_agent, by_device = gained_token(before, after, GUEST_AGENT), gained_token(before, after, DOMAIN)
    for entry in after:
        name = entry.get("name", "")
        device = observed.guest.devices.get(device_alias(name)) if name else None
        # ADR 15: the VMI's status has no token for a driver. The process that attached the device reports it, once.
        driver_active = name in observed.unconfirmed and device is not None and device.driver_active
        if name in by_agent:
            yield name, ConfirmedBy.GUEST_AGENT
        elif driver_active and GUEST_AGENT not in parse_tokens(entry):
            yield name, ConfirmedBy.DRIVER
        elif name in by_device:
            yield name, ConfirmedBy.DEVICE


def _with_outcome(nic: Nic, *, released: str | None = None, failed: str | None = None) -> Nic:
    """Return the NIC with its operation as it will be written: the annotation's, or else the derived one."""
    operation = nic.operation
    operation = msgspec.structs.replace(
        operation, released=released or operation.released, failed=failed or operation.failed
    )
    return msgspec.structs.replace(nic, operation=operation)


def _annotations(vmi: VirtualMachineInstance, slots: NicSlots, operations: list[Operation]) -> list[PatchOp]:
    """Return the patch of the annotations. It applies only while the operations are the ones that were observed."""
    annotations, version = vmi.metadata.annotations, vmi.metadata.resource_version
    changes: dict[str, str | None] = {}
    guards: list[PatchOp] = []
    if slots != read_nic_slots(annotations):
        changes[NIC_SLOTS] = encode_annotation(slots)
    for operation in operations:
        key = operation_key(operation.interface)
        changes[key] = encode_annotation(held_by(operation, vmi.metadata.uid))
        # A missing annotation cannot be tested for, so then the whole object has to be unchanged.
        guards.append(
            {"op": "test", "path": annotation_path(key), "value": annotations[key]}
            if key in annotations
            else {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        )
    return guards + build_annotation_ops(annotations, version, changes) if changes else []


def status_entries(
    before: list[Entry] | None,
    interfaces: Sequence[Interface],
    pod_interfaces: Mapping[str, str],
    guest: GuestView,
    agent: Sequence[GuestNic] | None,
    *,
    queues: int = 1,
    primary: str | None = None,
    pod_ips: Sequence[str] = (),
) -> list[Entry]:
    """Return the desired list of entries.

    An entry whose interface is not in the domain as a network device, such as one of SR-IOV, is left to its writer.

    :param before: the present list.
    :param interfaces: the interfaces, in the spec's order.
    :param pod_interfaces: the names of secondary pod interfaces, by interface.
    :param guest: the observed state of the domain.
    :param agent: the agent's NICs; with ``None`` (no response yet) the fields from earlier responses are not changed.
    :param queues: the number of queues of each device.
    :param primary: the interface that is listed first.
    :param pod_ips: the addresses of the pod.
    """
    after = list(before or ())
    for interface in interfaces:
        name, device = interface.name, guest.devices.get(device_alias(interface.name))
        if device is None:
            # The driver lists network devices only, and a host device is none (kubevirt#7050).
            if interface.bridge is not None or interface.masquerade is not None:
                after = _without_device(after, name)
            continue
        after = _with_device(after, name, device, pod_interfaces, queues)
        if interface.masquerade is not None and pod_ips:
            # The guest's own address is of no use outside of the pod (kubevirt#18760).
            after = with_token(after, name, DOMAIN, ipAddress=pod_ips[0], ipAddresses=list(pod_ips))
        # An agent that does not answer removes nothing, so the addresses do not flap (kubevirt#12698).
        if agent is not None:
            fields = _NAME_FIELDS if interface.masquerade is not None else _AGENT_FIELDS
            after = _with_agent(after, name, device, agent, fields)
    if primary is not None:
        # KubeVirt's rule. The sort is stable, so all other entries retain their order.
        after.sort(key=lambda entry: entry.get("name") != primary)
    return after


def gained_token(before: list[Entry] | None, after: list[Entry] | None, token: str) -> list[str]:
    """Return the interfaces that have a token in ``after`` and not in ``before``."""
    earlier = entries_by_name(before)
    return [
        name
        for entry in after or ()
        if isinstance(name := entry.get("name"), str)
        and name
        and token in parse_tokens(entry)
        and token not in parse_tokens(earlier.get(name, {}))
    ]


def _with_device(
    entries: list[Entry], name: str, device: NetDevice, pod_interfaces: Mapping[str, str], queues: int
) -> list[Entry]:
    fields: dict[str, Any] = {"mac": device.mac, "queueCount": queues}
    if device.up is not None:
        fields["linkState"] = "up" if device.up else "down"
    if name in pod_interfaces:
        fields["podInterfaceName"] = pod_interfaces[name]
    return with_token(entries, name, DOMAIN, **fields)


def _without_device(entries: list[Entry], name: str) -> list[Entry]:
    entries = without_token(without_token(entries, name, DOMAIN), name, GUEST_AGENT)
    return _drop_agent_fields(entries, name, _AGENT_FIELDS)


def _with_agent(
    entries: list[Entry], name: str, device: NetDevice, agent: Sequence[GuestNic], fields: tuple[str, ...]
) -> list[Entry]:
    """Set the fields that come from the agent.

    :param fields: those of the interface.
    """
    nic = _find_guest_nic(agent, device.mac)
    if nic is None:
        return _drop_agent_fields(without_token(entries, name, GUEST_AGENT), name, fields)
    found: dict[str, Any] = {"interfaceName": nic.name}
    if nic.ips:
        found |= {"ipAddress": nic.ips[0], "ipAddresses": list(nic.ips)}
    missing = [field for field in fields if field not in found]
    written = {field: found[field] for field in fields if field in found}
    return with_token(_drop(entries, name, missing), name, GUEST_AGENT, **written)


def _find_guest_nic(agent: Iterable[GuestNic], mac: str) -> GuestNic | None:
    """Return the guest NIC with a MAC; ``None`` if the agent lists none.

    The addresses of its labels (``eth0:1``), which the agent lists as links of their own, are among its addresses.
    A bridge, bond or VLAN in the guest has the MAC of the NIC below it. The one with addresses is returned, at best
    with one that is not link-local; otherwise the first, which is the NIC itself.
    """
    names: dict[str, list[GuestNic]] = {}
    for nic in agent:
        if nic.mac == mac:
            names.setdefault(nic.name.partition(":")[0], []).append(nic)
    found = []
    for name, listed in names.items():
        # The addresses without a label first, whatever the agent's order is.
        ordered = sorted(listed, key=lambda nic: nic.name != name)
        found.append(GuestNic(name, mac, tuple(dict.fromkeys(ip for nic in ordered for ip in nic.ips))))
    return min(found, key=lambda nic: (not _has_routable(nic), not nic.ips), default=None)


def _has_routable(nic: GuestNic) -> bool:
    return any(not ip.lower().startswith(("fe80:", "169.254.")) for ip in nic.ips)


def _drop_agent_fields(entries: list[Entry], name: str, fields: Sequence[str]) -> list[Entry]:
    """Remove the fields that come from the agent, unless the entry still has the agent's token."""
    entry = find_entry(entries, name)
    if entry is None or GUEST_AGENT in parse_tokens(entry):
        return entries
    return _drop(entries, name, fields)


def _drop(entries: list[Entry], name: str, fields: Sequence[str]) -> list[Entry]:
    return [
        {key: value for key, value in entry.items() if key not in fields} if entry.get("name") == name else entry
        for entry in entries
    ]
