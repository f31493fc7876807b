"""Plan the end of an unplug: remove interface, network and operation from the VMI's spec, then from the VM's template.

Nothing is removed before the device has left the guest, the handler has torn down the network in the acting pod, and
the networks role has detached the attachment. Pure: no I/O.
Next: :mod:`services.controller.plan`, which puts the decisions in order.
"""

from collections.abc import Iterator, Mapping

from schemas.kubernetes.operations import Operation, operation_key, stale_operation_keys
from schemas.names import interface_hash
from schemas.stages import OperationKind
from services.common.domain.nic import VmiNics
from services.common.domain.spec_patch import SpecHolder, build_patch, template_spec_holder, vmi_spec_holder
from services.common.domain.template import TemplateInterfaces, must_keep_operation
from services.controller.plan.actions import PatchObject, PatchTarget


def clear_vmi(template: TemplateInterfaces | None, nics: VmiNics, eligible: bool) -> Iterator[PatchObject]:
    """Plan the patch that removes unplugged interfaces and their operations from the VMI.

    :param template: the template of the VM that owns the VMI. While it lists an interface that was unplugged from this
        VMI only, the operation stays on the VMI: without it, the template would plug the interface again.
    :param eligible: whether interfaces may change now. Otherwise no interface is removed, because the network in the
        pod may still be set up.
    """
    removed = find_detached(nics) if eligible else {}
    remaining = (nics.interfaces.keys() - removed.keys()) | _remembered_unplugs(template, nics)
    yield from _clear(PatchTarget.VMI, vmi_spec_holder(nics.vmi), removed, remaining)


def find_detached(nics: VmiNics) -> dict[str, Operation]:
    """Return the unplugs that are done, by interface: nothing is left in the guest, the pod or the VMI's status."""
    return {nic.name: nic.operation for nic in nics if nics.released(nic) and not nic.in_pod and not nic.entry}


def clear_vm(template: TemplateInterfaces, nics: VmiNics | None) -> Iterator[PatchObject]:
    """Plan the patch that removes absent interfaces, and operations without an interface, from the VM.

    An interface stays while the VMI has it in its spec or status, or still has its operation.

    :param nics: the VMI that the VM owns; ``None`` when the VM does not run.
    """
    removed = {
        name: template.operations.get(name)
        for name, desired in template.interfaces.items()
        if desired.kind is OperationKind.UNPLUG and (nics is None or not _is_known(nics, name))
    }
    remaining = template.interfaces.keys() - removed.keys()
    yield from _clear(PatchTarget.VM, template_spec_holder(template.vm), removed, remaining)


def _clear(
    target: PatchTarget, holder: SpecHolder, removed: Mapping[str, Operation | None], remaining: set[str]
) -> Iterator[PatchObject]:
    """Plan the removal of interfaces, and of the operations of all interfaces that do not remain."""
    stale = stale_operation_keys(holder.metadata.annotations, {interface_hash(name) for name in remaining})
    if removed or stale:
        lists = holder.lists.without_interfaces(removed) if removed else holder.lists
        operations = tuple(operation for operation in removed.values() if operation is not None)
        yield PatchObject(target, "clear", build_patch(holder, lists, dict.fromkeys(stale)), operations)


def _is_known(nics: VmiNics, name: str) -> bool:
    """Return whether the VMI has an interface in its spec or status, or its operation.

    The VMI's operation is removed before the template's interface. In the opposite order it could stay behind.
    """
    in_status = any(entry.get("name") == name for entry in nics.vmi.status.interfaces or ())
    return name in nics.interfaces or in_status or operation_key(name) in nics.vmi.metadata.annotations


def _remembered_unplugs(template: TemplateInterfaces | None, nics: VmiNics) -> set[str]:
    """Return the interfaces whose unplug must stay recorded on the VMI: all of them when the owning VM is unknown."""
    owned = any(owner.kind == "VirtualMachine" for owner in nics.vmi.metadata.owner_references)
    return {
        name
        for name, operation in nics.operations.items()
        if operation.kind is OperationKind.UNPLUG
        and (must_keep_operation(template, nics, name) if template is not None else owned)
    }
