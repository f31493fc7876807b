"""Plan the answers to requests about a VM. Pure: no I/O.

The api changes the VM's template only; the controller copies the change to the running VMI, if there is one.
Next: :mod:`services.api.apply`.
"""

from schemas.kubernetes.objects import Interface, Network, VirtualMachine, VmiSpec
from schemas.kubernetes.operations import Operation, derive_operation_id
from schemas.kubernetes.options import AddInterfaceOptions
from schemas.stages import OperationKind
from services.api.plan.answers import (
    Answer,
    ChangeObject,
    JoinOperation,
    Observed,
    RequestTarget,
    conflict,
    not_found,
)
from services.api.plan.checks import (
    check_free_slot,
    check_nad,
    check_name,
    check_removable,
    is_requested_network,
    nad_warnings,
    name_taken,
    requested_nad,
    unknown_interface,
)
from services.common.domain.mac_address import find_mac
from services.common.domain.nic import VmiNics, parse_nics
from services.common.domain.operations import ABSENT, resolve_operation
from services.common.domain.spec_patch import (
    InterfaceLists,
    build_patch,
    operation_annotations,
    template_spec_holder,
)
from services.common.domain.status_interfaces import DOMAIN
from services.common.domain.template import (
    TemplateInterfaces,
    derive_edit_id,
    find_pending_changes,
    is_active,
    is_unplugged_until_restart,
    owns,
    parse_template,
)


def add(observed: Observed) -> Answer:
    """Return the answer to ``addinterface``.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    options = observed.options
    assert isinstance(options, AddInterfaceOptions)
    vm, template, nics = parse_vm(observed)
    if options.name in template.interfaces:
        return _join_plug(observed, template, nics)
    check_name(observed, vm.spec.template.spec)
    operation = _running_plug(observed, nics)
    check_nad(observed)
    # With an operation, the running VMI has the interface already, so it needs no further slot.
    if nics is not None and operation is None:
        pending = sum(desired.kind is OperationKind.PLUG for desired in find_pending_changes(template, nics))
        check_free_slot(observed, nics, pending)
    operation = operation or observed.new_operation(OperationKind.PLUG)
    holder = template_spec_holder(vm)
    # As in KubeVirt: the request has no field for the binding, which is always `bridge`.
    multus = {"networkName": options.network_attachment_definition_name}
    mac = _running_mac(nics, options.name)
    item = {"name": options.name, "bridge": {}} | ({"macAddress": mac} if mac is not None else {})
    lists = with_primary_network(observed, vm, nics, holder.lists)
    lists = lists.with_interface(item, {"name": options.name, "multus": multus})
    ops = build_patch(holder, lists, operation_annotations([operation], holder.metadata.uid))
    return ChangeObject(RequestTarget.VM, operation, ops, requested_nad(observed), warnings=nad_warnings(observed))


def remove(observed: Observed) -> Answer:
    """Return the answer to ``removeinterface``; a repeated request joins the unplug in progress.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    vm, template, nics = parse_vm(observed)
    name = observed.options.name
    desired, in_vmi = template.interfaces.get(name), nics is not None and name in nics.interfaces
    if desired is None:
        hint = "'s template; the running VMI has it: remove it from the VMI" if in_vmi else ""
        raise unknown_interface(observed, hint)
    # The interface names of a pod matter only while it runs for this VM.
    check_removable(observed, desired.interface, desired.network, ordinal=nics is not None and nics.ordinal)
    # If the VMI is unplugging the interface already, the template joins that operation.
    running = _running_unplug(nics, name)
    if desired.kind is OperationKind.UNPLUG:
        return JoinOperation(_requested_unplug(template, nics, name, running))
    operation, holder = running or observed.new_operation(OperationKind.UNPLUG), template_spec_holder(vm)
    ops = build_patch(holder, holder.lists.with_absent([name]), operation_annotations([operation], holder.metadata.uid))
    return ChangeObject(RequestTarget.VM, operation, ops)


def parse_vm(observed: Observed) -> tuple[VirtualMachine, TemplateInterfaces, VmiNics | None]:
    """Return the VM with its parsed template and its parsed VMI, which is ``None`` when the VM does not run."""
    vm, vmi = observed.vm, observed.vmi
    if vm is None:
        raise not_found(observed)
    if vm.metadata.deletion_timestamp is not None:
        raise conflict(observed, "the VM is being deleted")
    running = vmi is not None and owns(vm, vmi) and is_active(vmi)
    return vm, parse_template(vm), parse_nics(vmi, observed.pod) if vmi is not None and running else None


def _join_plug(observed: Observed, template: TemplateInterfaces, nics: VmiNics | None) -> JoinOperation:
    """Join the plug in progress when the request is identical; otherwise refuse the name."""
    name = observed.options.name
    desired, operation = template.interfaces[name], template.operation(name, OperationKind.PLUG)
    if desired.kind is OperationKind.UNPLUG:
        raise name_taken(observed, desired.interface, desired.network, " and is being unplugged")
    if (
        operation is None
        or nics is None
        or not is_requested_network(observed, desired.network)
        or not _is_plug_in_progress(nics, operation)
    ):
        raise name_taken(observed, desired.interface, desired.network, "")
    return JoinOperation(operation)


