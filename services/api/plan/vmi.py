"""Plan the answers to requests about a VMI. Pure: no I/O.

The change applies to the running VMI only and is lost when the VM restarts. Next: :mod:`services.api.plan.vm`.
"""

from schemas.kubernetes.objects import VMS, VirtualMachineInstance
from schemas.kubernetes.operations import NIC_SLOTS
from schemas.kubernetes.options import PERSIST_REQUIRED, AddInterfaceOptions
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
    NO_OWNER,
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
from services.common.domain.nic import VmiNics, parse_nics
from services.common.domain.operations import ABSENT, resolve_operation
from services.common.domain.spec_patch import annotation_path, build_patch, operation_annotations, vmi_spec_holder
from services.common.domain.status_interfaces import DOMAIN
from services.common.domain.template import owns

OWNED_BY_KUBEVIRT = (
    "KubeVirt owns the VMs of this cluster and refuses every change of a VMI; change the VM instead (the command "
    "hotnic does so by itself; other clients use the same subresource of virtualmachines)"
)
"""The explanation of a refusal beside KubeVirt, where only the templates of VMs change."""
NO_VM = (
    "KubeVirt plugs nothing into a VMI without a VM, and refuses every change of a VMI; create a VirtualMachine in its "
    "place"
)


def add(observed: Observed) -> Answer:
    """Return the answer to ``addinterface``.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    options = observed.options
    assert isinstance(options, AddInterfaceOptions)
    nics = _changeable_nics(observed)
    if options.name in nics.interfaces:
        return _join_plug(observed, nics)
    _check_template(observed, nics.vmi)
    check_name(observed, nics.vmi.spec)
    check_nad(observed)
    check_free_slot(observed, nics, pending=0)
    operation, holder = observed.new_operation(OperationKind.PLUG), vmi_spec_holder(nics.vmi)
    # As in KubeVirt: the request has no field for the binding, which is always `bridge`.
    multus = {"networkName": options.network_attachment_definition_name}
    lists = holder.lists.with_interface({"name": options.name, "bridge": {}}, {"name": options.name, "multus": multus})
    ops = build_patch(holder, lists, operation_annotations([operation], holder.metadata.uid))
    if (slots := nics.vmi.metadata.annotations.get(NIC_SLOTS)) is not None:
        # The slot check used this count. If it has changed, the patch fails and the request is planned again.
        ops = [{"op": "test", "path": annotation_path(NIC_SLOTS), "value": slots}, *ops]
    return ChangeObject(RequestTarget.VMI, operation, ops, requested_nad(observed), warnings=nad_warnings(observed))


def remove(observed: Observed) -> Answer:
    """Return the answer to ``removeinterface``; a repeated request joins the unplug in progress.

    :raises Refused: the request is refused.
    :raises ValueError: an object cannot be parsed.
    """
    nics, name = _changeable_nics(observed), observed.options.name
    interface = nics.interfaces.get(name)
    if interface is None:
        # KubeVirt answers 202 here.
        raise unknown_interface(observed)
    check_removable(observed, interface, nics.networks.get(name), nics.ordinal)
    if interface.state == ABSENT:
        return JoinOperation(resolve_operation(nics.vmi, interface, nics.operations.get(name)))
    operation, holder = observed.new_operation(OperationKind.UNPLUG), vmi_spec_holder(nics.vmi)
    ops = build_patch(holder, holder.lists.with_absent([name]), operation_annotations([operation], holder.metadata.uid))
    return ChangeObject(RequestTarget.VMI, operation, ops)


def _changeable_nics(observed: Observed) -> VmiNics:
    """Parse the VMI, or refuse the request where hotnic cannot change it."""
    vmi = observed.vmi
    if not observed.owned_by_hotnic and observed.beside is None:
        raise conflict(observed, NO_OWNER)
    if not observed.owned_by_hotnic and (vmi is not None or observed.vm is not None):
        if vmi is not None and not any(owner.kind == VMS.kind for owner in vmi.metadata.owner_references):
            raise conflict(observed, NO_VM)
        raise conflict(observed, OWNED_BY_KUBEVIRT, cause=PERSIST_REQUIRED)
    if vmi is None:
        raise not_found(observed)
    if vmi.status.phase != "Running" or vmi.metadata.deletion_timestamp is not None:
        raise conflict(observed, "VMI is not running")
    return parse_nics(vmi, observed.pod)


def _join_plug(observed: Observed, nics: VmiNics) -> JoinOperation:
    """Join the plug in progress when the request is identical; otherwise refuse the name."""
    name = observed.options.name
    interface, network = nics.interfaces[name], nics.networks.get(name)
    nic, written = nics.nics.get(name), nics.operations.get(name)
    failed = written.failed if written is not None else None
    if interface.state == ABSENT:
        raise name_taken(observed, interface, network, " and is being unplugged")
    if failed is not None:
        state = f", whose plug failed ({failed}) and which is being removed"
        raise name_taken(observed, interface, network, state)
    in_progress = nic is not None and nic.has_operation and DOMAIN not in nic.tokens
    if written is None or not in_progress or not is_requested_network(observed, network):
        # KubeVirt answers 202 to such a request and does nothing.
        raise name_taken(observed, interface, network, "")
    return JoinOperation(written)


def _check_template(observed: Observed, vmi: VirtualMachineInstance) -> None:
    """Refuse a name that the VM's template unplugs: that unplug would also remove the interface of this request."""
    name, vm = observed.options.name, observed.vm
    if vm is not None and owns(vm, vmi):
        items = vm.spec.template.spec.domain.devices.interfaces or ()
        if any(item.get("name") == name and item.get("state") == ABSENT for item in items):
            why = f"interface {name!r} is being unplugged from VM {observed.name}; try again after the unplug"
            raise conflict(observed, why)
