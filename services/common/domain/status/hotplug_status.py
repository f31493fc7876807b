"""The hot-plug status of a VMI: for each interface the stage it has reached, derived from objects alone.

Objects give the exact stage but not the time it was reached; events add times, reasons and attempts
(:mod:`services.common.domain.status.stage_history`). The order of stages is that of :mod:`schemas.stages`. Where
KubeVirt owns the VM, stages and reasons are those of :mod:`services.common.domain.kubevirt`.
"""

import msgspec

from schemas.bus.hotplug_status import InterfaceHotplugStatus
from schemas.kubernetes.objects import VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation
from schemas.stages import ROWS, OperationKind, Stage, stage_path
from services.common.domain.kubevirt.capabilities import Capabilities
from services.common.domain.kubevirt.explain import Situation, explain_nic, explain_pending, explain_stray
from services.common.domain.kubevirt.reasons import Explanation
from services.common.domain.kubevirt.request_queue import read_queue
from services.common.domain.kubevirt.stages import observe_stage
from services.common.domain.kubevirt.strays import find_stray_elements
from services.common.domain.kubevirt.surroundings.observed import NOTHING_READ, Surroundings
from services.common.domain.kubevirt.surroundings.refine import refine
from services.common.domain.nic import Nic, VmiNics, qualified_nad
from services.common.domain.operations import ABSENT, is_migrating
from services.common.domain.status_interfaces import DOMAIN, GUEST_AGENT, parse_tokens
from services.common.domain.template import (
    TemplateInterfaces,
    find_changed_fields,
    find_entry_of_change,
    find_pending_changes,
    owns,
    parse_template,
)


class PendingChange(msgspec.Struct, frozen=True):
    """A change that the VM's template has, or its queue of requests, and the VMI does not.

    :ivar network: the NAD; ``None`` when the interface has none.
    """

    name: str
    kind: OperationKind
    network: str | None


def derive_statuses(
    nics: VmiNics,
    vm: VirtualMachine | None = None,
    beside: Capabilities | None = None,
    now: str | None = None,
    around: Surroundings = NOTHING_READ,
) -> list[InterfaceHotplugStatus]:
    """Return the status of each secondary interface of the VMI in spec order, then of pending plugs of the template.

    Beside KubeVirt, stray elements of the pod follow, named by their pod interface.

    :param vm: the VM that owns the VMI; with it, changes of its template that the VMI does not have yet are included.
    :param beside: what the KubeVirt that owns the VMs can do; ``None`` if hotnic owns them.
    :param now: RFC 3339, for the seconds in a message.
    :param around: what stands around the VM beside KubeVirt; empty where it was not read.
    :raises ValueError: the template is malformed.
    """
    template = parse_template(vm) if vm is not None and owns(vm, nics.vmi) else None
    situation = Situation(nics, template, beside, now, around) if beside is not None else None
    nic_statuses = [_nic_status(nics, nic, situation) for nic in nics]
    if template is not None:
        nic_statuses = _compare_with_template(nic_statuses, template, nics, situation)
    return nic_statuses + (_stray_statuses(situation) if situation is not None else [])


