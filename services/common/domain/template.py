"""Differences between a VM's template and its running VMI: the changes that the VMI does not have yet.

The template holds the interfaces after a restart (:class:`TemplateInterfaces`), the VMI the current ones
(:class:`services.common.domain.nic.VmiNics`). The two sides are compared by interface name: a :class:`DesiredInterface`
has only what a template can contain, a :class:`services.common.domain.nic.Nic` also the state in the pod. A change is
copied once, with its operation. ``state: absent`` on the VMI is final. An interface merely missing from the template is
left alone. Next: :mod:`services.common.domain.eligibility`, whether a change is possible at run time.
"""

import msgspec

from schemas.kubernetes.objects import Interface, Network, VirtualMachine, VirtualMachineInstance
from schemas.kubernetes.operations import Operation, derive_operation_id
from schemas.stages import OperationKind
from services.common.domain.eligibility import LINK_STATES
from services.common.domain.mac_address import find_mac
from services.common.domain.nic import VmiNics, qualified_nad
from services.common.domain.operations import ABSENT, operation_kind, read_operations
from services.common.domain.spec_patch import SpecItem
from services.common.domain.status_interfaces import find_entry

FINAL_PHASES = frozenset({"Succeeded", "Failed"})
"""Phases of a VMI that has ended."""


class DesiredInterface(msgspec.Struct, frozen=True):
    """One interface of a VM's template.

    :ivar kind: the operation that makes a VMI follow the template: an unplug where the template has ``state: absent``.
    :ivar interface: the interface in the template.
    :ivar network: its network; ``None`` when the template has none.
    :ivar item: the interface as decoded JSON.
    :ivar network_item: its network as decoded JSON; ``None`` when the template has none.
    """

    kind: OperationKind
    interface: Interface
    network: Network | None
    item: SpecItem
    network_item: SpecItem | None

    @property
    def name(self) -> str:
        """Name of the interface."""
        return self.interface.name


class TemplateInterfaces(msgspec.Struct, frozen=True):
    """The interfaces of a VM's template, parsed once.

    :ivar vm: the VM.
    :ivar interfaces: all interfaces of the template by name, primary ones included, in template order.
    :ivar operations: the operations in the VM's annotations by interface.
    """

    vm: VirtualMachine
    interfaces: dict[str, DesiredInterface]
    operations: dict[str, Operation]

    def operation(self, name: str, kind: OperationKind) -> Operation | None:
        """Return the operation annotation of a change in the template; ``None`` for an edit with kubectl."""
        written = self.operations.get(name)
        return written if written is not None and written.kind is kind and written.failed is None else None


def parse_template(vm: VirtualMachine) -> TemplateInterfaces:
    """Parse the template of a VM.

    :raises ValueError: an item of the template is malformed, or there are too many.
    """
    spec = vm.spec.template.spec
    networks = {network.name: network for network in spec.network_items()}
    items = {str(item.get("name")): item for item in spec.networks or ()}
    pairs = zip(spec.domain.devices.interfaces or (), spec.interface_items(), strict=True)
    interfaces = {
        interface.name: DesiredInterface(
            operation_kind(interface), interface, networks.get(interface.name), item, items.get(interface.name)
        )
        for item, interface in pairs
    }
    return TemplateInterfaces(vm, interfaces, read_operations(vm.metadata))


def owns(vm: VirtualMachine, vmi: VirtualMachineInstance) -> bool:
    """Return whether the VMI was created from this VM, not from another one of the same name."""
    return any(o.kind == "VirtualMachine" and o.uid == vm.metadata.uid for o in vmi.metadata.owner_references)


def is_active(vmi: VirtualMachineInstance) -> bool:
    """Return whether interfaces of a VMI can still be plugged or unplugged."""
    return vmi.metadata.deletion_timestamp is None and vmi.status.phase not in FINAL_PHASES


def find_pending_changes(template: TemplateInterfaces, nics: VmiNics) -> list[DesiredInterface]:
    """Return the interfaces of the template that the VMI still has to plug or unplug, in template order.

    Whether such a change is possible now is not checked.
    """
    found = []
    for desired in template.interfaces.values():
        present = nics.interfaces.get(desired.name)
        if present is not None:
            differs = desired.kind is OperationKind.UNPLUG and present.state != ABSENT
        else:
            # An interface that was unplugged on the VMI alone returns at the next start only.
            differs = desired.kind is OperationKind.PLUG and not is_unplugged_until_restart(nics, desired.name)
        if differs:
            found.append(desired)
    return found


def find_changed_fields(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str) -> list[str]:
    """Return the fields of an interface or its network that the template sets to another value than the VMI has.

    Only a restart applies such a value. Fields that are empty in the template do not count: a webhook or a preference
    may have set them on the VMI (a MAC, a model). Neither do ``state``, which the VMI follows at run time, and the MAC
    that the interface has anyway, however it is written.
    """
    template, in_vmi = vm.spec.template.spec, vmi.spec
    pairs = (
        (_find_item(template.domain.devices.interfaces, name), _find_item(in_vmi.domain.devices.interfaces, name)),
        (_find_item(template.networks, name), _find_item(in_vmi.networks, name)),
    )
    return [
        key
        for requested, present in pairs
        for key, value in requested.items()
        if value not in ("", None) and present.get(key) != value and key != "state"
        if key != "macAddress" or not _has_mac(vmi, name, present, value)
    ]


