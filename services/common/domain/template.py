"""A VM's template against its running VMI: which wishes of the template the VMI does not have yet.

The template says which NICs the VM has after a restart, the VMI which it has now. A wish is copied once, with its
operation; ``state: absent`` on the VMI is final; what is merely missing from the template is left alone.
Next: :mod:`services.common.domain.eligibility`, whether a wish can be granted.
"""

from collections.abc import Iterator

import msgspec

from schemas.kube import Interface, Network, VirtualMachine, VirtualMachineInstance
from schemas.operations import Operation, derived_id, operation_of
from schemas.stages import OperationKind
from services.common.domain.operations import ABSENT
from services.common.domain.spec_patch import Item

FINAL_PHASES = frozenset({"Succeeded", "Failed"})
"""Phases of a VMI that runs no more."""


class DesiredInterface(msgspec.Struct, frozen=True):
    """One NIC on which template and VMI differ so that the VMI has to follow.

    :ivar item: the template's interface as written. :ivar network_item: its network; ``None`` where there is none.
    """

    kind: OperationKind
    interface: Interface
    network: Network | None
    item: Item
    network_item: Item | None

    @property
    def name(self) -> str:
        """The interface's name."""
        return self.interface.name


def owns(vm: VirtualMachine, vmi: VirtualMachineInstance) -> bool:
    """Whether the VMI was made from this VM, not merely under the same name."""
    return any(o.kind == "VirtualMachine" and o.uid == vm.metadata.uid for o in vmi.metadata.owner_references)


def lives(vmi: VirtualMachineInstance) -> bool:
    """Whether a VMI can still be given or lose a NIC."""
    return vmi.metadata.deletion_timestamp is None and vmi.status.phase not in FINAL_PHASES


def desired_interfaces(vm: VirtualMachine, vmi: VirtualMachineInstance) -> list[DesiredInterface]:
    """What the VMI has to follow, in the template's order; not judged yet.

    :raises msgspec.ValidationError: an item of either spec is malformed.
    """
    here = {interface.name: interface for interface in vmi.spec.interface_items()}
    found = []
    for wish in _template(vm):
        present = here.get(wish.name)
        if present is None:
            if wish.kind is OperationKind.PLUG and not taken_out(vmi, wish.name):
                found.append(wish)
        elif wish.kind is OperationKind.UNPLUG and present.state != ABSENT:
            found.append(wish)
    return found


def asks_otherwise(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether the template sets something of a NIC or its network to another value than it runs with.

    Only a restart brings that. What the template leaves unsaid (a MAC, a model), a webhook or a preference may have
    filled in: no difference. ``state`` is followed while the VM runs.
    """
    template, here = vm.spec.template.spec, vmi.spec
    pairs = (
        (_named(template.domain.devices.interfaces, name), _named(here.domain.devices.interfaces, name)),
        (_named(template.networks, name), _named(here.networks, name)),
    )
    return any(
        value not in ("", None) and present.get(key) != value
        for wished, present in pairs
        for key, value in wished.items()
        if key != "state"
    )


def revived(vm: VirtualMachine, vmi: VirtualMachineInstance) -> list[DesiredInterface]:
    """Interfaces that the template itself asked to unplug and wants back before they are gone.

    An unplug asked of the VMI alone is no such case: the template keeps its NIC for the next start.
    """
    here = {interface.name: interface for interface in vmi.spec.interface_items()}
    found = []
    for wish in _template(vm):
        present = here.get(wish.name)
        wanted_back = wish.kind is OperationKind.PLUG and present is not None and present.state == ABSENT
        if wanted_back and asked_by_template(vm, vmi, wish.name):
            found.append(wish)
    return found


def link_states(vm: VirtualMachine, vmi: VirtualMachineInstance) -> dict[str, str]:
    """The interfaces, primary ones too, whose ``state`` the VMI has to take over, and that state.

    Nothing of a NIC that is ``absent`` on either side: that is an unplug, and final.

    :raises msgspec.ValidationError: an item of either spec is malformed.
    """
    here = {interface.name: interface.state for interface in vmi.spec.interface_items()}
    return {
        interface.name: interface.state
        for interface in vm.spec.template.spec.interface_items()
        if ABSENT not in (interface.state, here.get(interface.name, ABSENT)) and here[interface.name] != interface.state
    }


def asked_by_template(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether the running unplug of an interface came from the template: VM and VMI carry the same operation."""
    wished = operation_of(vm.metadata.annotations, name)
    running = operation_of(vmi.metadata.annotations, name)
    return (
        wished is not None and running is not None and wished.id == running.id and wished.kind is OperationKind.UNPLUG
    )


def taken_out(vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether a NIC was unplugged from this VMI alone: its operation outlived it, until the VMI ends.

    Without that mark the template, which still lists the NIC, would bring it back at once.
    """
    operation = operation_of(vmi.metadata.annotations, name)
    gone = all(item.get("name") != name for item in vmi.spec.domain.devices.interfaces or ())
    return gone and operation is not None and operation.kind is OperationKind.UNPLUG


def keeps_mark(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str) -> bool:
    """Whether an unplug's operation has to outlive its interface on the VMI (see :func:`taken_out`)."""
    if asked_by_template(vm, vmi, name):
        return False
    items = vm.spec.template.spec.domain.devices.interfaces or ()
    return any(item.get("name") == name and item.get("state") != ABSENT for item in items)


def wished_operation(vm: VirtualMachine, name: str, kind: OperationKind) -> Operation | None:
    """The operation that was written down with a wish of the template; ``None`` for an edit with kubectl."""
    written = operation_of(vm.metadata.annotations, name)
    return written if written is not None and written.kind is kind and written.failed is None else None


def edit_id(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str, kind: OperationKind) -> str:
    """The id of a wish that an edit of the template brought and nobody wrote an operation for.

    By the VM's generation, told apart from the VMI's own, which counts something else.
    """
    return derived_id(f"{vmi.metadata.uid}/{vm.metadata.uid}", name, kind, vm.metadata.generation)


def _named(items: list[Item] | None, name: str) -> Item:
    return next((item for item in items or () if item.get("name") == name), {})


def _template(vm: VirtualMachine) -> Iterator[DesiredInterface]:
    spec = vm.spec.template.spec
    networks = {network.name: network for network in spec.network_items()}
    items = {str(item.get("name")): item for item in spec.networks or ()}
    for item, interface in zip(spec.domain.devices.interfaces or (), spec.interface_items(), strict=True):
        kind = OperationKind.UNPLUG if interface.state == ABSENT else OperationKind.PLUG
        yield DesiredInterface(kind, interface, networks.get(interface.name), item, items.get(interface.name))
