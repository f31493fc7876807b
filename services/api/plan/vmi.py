"""What is answered to requests about a VMI: the running machine only, lost at its restart.

Pure. Next: :mod:`services.api.plan.vm`.
"""

from schemas.kube import Interface, Network, VirtualMachineInstance
from schemas.operations import NIC_SLOTS, operation_of
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
from services.common.domain.spec_patch import annotation_path, change, notes, of_vmi
from services.common.domain.template import owns

OWNED_BY_KUBEVIRT = (
    "KubeVirt drives the NICs of this cluster (HOTNIC_VM_OWNER=kubevirt), so a running VM alone cannot be changed; "
    "change the VM"
)


def add(seen: Observed) -> Answer:
    """Decide on ``addinterface``."""
    vmi, options = seen.vmi, seen.options
    assert isinstance(options, AddInterfaceOptions)
    if vmi is None:
        return not_found(seen)
    if (refusal := _not_changeable(seen, vmi)) is not None:
        return refusal
    interface, network = _find(vmi, options.name)
    if interface is not None:
        return _existing(seen, vmi, interface, network)
    if _leaving(seen, vmi):
        why = f"interface {options.name!r} is being unplugged from VM {seen.name}; please try again when it is gone"
        return conflict(seen, why)
    refusal = collision(seen, vmi.spec) or unfit_network(seen) or no_slot(seen, vmi)
    if refusal is not None:
        return refusal
    operation, holder = seen.operation(OperationKind.PLUG), of_vmi(vmi)
    multus = {"networkName": options.network_attachment_definition_name}
    lists = holder.lists.plus({"name": options.name, "bridge": {}}, {"name": options.name, "multus": multus})
    ops = change(holder, lists, notes([operation]))
    if (slots := vmi.metadata.annotations.get(NIC_SLOTS)) is not None:
        # Room was seen by this count: with another one it is to be decided anew.
        ops = [{"op": "test", "path": annotation_path(NIC_SLOTS), "value": slots}, *ops]
    return Change(Target.VMI, operation, ops, reference(seen))


def remove(seen: Observed) -> Answer:
    """Decide on ``removeinterface``. Asked a second time, it is the same unplug."""
    vmi = seen.vmi
    if vmi is None:
        return not_found(seen)
    if (refusal := _not_changeable(seen, vmi)) is not None:
        return refusal
    interface, network = _find(vmi, seen.options.name)
    if interface is None:
        return unknown(seen)
    if (refusal := not_removable(seen, interface, network)) is not None:
        return refusal
    if interface.state == ABSENT:
        return Joined(operation_for(vmi, interface))
    operation, holder = seen.operation(OperationKind.UNPLUG), of_vmi(vmi)
    return Change(Target.VMI, operation, change(holder, holder.lists.absent([interface.name]), notes([operation])))


def _not_changeable(seen: Observed, vmi: VirtualMachineInstance) -> Refuse | None:
    if vmi.status.phase != "Running" or vmi.metadata.deletion_timestamp is not None:
        return conflict(seen, "VMI is not running")
    return None if seen.owned else conflict(seen, OWNED_BY_KUBEVIRT)


def _existing(
    seen: Observed, vmi: VirtualMachineInstance, interface: Interface, network: Network | None
) -> Joined | Refuse:
    """The name is there: the running operation for an identical request, else a refusal."""
    if interface.state == ABSENT:
        return taken(seen, interface, network, " and is being unplugged")
    operation = operation_of(vmi.metadata.annotations, interface.name)
    if operation is not None and operation.failed is not None:
        return taken(seen, interface, network, f", could not be plugged ({operation.failed}) and is being taken out")
    nic_status = next(
        (nic_status for nic_status in fold(vmi, seen.pod) if nic_status.interface == interface.name), None
    )
    running = nic_status is not None and not reached(nic_status, Stage.GUEST_ATTACHED)
    if same_network(seen, network) and running and operation is not None and operation.kind is OperationKind.PLUG:
        return Joined(operation)
    return taken(seen, interface, network, "")


def _leaving(seen: Observed, vmi: VirtualMachineInstance) -> bool:
    """Whether the VM's template is still to lose a NIC of that name: it would take the new one along."""
    if seen.vm is None or not owns(seen.vm, vmi):
        return False
    items = seen.vm.spec.template.spec.domain.devices.interfaces or ()
    return any(item.get("name") == seen.options.name and item.get("state") == ABSENT for item in items)


def _find(vmi: VirtualMachineInstance, name: str) -> tuple[Interface | None, Network | None]:
    interface = next((interface for interface in vmi.spec.interface_items() if interface.name == name), None)
    return interface, next((network for network in vmi.spec.network_items() if network.name == name), None)