def _has_mac(vmi: VirtualMachineInstance, name: str, in_spec: SpecItem, requested: object) -> bool:
    """Return whether an interface of the VMI has a MAC; its spec need not name the MAC that a CNI plugin has chosen."""
    in_status = find_entry(vmi.status.interfaces, name) or {}
    mac = find_mac(requested)
    return mac is not None and mac in (find_mac(in_spec.get("macAddress")), find_mac(in_status.get("mac")))


def find_reverted_unplugs(template: TemplateInterfaces, nics: VmiNics) -> list[DesiredInterface]:
    """Return interfaces that the template first unplugged and contains again before the unplug is complete.

    An unplug requested on the VMI alone is not included: the template still contains its interface, for the next
    start.
    """
    return [
        desired
        for desired in template.interfaces.values()
        if desired.kind is OperationKind.PLUG
        and desired.name in nics.interfaces
        and nics.interfaces[desired.name].state == ABSENT
        and is_template_unplug(template, nics, desired.name)
    ]


def changed_link_states(template: TemplateInterfaces, nics: VmiNics) -> dict[str, str]:
    """Return the interfaces whose ``state`` the VMI has to copy, primary ones included, with that state.

    An interface that is ``absent`` on either side is not included: an unplug is final. Nor is an unknown state.
    """
    pairs = [
        (desired.interface, nics.interfaces[name])
        for name, desired in template.interfaces.items()
        if name in nics.interfaces
    ]
    return {
        desired.name: desired.state
        for desired, present in pairs
        if ABSENT not in (desired.state, present.state)
        and desired.state != present.state
        and desired.state in LINK_STATES
    }


def is_template_unplug(template: TemplateInterfaces, nics: VmiNics, name: str) -> bool:
    """Return whether an unplug in progress came from the template.

    VM and VMI have the same operation then. Where KubeVirt owns the VM, every unplug comes from the template.
    """
    requested, running = template.operations.get(name), nics.operations.get(name)
    if running is None or running.kind is not OperationKind.UNPLUG:
        return False
    return running.vm is not None or (requested is not None and requested.id == running.id)


def is_unplugged_until_restart(nics: VmiNics, name: str) -> bool:
    """Return whether an interface was unplugged from this VMI alone.

    The operation annotation remains on the VMI after such an unplug. Without it the controller would plug the
    interface again at once, because the template still contains it. KubeVirt does so: where it owns the VM, no
    interface is unplugged from the VMI alone.
    """
    operation = nics.operations.get(name)
    unplugged = operation is not None and operation.kind is OperationKind.UNPLUG and operation.vm is None
    return unplugged and name not in nics.interfaces


def find_entry_of_change(nics: VmiNics, name: str, kind: OperationKind, network: str | None = None) -> Operation | None:
    """Return the operation of a change that KubeVirt has still to copy from the template to the VMI.

    It is on the VMI already, see :func:`schemas.kubernetes.operations.unplug_key`. While the unplug's entry is there,
    that of the plug belongs to the interface that was unplugged. So does one for another NAD to an earlier plug.

    :param network: the NAD of a plug.
    """
    entry = nics.written(name, kind) if kind is OperationKind.UNPLUG else nics.operations.get(name)
    if entry is None or entry.kind is not kind or entry.vm is None:
        return None
    nad = qualified_nad(network, nics.vmi.metadata.namespace) if network else None
    # A change of the NAD always names it.
    unknown = entry.network is None and name not in nics.interfaces
    return entry if kind is OperationKind.UNPLUG or unknown or entry.network == nad else None


def must_keep_operation(template: TemplateInterfaces, nics: VmiNics, name: str) -> bool:
    """Return whether the operation of an unplug must remain (see :func:`is_unplugged_until_restart`)."""
    desired = template.interfaces.get(name)
    in_template = desired is not None and desired.kind is OperationKind.PLUG
    return in_template and not is_template_unplug(template, nics, name)


def derive_edit_id(vm: VirtualMachine, vmi: VirtualMachineInstance, name: str, kind: OperationKind) -> str:
    """Return the id of an operation for an edit of the template without an annotation.

    The id is derived from the generation of the VM. The VM's UID in it prevents a clash with ids that are derived from
    the generation of the VMI, a different counter.
    """
    return derive_operation_id(f"{vmi.metadata.uid}/{vm.metadata.uid}", name, kind, vm.metadata.generation)


def _find_item(items: list[SpecItem] | None, name: str) -> SpecItem:
    return next((item for item in items or () if item.get("name") == name), {})
