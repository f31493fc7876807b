"""The ladder: for each NIC of a VMI the stage it has reached, folded from objects alone.

From objects the stage is exact and the time it was reached is unknown; events add times, reasons and attempts
(:mod:`services.common.domain.stage_history`).
The order of the stages is read off :mod:`schemas.stages`.
"""

import msgspec

from schemas.hotplug_status import InterfaceHotplugStatus
from schemas.kube import Interface, Network, Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import is_ordinal
from schemas.networks import (
    NETWORK_STATUS,
    NETWORKS,
    NetworkSelectionElement,
    NetworkStatus,
    parse_network_status,
    parse_networks,
)
from schemas.operations import Operation
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.attachments import pod_interface_names, secondary
from services.common.domain.operations import ABSENT, migrating, operation_for
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, Entry, entry_of, tokens
from services.common.domain.template import asks_otherwise, desired_interfaces, owns, wished_operation


class _Pod(msgspec.Struct, frozen=True):
    """What the acting pod says, read once."""

    pod: Pod | None
    elements: list[NetworkSelectionElement]
    statuses: list[NetworkStatus]

    def listed(self, link: str) -> bool:
        return any(element.requested_interface == link for element in self.elements)

    def status(self, link: str) -> NetworkStatus | None:
        return next((status for status in self.statuses if status.interface == link), None)


def fold(
    vmi: VirtualMachineInstance, pod: Pod | None, vm: VirtualMachine | None = None
) -> list[InterfaceHotplugStatus]:
    """One rung for each secondary interface of the VMI's spec, in the spec's order; then those still to come.

    :param pod: the VMI's acting pod; ``None`` when there is none (yet).
    :param vm: the VM it was made from; with it, wishes of the template that the VMI does not have yet are rungs, too.
    :raises ValueError: the spec or an annotation is malformed.
    """
    annotations = pod.metadata.annotations if pod else {}
    seen = _Pod(pod, parse_networks(annotations.get(NETWORKS)), parse_network_status(annotations.get(NETWORK_STATUS)))
    names = pod_interface_names(vmi.spec, seen.elements, seen.statuses)
    nic_statuses = [
        _rung(vmi, seen, operation_for(vmi, interface), interface, network, names[interface.name])
        for interface, network in secondary(vmi.spec)
    ]
    return nic_statuses if vm is None or not owns(vm, vmi) else _with_template(nic_statuses, vm, vmi)


def _rung(
    vmi: VirtualMachineInstance, seen: _Pod, operation: Operation, interface: Interface, network: Network, link: str
) -> InterfaceHotplugStatus:
    entry: Entry = entry_of(vmi.status.interfaces, interface.name) or {}
    status = seen.status(link)
    if operation.kind is OperationKind.PLUG:
        stage = _plug_stage(seen.listed(link), status, tokens(entry))
    else:
        released = seen.pod is not None and operation.released == seen.pod.metadata.uid
        stage = _unplug_stage(seen.listed(link) or status is not None, released)
    waiting_for = ROWS[stage].next.get(operation.kind)
    return InterfaceHotplugStatus(
        interface=interface.name,
        network=network.multus.network_name if network.multus else "",
        kind=operation.kind,
        stage=stage,
        operation=operation.id,
        waiting_for=waiting_for,
        requested_at=operation.requested_at,
        reason=_reason(vmi, seen.pod, operation, link, waiting_for),
        trace_id=_trace_id(operation),
        pod_interface=link,
        mac=entry.get("mac") or (status.mac if status else None),
        ips=tuple(entry.get("ipAddresses") or (status.ips if status else None) or ()),
        guest_interface=entry.get("interfaceName"),
        info_source=entry.get("infoSource"),
        link=entry.get("linkState"),
        failed=operation.failed,
    )


