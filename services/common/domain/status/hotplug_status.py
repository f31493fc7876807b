"""The hot-plug status of a VMI: for each interface the stage it has reached, derived from objects alone.

Objects give the exact stage but not the time it was reached; events add times, reasons and attempts
(:mod:`services.common.domain.status.stage_history`). The order of stages is that of :mod:`schemas.stages`.
"""

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.nic import Nic, VmiNics
from services.common.domain.operations import is_migrating
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, parse_tokens
from services.common.domain.template import (
    DesiredInterface,
    TemplateInterfaces,
    differs_from_template,
    find_pending_changes,
    owns,
    parse_template,
)


def derive_statuses(nics: VmiNics, vm: VirtualMachine | None = None) -> list[InterfaceHotplugStatus]:
    """Return the status of each secondary interface of the VMI in spec order, then of pending plugs of the template.

    :param vm: the VM that owns the VMI; with it, changes of its template that the VMI does not have yet are included.
    :raises ValueError: the template is malformed.
    """
    nic_statuses = [_nic_status(nics, nic) for nic in nics]
    if vm is not None and owns(vm, nics.vmi):
        nic_statuses = _compare_with_template(nic_statuses, parse_template(vm), nics)
    return nic_statuses


def _nic_status(nics: VmiNics, nic: Nic) -> InterfaceHotplugStatus:
    operation, entry, status = nic.operation, nic.entry, nic.status
    stage = _unplug_stage(nics, nic) if nic.absent else _plug_stage(nic)
    waiting_for = ROWS[stage].next.get(operation.kind)
    return InterfaceHotplugStatus(
        interface=nic.name,
        network=nic.network.multus.network_name if nic.network.multus else "",
        kind=operation.kind,
        stage=stage,
        operation=operation.id,
        waiting_for=waiting_for,
        requested_at=operation.requested_at,
        reason=_reason(nics, nic, waiting_for),
        trace_id=_trace_id(operation),
        pod_interface=nic.link,
        mac=entry.get("mac") or (status.mac if status else None),
        ips=tuple(entry.get("ipAddresses") or (status.ips if status else None) or ()),
        guest_interface=entry.get("interfaceName"),
        info_source=entry.get("infoSource"),
        link_state=entry.get("linkState"),
        failed=operation.failed,
    )


def _compare_with_template(
    nic_statuses: list[InterfaceHotplugStatus], template: TemplateInterfaces, nics: VmiNics
) -> list[InterfaceHotplugStatus]:
    pending = {desired.name: desired for desired in find_pending_changes(template, nics)}
    found = []
    for nic_status in nic_statuses:
        desired = pending.pop(nic_status.interface, None)
        if desired is not None:
            found.append(_pending_status(desired, nic_status, template, nics.vmi))
        else:
            at_restart = _at_restart(nic_status, template, nics.vmi)
            found.append(msgspec.structs.replace(nic_status, at_restart=at_restart))
    for name, desired in pending.items():
        if desired.network is not None and desired.network.multus is not None:
            network, kind = desired.network.multus.network_name, desired.kind
            planned = InterfaceHotplugStatus(name, network, kind=kind, stage=Stage.REQUESTED, operation="")
            found.append(_pending_status(desired, planned, template, nics.vmi))
    return found


def _at_restart(
    nic_status: InterfaceHotplugStatus, template: TemplateInterfaces, vmi: VirtualMachineInstance
) -> str | None:
    """Return how the next start changes an interface: it creates the VMI from the template, whatever the VMI has."""
    desired = template.interfaces.get(nic_status.interface)
    in_template = desired is not None and desired.kind is OperationKind.PLUG
    if nic_status.kind is OperationKind.UNPLUG:
        return "back" if in_template else None
    changed = "changed" if differs_from_template(template.vm, vmi, nic_status.interface) else None
    return changed if in_template else "gone"


def _pending_status(
    desired: DesiredInterface,
    present: InterfaceHotplugStatus,
    template: TemplateInterfaces,
    vmi: VirtualMachineInstance,
) -> InterfaceHotplugStatus:
    """Return the status of a change that only the template has so far.

    :param present: the status of the interface in the VMI, or an empty one when the VMI does not have it.
    """
    operation = template.operation(desired.name, desired.kind)
    return msgspec.structs.replace(
        present,
        kind=desired.kind,
        stage=Stage.REQUESTED,
        operation=operation.id if operation is not None else "",
        waiting_for=ROWS[Stage.REQUESTED].next[desired.kind],
        requested_at=operation.requested_at if operation is not None else None,
        reason="VmiDeleting" if vmi.metadata.deletion_timestamp is not None else "WaitingForController",
        trace_id=_trace_id(operation) if operation is not None else None,
        failed=None,
    )


def has_reached(nic_status: InterfaceHotplugStatus, stage: Stage) -> bool:
    """Return whether an interface has reached a stage of its operation, or a later one."""
    path = stage_path(nic_status.kind)
    return stage in path and path.index(nic_status.stage) >= path.index(stage)


def confirmed_by_agent(nic_status: InterfaceHotplugStatus) -> bool:
    """Return whether the guest agent has listed the NIC."""
    return GUEST_AGENT in parse_tokens({"infoSource": nic_status.info_source})


def _trace_id(operation: Operation) -> str | None:
    parts = (operation.traceparent or "").split("-")
    return parts[1] if len(parts) > 1 else None


def _plug_stage(nic: Nic) -> Stage:
    # From the last stage: an attachment that lost its annotation is still attached.
    reached = (
        (Stage.GUEST_ATTACHED, DOMAIN in nic.tokens),
        (Stage.MULTUS_ATTACHED, nic.status is not None),
        (Stage.POD_ANNOTATED, nic.element is not None),
    )
    return next((stage for stage, holds in reached if holds), Stage.REQUESTED)


def _unplug_stage(nics: VmiNics, nic: Nic) -> Stage:
    # An unplug that was not released in the acting pod may still have its device in the guest.
    released = Stage.GUEST_DETACHED if nic.in_pod else Stage.MULTUS_DETACHED
    return released if nics.released(nic) else Stage.REQUESTED


def _reason(nics: VmiNics, nic: Nic, waiting_for: Stage | None) -> str | None:
    vmi = nics.vmi
    if nic.operation.failed is not None or waiting_for is None:
        # A permanent failure hides all other reasons.
        return nic.operation.failed
    # A state of the whole VMI hides the reason of one interface.
    reasons = {
        "VmiDeleting": vmi.metadata.deletion_timestamp is not None,
        "VmiNotRunning": vmi.status.phase != "Running",
        "Migrating": is_migrating(vmi),
        "NoActingPod": nics.pod is None,
        "OrdinalInterfaceNames": nic.absent and nics.ordinal,
    }
    generic = f"WaitingFor{''.join(word.capitalize() for word in waiting_for.split('-'))}"
    return next((reason for reason, holds in reasons.items() if holds), generic)
