"""Runs all checks on a snapshot: specs, annotations, status, records, links, leases and guest devices must agree, and
the bus must have room.

Pure. The report has a finding with a repair for each difference. It also lists the operations in progress and the parts
that could not be checked. Next: :mod:`services.cli.doctor.checks`.
"""

from collections.abc import Callable, Iterator

import msgspec

from schemas.kubernetes.objects import Pod, VirtualMachine, VirtualMachineInstance
from services.cli.doctor.checks import bus, leftovers, node_state, objects, stored_status
from services.cli.doctor.checks.nics import CheckedVmi, build_checked_vmi, operations_in_progress, vm_in_transition
from services.cli.doctor.snapshot import (
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
from services.common.domain.operations import find_acting_pod
from services.common.domain.template import FINAL_PHASES

VM_CHECKS: tuple[Callable[[CheckedVmi], Iterator[Finding]], ...] = (
    objects.check_names,
    objects.check_elements,
    objects.check_network_status,
    objects.check_pod_nics,
    objects.check_vmi_status,
    objects.check_operations,
    objects.check_slots,
    stored_status.check_stored_entries,
    stored_status.check_stored_leftovers,
    node_state.check_sandbox,
    node_state.check_record,
    node_state.check_links,
    node_state.check_veths,
    node_state.check_leases,
    node_state.check_guest_devices,
)
NODE_CHECKS: tuple[Callable[[NodeSnapshot], Iterator[Finding]], ...] = (
    leftovers.check_records,
    leftovers.check_leases,
    leftovers.check_namespaces,
    leftovers.check_veths,
)


def examine(snapshot: Snapshot, *, node: bool = True) -> DoctorReport:
    """Run all checks on a snapshot.

    :param node: whether to run the checks of the node as a whole, too.
    """
    results: list[CheckResult] = []
    checked_nics = 0
    for vm_snapshot in snapshot.vms:
        found, nics = _check_vm(vm_snapshot, snapshot.node)
        results += found
        checked_nics += nics
    if isinstance(snapshot.node, NotVisible):
        results.append(NotChecked("node", "links, records and leases", snapshot.node.message))
    elif node:
        results += _check_node(snapshot.node)
    if isinstance(snapshot.bus, NotVisible):
        results.append(NotChecked("bus", "streams and bucket", snapshot.bus.message))
    else:
        results += bus.check_streams(snapshot.bus.streams)
        results += bus.check_stores(snapshot.bus)
    return DoctorReport(
        tuple(one for one in results if isinstance(one, Finding)),
        tuple(one for one in results if isinstance(one, OperationInProgress)),
        tuple(one for one in results if isinstance(one, NotChecked)),
        checked_nics,
    )


def confirmed(first: DoctorReport, second: DoctorReport) -> DoctorReport:
    """Return the second report with only those findings that the first one has, too.

    A snapshot is not atomic: an object that changes while it is taken can differ in one snapshot, but not in two.
    """
    found = {(one.code, one.subject, one.message) for one in first.findings}
    # The change that a finding carries is that of the second snapshot, the newer one.
    findings = tuple(one for one in second.findings if (one.code, one.subject, one.message) in found)
    return msgspec.structs.replace(second, findings=findings)


def _check_vm(vm_snapshot: VmSnapshot, node: NodeSnapshot | NotVisible) -> tuple[list[CheckResult], int]:
    """Return the results for a VM and the number of NICs that were checked."""
    transition = vm_in_transition(vm_snapshot)
    vmi = vm_snapshot.vmi
    if transition is not None:
        return [transition], 0
    if vmi is None or vmi.status.phase in FINAL_PHASES:
        vm = vm_snapshot.vm
        return [*objects.check_stopped_vm(vm_snapshot.subject, vm)] if isinstance(vm, VirtualMachine) else [], 0
    pod = find_acting_pod(vmi, vm_snapshot.pods)
    if pod is None:
        node_name = vmi.status.node_name or "no node"
        message = f"the VMI runs on {node_name}, but none of its {len(vm_snapshot.pods)} pods is its active pod there"
        return [Finding("NoActingPod", vm_snapshot.subject, message, "restart the VM")], 0
    return _check_running_vmi(vm_snapshot, vmi, pod, node)


def _check_running_vmi(
    vm_snapshot: VmSnapshot, vmi: VirtualMachineInstance, pod: Pod, node: NodeSnapshot | NotVisible
) -> tuple[list[CheckResult], int]:
    try:
        checked = build_checked_vmi(vm_snapshot, vmi, pod, node)
        results: list[CheckResult] = [*operations_in_progress(checked)]
    except ValueError as error:
        message = f"the VM's spec or an annotation of pod {pod.metadata.name} cannot be parsed: {error}"
        repair = "correct it; hotnic changes nothing on this VM until then"
        return [Finding("Malformed", vm_snapshot.subject, message, repair)], 0
    for check in VM_CHECKS:
        results += check(checked)
    return [*results, *_unchecked_parts(checked)], len(checked.nics)


def _unchecked_parts(checked: CheckedVmi) -> Iterator[NotChecked]:
    subject = checked.vm_snapshot.subject
    if isinstance(checked.vm_snapshot.vm, NotVisible):
        yield NotChecked(subject, "the VM", checked.vm_snapshot.vm.message)
    if isinstance(checked.vm_snapshot.hotplug_status, NotVisible):
        yield NotChecked(subject, "the stored hot-plug status", checked.vm_snapshot.hotplug_status.message)
    if isinstance(checked.node, NotVisible):
        # Reported once for the node, not for every VM.
        return
    if isinstance(checked.pod_on_node, NotVisible):
        yield NotChecked(subject, f"pod {checked.pod_subject} on its node", checked.pod_on_node.message)
        return
    for part, value in (
        ("the links in the pod", checked.pod_on_node.links),
        ("the taps that the guest holds open", checked.pod_on_node.taps),
        ("the devices in the guest's domain", checked.pod_on_node.guest_devices),
    ):
        if isinstance(value, NotVisible):
            yield NotChecked(subject, part, value.message)


def _check_node(node: NodeSnapshot) -> Iterator[CheckResult]:
    for check in NODE_CHECKS:
        yield from check(node)
    for part, value in (
        ("the container runtime's sandboxes", node.sandboxes),
        ("the multus daemon's records", node.records),
        ("the node's links", node.links),
        ("host-local's leases", node.leases),
        ("network namespaces", node.namespaces),
    ):
        if isinstance(value, NotVisible):
            yield NotChecked(node.name, part, value.message)