def _with_template(
    nic_statuses: list[InterfaceHotplugStatus], vm: VirtualMachine, vmi: VirtualMachineInstance
) -> list[InterfaceHotplugStatus]:
    pending = {wish.name: wish for wish in desired_interfaces(vm, vmi)}
    kept = {
        str(item.get("name"))
        for item in vm.spec.template.spec.domain.devices.interfaces or ()
        if item.get("state") != ABSENT
    }
    found = []
    for nic_status in nic_statuses:
        wish = pending.pop(nic_status.interface, None)
        if wish is not None:
            found.append(_pending(nic_status.interface, nic_status.network, OperationKind.UNPLUG, vm, vmi, nic_status))
            continue
        at_restart = "back" if nic_status.interface in kept else None
        if nic_status.kind is OperationKind.PLUG:
            at_restart = "gone" if at_restart is None else None
            if at_restart is None and asks_otherwise(vm, vmi, nic_status.interface):
                at_restart = "changed"
        found.append(msgspec.structs.replace(nic_status, at_restart=at_restart))
    for name, wish in pending.items():
        if wish.network is not None and wish.network.multus is not None:
            found.append(_pending(name, wish.network.multus.network_name, OperationKind.PLUG, vm, vmi, None))
    return found


def _pending(
    name: str,
    network: str,
    kind: OperationKind,
    vm: VirtualMachine,
    vmi: VirtualMachineInstance,
    shown: InterfaceHotplugStatus | None,
) -> InterfaceHotplugStatus:
    """A wish that stands in the template only, told of what is there already."""
    operation = wished_operation(vm, name, kind)
    base = shown or InterfaceHotplugStatus(
        interface=name, network=network, kind=kind, stage=Stage.REQUESTED, operation=""
    )
    return msgspec.structs.replace(
        base,
        kind=kind,
        stage=Stage.REQUESTED,
        operation=operation.id if operation is not None else "",
        waiting_for=ROWS[Stage.REQUESTED].next[kind],
        requested_at=operation.requested_at if operation is not None else None,
        reason="VmiDeleting" if vmi.metadata.deletion_timestamp is not None else "WaitingForController",
        trace_id=_trace_id(operation) if operation is not None else None,
        failed=None,
    )


def reached(nic_status: InterfaceHotplugStatus, stage: Stage) -> bool:
    """Whether a rung stands at a stage of its kind's path or beyond it."""
    steps = stage_path(nic_status.kind)
    return stage in steps and steps.index(nic_status.stage) >= steps.index(stage)


def confirmed_by_agent(nic_status: InterfaceHotplugStatus) -> bool:
    """Whether the guest's own agent has listed the NIC."""
    return GUEST_AGENT in tokens({"infoSource": nic_status.info_source})


def _trace_id(operation: Operation) -> str | None:
    parts = (operation.traceparent or "").split("-")
    return parts[1] if len(parts) > 1 else None


def _plug_stage(listed: bool, status: NetworkStatus | None, found: frozenset[str]) -> Stage:
    if DOMAIN in found:
        return Stage.GUEST_ATTACHED
    if status is not None:
        return Stage.MULTUS_ATTACHED
    return Stage.POD_ANNOTATED if listed else Stage.REQUESTED


def _unplug_stage(in_pod: bool, released: bool) -> Stage:
    if not released:
        return Stage.REQUESTED
    return Stage.GUEST_DETACHED if in_pod else Stage.MULTUS_DETACHED


def _reason(
    vmi: VirtualMachineInstance, pod: Pod | None, operation: Operation, link: str, waiting_for: Stage | None
) -> str | None:
    if operation.failed is not None:
        return operation.failed
    if waiting_for is None:
        return None
    if vmi.metadata.deletion_timestamp is not None:
        return "VmiDeleting"
    if vmi.status.phase != "Running":
        return "VmiNotRunning"
    if migrating(vmi):
        return "Migrating"
    if pod is None:
        return "NoActingPod"
    if operation.kind is OperationKind.UNPLUG and is_ordinal(link):
        return "OrdinalInterfaceNames"
    return f"WaitingFor{''.join(word.capitalize() for word in waiting_for.split('-'))}"