def _nic_status(nics: VmiNics, nic: Nic, situation: Situation | None) -> InterfaceHotplugStatus:
    operation, entry, status = nic.operation, nic.entry, nic.status
    stage = _stage(nics, nic, observed=situation is not None or operation.vm is not None)
    waiting_for = ROWS[stage].next.get(operation.kind)
    found = InterfaceHotplugStatus(
        interface=nic.name,
        network=nic.network.multus.network_name if nic.network.multus else "",
        kind=operation.kind,
        stage=stage,
        # The generation changes at every write of the VMI, its status included: an id that is derived from it does not
        # last. Where hotnic owns the VMs, it stands for a plug that goes on until the annotation is written.
        operation=operation.id if nic.has_operation or (situation is None and waiting_for is not None) else "",
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
    return found if situation is None else _with_explanation(situation, found, explain_nic(situation, nic, stage))


def _with_explanation(
    situation: Situation, nic_status: InterfaceHotplugStatus, found: Explanation | None
) -> InterfaceHotplugStatus:
    if found is not None:
        found = refine(situation, nic_status, found)
    return msgspec.structs.replace(
        nic_status,
        reason=found.reason if found is not None else None,
        message=found.message if found is not None else None,
        remedy=found.remedy if found is not None else None,
        docs=found.docs if found is not None else None,
    )


def _compare_with_template(
    nic_statuses: list[InterfaceHotplugStatus],
    template: TemplateInterfaces,
    nics: VmiNics,
    situation: Situation | None,
) -> list[InterfaceHotplugStatus]:
    pending = {change.name: change for change in _pending_changes(template, nics, situation)}
    found = []
    for nic_status in nic_statuses:
        change = pending.pop(nic_status.interface, None)
        if change is not None:
            found.append(_pending_status(change, nic_status, template, nics, situation))
        else:
            at_restart = _at_restart(nic_status, template, nics.vmi, situation)
            found.append(msgspec.structs.replace(nic_status, at_restart=at_restart))
    for name, change in pending.items():
        if change.network is not None:
            planned = InterfaceHotplugStatus(
                name, change.network, kind=change.kind, stage=Stage.REQUESTED, operation=""
            )
            found.append(_pending_status(change, planned, template, nics, situation))
    return found


def _pending_changes(template: TemplateInterfaces, nics: VmiNics, situation: Situation | None) -> list[PendingChange]:
    found = [
        PendingChange(
            desired.name,
            desired.kind,
            desired.network.multus.network_name if desired.network is not None and desired.network.multus else None,
        )
        for desired in find_pending_changes(template, nics)
    ]
    if situation is not None:
        if situation.beside.nad_change:
            found += _changed_networks(template, nics)
        known = {change.name for change in found}
        found += [
            PendingChange(queued.name, queued.kind, queued.network or None)
            for queued in read_queue(template.vm)
            # A request that the VMI follows already stays in the queue until the template has it, too.
            if queued.name not in known and _is_present(nics, queued.name) is (queued.kind is OperationKind.UNPLUG)
        ]
    return found


def _changed_networks(template: TemplateInterfaces, nics: VmiNics) -> list[PendingChange]:
    """Return the interfaces whose NAD differs in the template, which KubeVirt copies to the running VMI."""
    namespace = nics.vmi.metadata.namespace
    return [
        PendingChange(nic.name, OperationKind.PLUG, multus.network_name)
        for nic in nics
        if (desired := template.interfaces.get(nic.name)) is not None
        and desired.network is not None
        and (multus := desired.network.multus) is not None
        and OperationKind.UNPLUG not in (desired.kind, nic.operation.kind)
        and qualified_nad(multus.network_name, namespace) != nic.nad
    ]


def _is_present(nics: VmiNics, name: str) -> bool:
    """Return whether the VMI has an interface and does not unplug it."""
    return name in nics.interfaces and nics.interfaces[name].state != ABSENT


def _at_restart(
    nic_status: InterfaceHotplugStatus,
    template: TemplateInterfaces,
    vmi: VirtualMachineInstance,
    situation: Situation | None,
) -> str | None:
    """Return how the next start changes an interface: it creates the VMI from the template, whatever the VMI has."""
    desired = template.interfaces.get(nic_status.interface)
    in_template = desired is not None and desired.kind is OperationKind.PLUG
    if nic_status.kind is OperationKind.UNPLUG:
        # KubeVirt does not wait for a restart: it plugs the interface again once it is gone.
        return "back" if in_template and situation is None else None
    if desired is None or not in_template:
        return "gone"
    return "changed" if find_changed_fields(template.vm, vmi, nic_status.interface) else None


def _pending_status(
    change: PendingChange,
    present: InterfaceHotplugStatus,
    template: TemplateInterfaces,
    nics: VmiNics,
    situation: Situation | None,
) -> InterfaceHotplugStatus:
    """Return the status of a change that only the template has so far.

    :param present: the status of the interface in the VMI, or an empty one when the VMI does not have it.
    """
    entry = find_entry_of_change(nics, change.name, change.kind, change.network)
    operation = template.operation(change.name, change.kind) or entry
    found = msgspec.structs.replace(
        present,
        network=change.network or present.network,
        kind=change.kind,
        stage=Stage.REQUESTED,
        operation=operation.id if operation is not None else "",
        waiting_for=ROWS[Stage.REQUESTED].next[change.kind],
        requested_at=operation.requested_at if operation is not None else None,
        reason="VmiDeleting" if nics.vmi.metadata.deletion_timestamp is not None else "WaitingForController",
        trace_id=_trace_id(operation) if operation is not None else None,
        failed=None,
    )
    if situation is None:
        return found
    return _with_explanation(situation, found, explain_pending(situation, change.name, change.kind))


def _stray_statuses(situation: Situation) -> list[InterfaceHotplugStatus]:
    """Return a status for each stray element: it belongs to no operation, so nothing is waited for."""
    return [
        _with_explanation(
            situation,
            InterfaceHotplugStatus(
                interface=stray.link,
                network=stray.nad,
                kind=OperationKind.PLUG,
                stage=Stage.MULTUS_ATTACHED if stray.attached else Stage.POD_ANNOTATED,
                operation="",
                pod_interface=stray.link,
            ),
            explain_stray(situation, stray.link, stray.nad),
        )
        for stray in find_stray_elements(situation.nics)
    ]


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


def _stage(nics: VmiNics, nic: Nic, *, observed: bool) -> Stage:
    """Return the stage of an interface.

    :param observed: whether KubeVirt acts on the operation.
    """
    if observed:
        return observe_stage(nics, nic)
    return _unplug_stage(nics, nic) if nic.absent else _plug_stage(nic)


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
        "PodDeleting": nics.pod is not None and nics.pod.metadata.deletion_timestamp is not None,
        "PodNotRunning": nics.pod is not None and nics.pod.status.phase != "Running",
        "OrdinalInterfaceNames": nic.absent and nics.ordinal,
    }
    generic = f"WaitingFor{''.join(word.capitalize() for word in waiting_for.split('-'))}"
    return next((reason for reason, holds in reasons.items() if holds), generic)
