"""Plan what the controller does for one VM, its VMI and the acting pod. Pure: no I/O.

Each step is a generator of the actions that are needed, none when there is nothing to do. The three subjects have a
module each: :mod:`~services.controller.plan.operations` starts operations, :mod:`~services.controller.plan.attachments`
annotates the pod and writes the VMI's status, and :mod:`~services.controller.plan.removal` removes unplugged interfaces
from the specs. Next: :mod:`services.controller.apply`.
"""

from collections.abc import Iterable, Iterator

from schemas.kubernetes.objects import VirtualMachine
from services.common.domain.nic import VmiNics
from services.common.domain.template import TemplateInterfaces, is_active, owns
from services.common.reconcile import Reject
from services.controller.plan.actions import Action, Observed, PatchObject, PatchTarget, StartOperations, WarnUser
from services.controller.plan.attachments import annotate_pod, is_eligible, write_status
from services.controller.plan.operations import adopt, adopt_at_start, copy_link_states, copy_template, undo_failed
from services.controller.plan.removal import clear_vm, clear_vmi

__all__ = ["Action", "Observed", "PatchObject", "PatchTarget", "StartOperations", "WarnUser", "plan"]


def plan(observed: Observed) -> list[Action]:
    """Return the actions for a VM and its VMI, in order; empty when there is nothing to do.

    At most one action is a :class:`StartOperations`. A plan with one has no patches, because it changes the objects
    that they depend on. The caller applies it and plans again with the changed objects.

    :raises Reject: a spec or an annotation of the VMI or its pod cannot be parsed; it must be changed before a retry.
    """
    vm, template, nics = observed.vm, observed.template, observed.nics
    actions: list[Action] = []
    if vm is not None and template is None:
        actions.append(_warn_malformed_template(vm))
    if vm is not None and vm.metadata.deletion_timestamp is not None:
        template = None
    if observed.vmi is None or not is_active(observed.vmi):
        nics = None
    elif nics is None:
        raise Reject("MalformedObject", observed.malformed)
    # A VMI of the VM's name was not necessarily created from this VM. If it was not, neither is changed to match the
    # other.
    owned = template is not None and nics is not None and owns(template.vm, nics.vmi)
    if nics is not None:
        actions += _plan_vmi(observed, template if owned else None, nics)
    if template is not None and not _has_start(actions):
        actions += clear_vm(template, nics if owned else None)
    return actions


def _plan_vmi(observed: Observed, template: TemplateInterfaces | None, nics: VmiNics) -> list[Action]:
    """Return the actions for an active VMI.

    :param template: the template of the VM that owns the VMI; ``None`` when there is none.
    """
    eligible = is_eligible(nics)
    actions = list(_until_start(_plan_starts(observed, template, nics, eligible)))
    if not _has_start(actions):
        actions += _plan_patches(template, nics, eligible)
    return actions


def _plan_starts(
    observed: Observed, template: TemplateInterfaces | None, nics: VmiNics, eligible: bool
) -> Iterator[Action]:
    """Plan the operations to start: those that undo failed plugs, those of the template, and adopted ones."""
    yield from undo_failed(observed, template, nics)
    if template is not None:
        yield from copy_template(observed, template, nics)
    if eligible:
        yield from adopt(observed, nics)
    elif nics.vmi.status.phase != "Running":
        yield from adopt_at_start(observed, nics)


def _plan_patches(template: TemplateInterfaces | None, nics: VmiNics, eligible: bool) -> Iterator[Action]:
    """Plan the patches of the pod and the VMI that the operations in progress need."""
    if eligible:
        yield from annotate_pod(nics)
        yield from write_status(nics)
    linked = list(copy_link_states(template, nics)) if template is not None else []
    # Both patch the VMI's lists, so the second one's guard would fail: one of them per run.
    yield from linked or clear_vmi(template, nics, eligible)


def _until_start(actions: Iterable[Action]) -> Iterator[Action]:
    """Yield actions up to the first :class:`StartOperations`; later ones would be planned on outdated objects."""
    for action in actions:
        yield action
        if isinstance(action, StartOperations):
            break


def _has_start(actions: list[Action]) -> bool:
    return any(isinstance(action, StartOperations) for action in actions)


def _warn_malformed_template(vm: VirtualMachine) -> WarnUser:
    message = "cannot parse the networks or interfaces of the template; correct them: the running VM is not changed"
    return WarnUser(PatchTarget.VM, "MalformedTemplate", message, (vm.metadata.uid, "MalformedTemplate"))
