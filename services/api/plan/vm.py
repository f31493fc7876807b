"""What is answered to requests about a VM: its template, and through the controller the machine made from it.

Pure. The api writes the template alone; a stopped VM needs no more. Next: :mod:`services.api.apply`.
"""

import msgspec

from schemas.kube import Interface, Network, VirtualMachine, VirtualMachineInstance
from schemas.operations import Operation, derived_id, operation_of
from schemas.options import AddInterfaceOptions
from schemas.stages import OperationKind, Stage
from services.api.plan.answers import Answer, Change, Joined, Observed, Refuse, Target, conflict, not_found
from services.api.plan.checks import (
    collision,
    no_slot,
    not_removable,
    reference,
    same_network,
    taken,
    unfit_network,
    unknown,
)
from services.common.domain.hotplug_status import fold, reached
from services.common.domain.operations import ABSENT, operation_for
from services.common.domain.spec_patch import Item, Lists, change, notes, of_vm
from services.common.domain.template import desired_interfaces, edit_id, lives, owns, taken_out, wished_operation


def add(seen: Observed) -> Answer:
    """Decide on ``addinterface``."""
    vm, options = seen.vm, seen.options
    assert isinstance(options, AddInterfaceOptions)
    if vm is None:
        return not_found(seen)
    if vm.metadata.deletion_timestamp is not None:
        return conflict(seen, "the VM is being deleted")
    vmi = _running(seen, vm)
    interface, network = _find(vm, options.name)
    if interface is not None:
        return _existing(seen, vm, vmi, interface, network)
    operation: Operation | None = None
    refusal = collision(seen, vm.spec.template.spec)
    if refusal is None and vmi is not None:
        refusal, operation = _beside(seen, vmi)
    refusal = refusal or unfit_network(seen)
    if refusal is None and vmi is not None and operation is None:
        refusal = no_slot(
            seen, vmi, coming=sum(wish.kind is OperationKind.PLUG for wish in desired_interfaces(vm, vmi))
        )
    if refusal is not None:
        return refusal
    operation = operation or seen.operation(OperationKind.PLUG)
    holder = of_vm(vm)
    lists = _with_primary(seen, vm, vmi, holder.lists)
    multus = {"networkName": options.network_attachment_definition_name}
    lists = lists.plus({"name": options.name, "bridge": {}}, {"name": options.name, "multus": multus})
    return Change(Target.VM, operation, change(holder, lists, notes([operation])), reference(seen))


def remove(seen: Observed) -> Answer:
    """Decide on ``removeinterface``. Asked a second time, it is the same unplug."""
    vm = seen.vm
    if vm is None:
        return not_found(seen)
    if vm.metadata.deletion_timestamp is not None:
        return conflict(seen, "the VM is being deleted")
    vmi = _running(seen, vm)
    interface, network = _find(vm, seen.options.name)
    here = _of(vmi, seen.options.name)
    if interface is None:
        return unknown(seen, "'s template; the running VMI has it, ask there" if here is not None else "")
    # How a pod calls its interfaces matters only while it runs for this VM.
    judged = seen if vmi is not None else msgspec.structs.replace(seen, pod=None)
    if (refusal := not_removable(judged, interface, network)) is not None:
        return refusal
    if interface.state == ABSENT:
        return Joined(_running_unplug(vm, vmi, interface))
    operation, holder = seen.operation(OperationKind.UNPLUG), of_vm(vm)
    if here is not None and here.state == ABSENT and vmi is not None:
        # The running VM loses it already; the same operation now says so of the template, too.
        operation = operation_for(vmi, here)
    return Change(Target.VM, operation, change(holder, holder.lists.absent([interface.name]), notes([operation])))


def _existing(
    seen: Observed,
    vm: VirtualMachine,
    vmi: VirtualMachineInstance | None,
    interface: Interface,
    network: Network | None,
) -> Joined | Refuse:
    if interface.state == ABSENT:
        return taken(seen, interface, network, " and is being unplugged")
    operation = wished_operation(vm, interface.name, OperationKind.PLUG)
    if operation is not None and vmi is not None and same_network(seen, network):
        here = _of(vmi, interface.name)
        if here is None and not taken_out(vmi, interface.name):
            return Joined(operation)
        nic_status = next(
            (nic_status for nic_status in fold(vmi, seen.pod) if nic_status.interface == interface.name), None
        )
        if (
            nic_status is not None
            and nic_status.operation == operation.id
            and not reached(nic_status, Stage.GUEST_ATTACHED)
        ):
            return Joined(operation)
    return taken(seen, interface, network, "")


def _beside(seen: Observed, vmi: VirtualMachineInstance) -> tuple[Refuse | None, Operation | None]:
    """The running VM may have the NIC already: then it becomes permanent, by the operation that plugged it."""
    interface = _of(vmi, seen.options.name)
    if interface is None:
        return collision(seen, vmi.spec), None
    network = next((network for network in vmi.spec.network_items() if network.name == interface.name), None)
    if interface.state == ABSENT:
        return taken(seen, interface, network, " in the running VM and is being unplugged"), None
    if not same_network(seen, network) or interface.bridge is None:
        return taken(seen, interface, network, " in the running VM"), None
    operation = operation_for(vmi, interface)
    if operation.failed is not None:
        return taken(
            seen, interface, network, f" in the running VM, where it could not be plugged ({operation.failed})"
        ), None
    return None, operation


def _running_unplug(vm: VirtualMachine, vmi: VirtualMachineInstance | None, interface: Interface) -> Operation:
    written = operation_of(vm.metadata.annotations, interface.name)
    if written is not None and written.kind is OperationKind.UNPLUG:
        return written
    here = _of(vmi, interface.name)
    if vmi is not None and here is not None and here.state == ABSENT:
        return operation_for(vmi, here)
    # An edit that the controller has not written down yet, or (with nothing running) never will.
    name, kind = interface.name, OperationKind.UNPLUG
    fresh = derived_id(vm.metadata.uid, name, kind, vm.metadata.generation)
    return Operation(edit_id(vm, vmi, name, kind) if vmi is not None else fresh, kind, name)


def _with_primary(seen: Observed, vm: VirtualMachine, vmi: VirtualMachineInstance | None, lists: Lists) -> Lists:
    """Write down the pod network of a VM that left it unsaid; with any interface named it would lose it at restart."""
    silent = not lists.networks and not lists.interfaces
    if not silent or vm.spec.template.spec.domain.devices.autoattach_pod_interface is False:
        return lists
    networks: list[Item] = [item for item in (vmi.spec.networks if vmi else None) or () if "pod" in item]
    names = {item.get("name") for item in networks}
    interfaces = vmi.spec.domain.devices.interfaces if vmi else None
    for item in interfaces or ():
        if item.get("name") in names:
            return lists.plus(item, next(network for network in networks if network.get("name") == item.get("name")))
    return lists.plus({"name": "default", seen.default_binding: {}}, {"name": "default", "pod": {}})


def _running(seen: Observed, vm: VirtualMachine) -> VirtualMachineInstance | None:
    vmi = seen.vmi
    return vmi if vmi is not None and owns(vm, vmi) and lives(vmi) else None


def _find(vm: VirtualMachine, name: str) -> tuple[Interface | None, Network | None]:
    spec = vm.spec.template.spec
    interface = next((interface for interface in spec.interface_items() if interface.name == name), None)
    return interface, next((network for network in spec.network_items() if network.name == name), None)


def _of(vmi: VirtualMachineInstance | None, name: str) -> Interface | None:
    items = vmi.spec.interface_items() if vmi is not None else []
    return next((interface for interface in items if interface.name == name), None)
