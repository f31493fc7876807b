"""The invariants: what specs, annotations, status, ladder, records, links, leases and domain have to say of another.

Pure. :func:`examine` takes a snapshot and names every disagreement with what repairs it; what is under way is listed
as such, and what could not be looked at, too. Start with :mod:`services.common.domain.invariants.world`, the snapshot.
"""

from collections.abc import Callable, Iterator

import msgspec

from schemas.kube import Pod, VirtualMachineInstance
from services.common.domain.invariants import leftovers, node_state, objects, stored_status
from services.common.domain.invariants.nics import FINAL_PHASES, CheckedVmi, checked_vmi, progress, under_way
from services.common.domain.invariants.world import (
    CheckResult,
    DoctorReport,
    Finding,
    NodeSnapshot,
    NotChecked,
    NotVisible,
    OperationInProgress,
    Snapshot,
    VmSnapshot,
)
from services.common.domain.operations import acting_pod

MACHINE_CHECKS: tuple[Callable[[CheckedVmi], Iterator[Finding]], ...] = (
    objects.names,
    objects.elements,
    objects.network_status,
    objects.pod_nics,
    objects.vmi_status,
    objects.operations,
    objects.slots,
    stored_status.nic_statuses,
    stored_status.left_over,
    node_state.sandbox,
    node_state.record,
    node_state.links,
    node_state.veths,
    node_state.leases,
    node_state.domain,
)
NODE_CHECKS: tuple[Callable[[NodeSnapshot], Iterator[Finding]], ...] = (
    leftovers.records,
    leftovers.leases,
    leftovers.namespaces,
    leftovers.veths,
)


def examine(world: Snapshot, *, node: bool = True) -> DoctorReport:
    """Run every check.

    :param node: whether what belongs to no machine is judged, too.
    """
    findings: list[CheckResult] = []
    looked_at = 0
    for machine in world.machines:
        found, nics = _machine(machine, world.node)
        findings += found
        looked_at += nics
    if isinstance(world.node, NotVisible):
        findings.append(NotChecked("node", "links, records and leases", world.node.why))
    elif node:
        findings += _node(world.node)
    return DoctorReport(
        tuple(finding for finding in findings if isinstance(finding, Finding)),
        tuple(finding for finding in findings if isinstance(finding, OperationInProgress)),
        tuple(finding for finding in findings if isinstance(finding, NotChecked)),
        looked_at,
    )


def confirmed(first: DoctorReport, second: DoctorReport) -> DoctorReport:
    """The second of two reports, with the disagreements that stand in both: what is just changing differs but once."""
    return msgspec.structs.replace(
        second, disagreements=tuple(one for one in second.disagreements if one in first.disagreements)
    )


def _machine(machine: VmSnapshot, node: NodeSnapshot | NotVisible) -> tuple[list[CheckResult], int]:
    busy = under_way(machine)
    vmi = machine.vmi
    if busy is not None:
        return [busy], 0
    if vmi is None or vmi.status.phase in FINAL_PHASES:
        return [], 0
    pod = acting_pod(vmi, machine.pods)
    if pod is None:
        what = f"it runs on {vmi.status.node_name or 'no node'}, and none of its {len(machine.pods)} pods acts for it"
        return [Finding("NoActingPod", machine.subject, what, "restart the VM")], 0
    return _running(machine, vmi, pod, node)


def _running(
    machine: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod, node: NodeSnapshot | NotVisible
) -> tuple[list[CheckResult], int]:
    try:
        case = checked_vmi(machine, vmi, pod, node)
        findings: list[CheckResult] = [*progress(machine, vmi, pod)]
    except ValueError as error:
        what = f"its spec or an annotation of pod {pod.metadata.name} cannot be read: {error}"
        repair = "correct it: nothing is done for this VM until then"
        return [Finding("Malformed", machine.subject, what, repair)], 0
    for check in MACHINE_CHECKS:
        findings += check(case)
    return [*findings, *_not_seen(case)], len(case.nics)


def _not_seen(case: CheckedVmi) -> Iterator[NotChecked]:
    if isinstance(case.machine.vm, NotVisible):
        yield NotChecked(case.machine.subject, "the VM", case.machine.vm.why)
    if isinstance(case.machine.hotplug_status, NotVisible):
        yield NotChecked(case.machine.subject, "the kept ladder", case.machine.hotplug_status.why)
    if isinstance(case.node, NotVisible):
        return
    if isinstance(case.inside, NotVisible):
        yield NotChecked(case.machine.subject, f"the inside of pod {case.pod_subject}", case.inside.why)
        return
    for part, value in (
        ("the links in the pod", case.inside.links),
        ("the taps that the guest holds", case.inside.taps),
        ("the cards in the domain", case.inside.cards),
    ):
        if isinstance(value, NotVisible):
            yield NotChecked(case.machine.subject, part, value.why)


def _node(node: NodeSnapshot) -> Iterator[CheckResult]:
    for check in NODE_CHECKS:
        yield from check(node)
    for part, value in (
        ("the runtime's sandboxes", node.sandboxes),
        ("multus' records", node.records),
        ("the node's links", node.links),
        ("host-local's leases", node.leases),
        ("network namespaces", node.namespaces),
    ):
        if isinstance(value, NotVisible):
            yield NotChecked(node.name, part, value.why)
