"""The end of an unplug: interface, network and operation leave the VMI's spec, then the VM's template.

Pure. Nothing is cleared before the guest has let go, the handler has released the wiring of the acting pod and the
networks role has detached it. Next: :mod:`services.controller.plan`, which puts the decisions in order.
"""

from schemas.kube import Pod, VirtualMachine, VirtualMachineInstance
from schemas.names import interface_hash
from schemas.networks import NETWORK_STATUS, NETWORKS, parse_network_status, parse_networks
from schemas.operations import Operation, operation_key, operation_of, operation_under, stale_operations
from schemas.stages import OperationKind
from services.common.domain.attachments import pod_interface_names, secondary
from services.common.domain.operations import ABSENT, operation_for
from services.common.domain.spec_patch import change, of_vm, of_vmi
from services.common.domain.status_interfaces import entry_of
from services.common.domain.template import keeps_mark
from services.controller.plan.actions import Patch, Target


def clear_vmi(vm: VirtualMachine | None, vmi: VirtualMachineInstance, pod: Pod | None) -> Patch | None:
    """Take what is gone out of the VMI's spec, with its operation; ``None`` when there is nothing to take.

    :param vm: the VM the VMI belongs to; while its template lists a NIC that was unplugged from this VMI alone, the
        operation stays behind as the mark of that.
    :param pod: the acting pod; without it no interface goes, for nobody knows what is wired.
    """
    gone = {operation.interface: operation for operation in (detached(vmi, pod) if pod is not None else [])}
    left = {interface.name for interface in vmi.spec.interface_items()} - gone.keys()
    stale = stale_operations(vmi.metadata.annotations, {interface_hash(name) for name in left | _marked(vm, vmi)})
    if not gone and not stale:
        return None
    holder = of_vmi(vmi)
    ops = change(holder, holder.lists.without(gone) if gone else holder.lists, dict.fromkeys(stale))
    return Patch(Target.VMI, "clear", ops, tuple(gone.values()))


def detached(vmi: VirtualMachineInstance, pod: Pod) -> list[Operation]:
    """The unplugs of which nothing is left in the guest, in the pod or in the VMI's status."""
    annotations = pod.metadata.annotations
    elements = parse_networks(annotations.get(NETWORKS))
    statuses = parse_network_status(annotations.get(NETWORK_STATUS))
    names = pod_interface_names(vmi.spec, elements, statuses)
    present = {e.requested_interface for e in elements} | {s.interface for s in statuses}
    found = []
    for interface, _ in secondary(vmi.spec):
        operation = operation_for(vmi, interface)
        if (
            interface.state == ABSENT
            and operation.released == pod.metadata.uid
            and names[interface.name] not in present
            and entry_of(vmi.status.interfaces, interface.name) is None
        ):
            found.append(operation)
    return found


def clear_vm(vm: VirtualMachine, vmi: VirtualMachineInstance | None) -> Patch | None:
    """Take absent interfaces out of the template once no VMI of the VM knows them, and operations without interface.

    :param vmi: the VM's own; ``None`` when it does not run.
    """
    known = _known(vmi) if vmi is not None else frozenset[str]()
    items = vm.spec.template.spec.interface_items()
    gone = [
        interface.name
        for interface in items
        if interface.state == ABSENT and interface.name not in known and not _noted(vmi, interface.name)
    ]
    left = {interface_hash(interface.name) for interface in items if interface.name not in gone}
    stale = stale_operations(vm.metadata.annotations, left)
    if not gone and not stale:
        return None
    operations = [operation_of(vm.metadata.annotations, name) for name in gone]
    holder = of_vm(vm)
    ops = change(holder, holder.lists.without(gone) if gone else holder.lists, dict.fromkeys(stale))
    return Patch(Target.VM, "clear", ops, tuple(operation for operation in operations if operation is not None))


def _known(vmi: VirtualMachineInstance) -> frozenset[str]:
    names = {interface.name for interface in vmi.spec.interface_items()}
    return frozenset(names | {str(entry.get("name")) for entry in vmi.status.interfaces or ()})


def _noted(vmi: VirtualMachineInstance | None, name: str) -> bool:
    """Whether the mark of an earlier unplug still stands on the VMI: it goes first, or it would outlive the wish."""
    return vmi is not None and operation_key(name) in vmi.metadata.annotations


def _marked(vm: VirtualMachine | None, vmi: VirtualMachineInstance) -> set[str]:
    """The interfaces whose unplug has to be remembered; all of them where the owning VM cannot be seen."""
    found = (operation_under(vmi.metadata.annotations, key) for key in vmi.metadata.annotations)
    unplugs = {o.interface for o in found if o is not None and o.kind is OperationKind.UNPLUG}
    if vm is None:
        owned = any(owner.kind == "VirtualMachine" for owner in vmi.metadata.owner_references)
        return unplugs if owned else set()
    return {name for name in unplugs if keeps_mark(vm, vmi, name)}
