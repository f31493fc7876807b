"""The invariants: what specs, annotations, status, ladder, records, links, leases and domain have to say of another.

Pure. :func:`examine` takes a snapshot and names every disagreement with what repairs it; what is under way is listed
as such, and what could not be looked at, too. Start with :mod:`services.common.domain.invariants.world`, the snapshot.
"""

from collections.abc import Callable, Iterator

import msgspec

from schemas.kube import Pod, VirtualMachineInstance
from services.common.domain.invariants import kept, leftovers, objects, wiring
from services.common.domain.invariants.nics import FINAL_PHASES, Case, case_of, progress, under_way
from services.common.domain.invariants.world import (
    Disagreement,
    Finding,
    InProgress,
    Machine,
    Node,
    NotSeen,
    Report,
    Unknown,
    World,
)
from services.common.domain.operations import acting_pod

MACHINE_CHECKS: tuple[Callable[[Case], Iterator[Disagreement]], ...] = (
    objects.names,
    objects.elements,
    objects.network_status,
    objects.pod_nics,
    objects.vmi_status,
    objects.operations,
    objects.slots,
    kept.rungs,
    kept.left_over,
    wiring.sandbox,
    wiring.record,
    wiring.links,
    wiring.veths,
    wiring.leases,
    wiring.domain,
)
NODE_CHECKS: tuple[Callable[[Node], Iterator[Disagreement]], ...] = (
    leftovers.records,
    leftovers.leases,
    leftovers.namespaces,
    leftovers.veths,
)


def examine(world: World, *, node: bool = True) -> Report:
    """Run every check.

    :param node: whether what belongs to no machine is judged, too.
    """
    findings: list[Finding] = []
    looked_at = 0
    for machine in world.machines:
        found, nics = _machine(machine, world.node)
        findings += found
        looked_at += nics
    if isinstance(world.node, Unknown):
        findings.append(NotSeen("node", "links, records and leases", world.node.why))
    elif node:
        findings += _node(world.node)
    return Report(
        tuple(finding for finding in findings if isinstance(finding, Disagreement)),
        tuple(finding for finding in findings if isinstance(finding, InProgress)),
        tuple(finding for finding in findings if isinstance(finding, NotSeen)),
        looked_at,
    )


def confirmed(first: Report, second: Report) -> Report:
    """The second of two reports, with the disagreements that stand in both: what is just changing differs but once."""
    return msgspec.structs.replace(
        second, disagreements=tuple(one for one in second.disagreements if one in first.disagreements)
    )


def _machine(machine: Machine, node: Node | Unknown) -> tuple[list[Finding], int]:
    busy = under_way(machine)
    vmi = machine.vmi
    if busy is not None:
        return [busy], 0
    if vmi is None or vmi.status.phase in FINAL_PHASES:
        return [], 0
    pod = acting_pod(vmi, machine.pods)
    if pod is None:
        what = f"it runs on {vmi.status.node_name or 'no node'}, and none of its {len(machine.pods)} pods acts for it"
        return [Disagreement("NoActingPod", machine.subject, what, "restart the VM")], 0
    return _running(machine, vmi, pod, node)


def _running(
    machine: Machine, vmi: VirtualMachineInstance, pod: Pod, node: Node | Unknown
) -> tuple[list[Finding], int]:
    try:
        case = case_of(machine, vmi, pod, node)
        findings: list[Finding] = [*progress(machine, vmi, pod)]
    except ValueError as error:
        what = f"its spec or an annotation of pod {pod.metadata.name} cannot be read: {error}"
        repair = "correct it: nothing is done for this VM until then"
        return [Disagreement("Malformed", machine.subject, what, repair)], 0
    for check in MACHINE_CHECKS:
        findings += check(case)
    return [*findings, *_not_seen(case)], len(case.nics)


def _not_seen(case: Case) -> Iterator[NotSeen]:
    if isinstance(case.machine.vm, Unknown):
        yield NotSeen(case.machine.subject, "the VM", case.machine.vm.why)
    if isinstance(case.machine.ladder, Unknown):
        yield NotSeen(case.machine.subject, "the kept ladder", case.machine.ladder.why)
    if isinstance(case.node, Unknown):
        return
    if isinstance(case.inside, Unknown):
        yield NotSeen(case.machine.subject, f"the inside of pod {case.pod_subject}", case.inside.why)
        return
    for part, value in (
        ("the links in the pod", case.inside.links),
        ("the taps that the guest holds", case.inside.taps),
        ("the cards in the domain", case.inside.cards),
    ):
        if isinstance(value, Unknown):
            yield NotSeen(case.machine.subject, part, value.why)


def _node(node: Node) -> Iterator[Finding]:
    for check in NODE_CHECKS:
        yield from check(node)
    for part, value in (
        ("the runtime's sandboxes", node.sandboxes),
        ("multus' records", node.records),
        ("the node's links", node.links),
        ("host-local's leases", node.leases),
        ("network namespaces", node.namespaces),
    ):
        if isinstance(value, Unknown):
            yield NotSeen(node.name, part, value.why)