def _is_plug_in_progress(nics: VmiNics, operation: Operation) -> bool:
    nic = nics.nics.get(operation.interface)
    # The controller may not have copied the interface to the VMI yet.
    to_copy = operation.interface not in nics.interfaces and not is_unplugged_until_restart(nics, operation.interface)
    return to_copy or (nic is not None and nic.operation.id == operation.id and DOMAIN not in nic.tokens)


def find_running_interface(observed: Observed, nics: VmiNics | None) -> tuple[Interface, Network | None] | None:
    """Return the interface and network of the running VMI that an ``addinterface`` of the VM asks for again.

    :return: ``None`` when the running VMI has no interface of the requested name.
    :raises Refused: the running VMI has another interface of that name, or is unplugging it, or may not have one.
    """
    name = observed.options.name
    if nics is None:
        return None
    interface = nics.interfaces.get(name)
    if interface is None:
        check_name(observed, nics.vmi.spec)
        return None
    network = nics.networks.get(name)
    if interface.state == ABSENT:
        raise name_taken(observed, interface, network, " in the running VM and is being unplugged")
    if not is_requested_network(observed, network) or interface.bridge is None:
        raise name_taken(observed, interface, network, " in the running VM")
    return interface, network


def _running_plug(observed: Observed, nics: VmiNics | None) -> Operation | None:
    """Return the operation of the same interface in the running VMI, which the request makes permanent.

    :return: ``None`` when the running VMI has no interface of the requested name.
    :raises Refused: as :func:`find_running_interface`; or the plug has failed.
    """
    found = find_running_interface(observed, nics)
    if found is None or nics is None:
        return None
    interface, network = found
    operation = resolve_operation(nics.vmi, interface, nics.operations.get(interface.name))
    if operation.failed is not None:
        state = f" in the running VM, where the plug failed ({operation.failed})"
        raise name_taken(observed, interface, network, state)
    return operation


def _running_mac(nics: VmiNics | None, name: str) -> str | None:
    """Return the MAC of an interface that the running VMI has; ``None`` when it has none, or it is not known yet.

    The template names it, so that neither a webhook that gives out MACs (kubemacpool) nor the network's plugin chooses
    another one for the next start.
    """
    nic = nics.nics.get(name) if nics is not None else None
    return find_mac(nic.interface.mac_address or nic.entry.get("mac")) if nic is not None else None


def _running_unplug(nics: VmiNics | None, name: str) -> Operation | None:
    """Return the unplug of an interface that is in progress in the running VMI; ``None`` when there is none."""
    interface = nics.interfaces.get(name) if nics is not None else None
    if nics is None or interface is None or interface.state != ABSENT:
        return None
    return resolve_operation(nics.vmi, interface, nics.operations.get(name))


def _requested_unplug(
    template: TemplateInterfaces, nics: VmiNics | None, name: str, running: Operation | None
) -> Operation:
    """Return the operation of an unplug that the template contains already.

    :param running: the unplug that is in progress in the running VMI.
    """
    vm, kind, written = template.vm, OperationKind.UNPLUG, template.operations.get(name)
    if written is not None and written.kind is kind:
        operation = written
    elif running is not None:
        operation = running
    # The template was edited, and no operation is written for the edit yet. The id is the one that the controller will
    # derive; for a stopped VM the controller writes no operation.
    elif nics is not None:
        operation = Operation(derive_edit_id(vm, nics.vmi, name, kind), kind, name)
    else:
        operation = Operation(derive_operation_id(vm.metadata.uid, name, kind, vm.metadata.generation), kind, name)
    return operation


def with_primary_network(
    observed: Observed, vm: VirtualMachine, nics: VmiNics | None, lists: InterfaceLists
) -> InterfaceLists:
    """Return the lists with the implicit primary network (KubeVirt's ``pod: {}``) made explicit.

    KubeVirt adds that network to a VM that lists no interface. With the new interface in the list it would not, and the
    VM would lose its primary network at the next restart.
    """
    # In KubeVirt 1.0.0 the first plug lost this network (kubevirt#10205).
    implicit = not lists.networks and not lists.interfaces
    if not implicit or vm.spec.template.spec.domain.devices.autoattach_pod_interface is False:
        return lists
    spec = nics.vmi.spec if nics is not None else VmiSpec()
    networks = {item.get("name"): item for item in spec.networks or () if "pod" in item}
    interfaces = [item for item in spec.domain.devices.interfaces or () if item.get("name") in networks]
    pairs = [(item, networks[item.get("name")]) for item in interfaces]
    default = ({"name": "default", observed.default_binding: {}}, {"name": "default", "pod": {}})
    return lists.with_interface(*(pairs or [default])[0])
